"""The two shapes of data that everything shares: transitions (rows) and clips (windows of video)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8


@dataclass(frozen=True)
class Transitions:
    """Equal-length arrays with D4RL's names and meaning; `transitions[rows]` are some of them.

    Attributes:
        observations: (N, o) float32, or pixels (N, h, w, c) uint8; what was seen.
        actions: (N, a) float32 or (N,) int64; action i is taken at observation i.
        rewards: (N,) float32, earned by action i.
        next_observations: like `observations`, what followed.
        terminals: (N,) bool, the MDP ended (the bootstrap is cut).
        timeouts: (N,) bool, only the episode ended.
        next_known: (N,) bool, False where the source does not hold what followed (the terminal row of a D4RL file):
            `next_observations` then repeats the row's own observation. None where all are known.

    Raises:
        ValueError: the arrays differ in length.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    next_known: np.ndarray | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in vars(self).items() if value is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"transitions need arrays of equal length, got {lengths}")

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, rows: slice | np.ndarray | Sequence[int]) -> "Transitions":
        """Some of the rows: a slice, row numbers in any order, or a mask (N,)."""
        columns: dict[str, Any] = {name: None if value is None else value[rows] for name, value in vars(self).items()}
        return Transitions(**columns)

    @classmethod
    def concatenate(cls, parts: Sequence["Transitions"]) -> "Transitions":
        """The rows of all parts, in order.

        Raises:
            ValueError: there is no part, or the parts differ in the shape of a row.
        """
        if not parts:
            raise ValueError("no transitions to concatenate")
        names = [name for name in vars(parts[0]) if name != "next_known"]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        known = None
        if any(part.next_known is not None for part in parts):
            known = np.concatenate([np.ones(len(p), bool) if p.next_known is None else p.next_known for p in parts])
        return cls(**columns, next_known=known)


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
