"""The two shapes of data that everything shares: transitions (rows) and clips (windows of video)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8


@dataclass(frozen=True)
class Transitions:
    """Equal-length arrays with D4RL's names and meaning.

    Attributes:
        observations: (N, ...) what was seen; pixels are uint8 (N, h, w, 3).
        actions: (N, ...) action i is taken at observation i.
        rewards: (N,) float32, earned by action i.
        next_observations: (N, ...) what followed.
        terminals: (N,) bool, the MDP ended (the bootstrap is cut).
        timeouts: (N,) bool, only the episode ended.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"transitions need arrays of equal length, got {lengths}")

    def __len__(self) -> int:
        return len(self.observations)


@dataclass(frozen=True)
class Clip:
    """A batch of video windows; no window crosses an episode.

    Attributes:
        frames: (b, t, c, h, w) uint8.
        actions: (b, t) or (b, t, a); action t is taken at frame t and turns it into frame t+1. None for unlabelled video.
        rewards: (b, t) float32, or None.
        terminals: (b, t) bool, or None.
    """

    frames: UInt8[torch.Tensor, "b t c h w"]
    actions: Shaped[torch.Tensor, "b t ..."] | None = None
    rewards: Float[torch.Tensor, "b t"] | None = None
    terminals: Bool[torch.Tensor, "b t"] | None = None

    def to(self, device: torch.device | str) -> "Clip":
        """The same clip on another device (Lightning calls this too)."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Clip":
        """The same clip in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Clip":
        changed: dict[str, Any] = {name: value if value is None else change(value) for name, value in vars(self).items()}
        return Clip(**changed)
