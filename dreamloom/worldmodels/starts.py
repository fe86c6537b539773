"""Where imagined rollouts start: windows of a dataset's frames, or the prompts of the world."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from dreamloom.datasets.clips import DiskFrames, Windows
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.worldmodels.world import World

StartAt = Literal["uniform", "first", "backward"]


@runtime_checkable
class Starts(Protocol):
    """What a rollout starts from. `progress`, from 0 to 1, moves the starts of a curriculum."""

    progress: float

    def draw(self, generators: Sequence[torch.Generator]) -> UInt8[Tensor, "b t c h w"]:
        """Frames to start worlds from, one draw from each generator."""


class PromptStarts:
    """The prompts of a world, one as likely as another.

    Args:
        prompts: (p, t, c, h, w).

    Raises:
        ValueError: the world has none.
    """

    def __init__(self, prompts: UInt8[Tensor, "p t c h w"]):
        if not len(prompts):
            raise ValueError("the world has no prompts to start from: give `starts`, a dataset of frames")
        self.prompts, self.progress = prompts, 0.0

    def draw(self, generators: Sequence[torch.Generator]) -> UInt8[Tensor, "b t c h w"]:
        """See `Starts`."""
        return self.prompts[[int(u * len(self.prompts)) for u, _ in _uniforms(generators)]]


class Ahead(NamedTuple):
    """What a dataset holds from a start on.

    Attributes:
        frames: (s + 1, c, h, w), the start's last frame and those that followed it.
        actions: (s, ...) that were taken at all of these frames but the last.
    """

    frames: UInt8[Tensor, "t c h w"]
    actions: Shaped[Tensor, "s ..."]


class DataStarts:
    """Windows of frames, each in one episode and followed by at least one more frame of it.

    Args:
        path: a dataset of frames; its frames a second are those of the world, or a multiple.
        world: what is started.
        at: `uniform` over all windows; `first`, the first window of an episode, each episode as likely; `backward`, windows
            near the end of an episode at first and from further back as `progress` grows (Florensa et al. 2017, Salimans and
            Chen 2018), of episodes that earn a reward where some do.
        length: frames of a window; as many as the world's own prompts have by default.

    Raises:
        ValueError: no frames, another rate of frames, or no episode that is long enough.
    """

    def __init__(self, path: str | Path, world: World, *, at: StartAt = "uniform", length: int | None = None):
        self.length = max(1, world.prompts.shape[1]) if length is None else length
        if self.length < 1:
            raise ValueError(f"a start needs at least 1 frame, got {self.length}")
        self.path, self.at, self.progress = Path(path), at, 0.0
        with open_dataset(path) as data:
            self.stride = _stride(data, world)
            starts, self.ends = data.episodes
            counts = self.ends - starts - self.length * self.stride
            if not (counts > 0).any():
                raise ValueError(
                    f"{path}: a start needs {self.length * self.stride + 1} rows of one episode, "
                    f"and the longest has {int((self.ends - starts).max(initial=0))}"
                )
            keep = (counts > 0) & (_rewarded(data, counts > 0) if at == "backward" else True)
            self.windows, self.ends = Windows(starts[keep], counts[keep]), self.ends[keep]
            self.actions = None if data.actions is None else data.actions[:]
            levels = data.infos.get("level_seed")
            self.levels = None if levels is None else levels[:]
        self._frames = DiskFrames(self.path)

    def draw(self, generators: Sequence[torch.Generator]) -> UInt8[Tensor, "b t c h w"]:
        """See `Starts`."""
        return self.frames(self.rows(generators))

    def rows(self, generators: Sequence[torch.Generator]) -> np.ndarray:
        """First rows (b,) of the windows that are drawn."""
        u, v = np.array(_uniforms(generators)).T
        firsts, counts = self.windows.firsts, self.windows.counts
        if self.at == "uniform":
            stops = np.cumsum(counts)
            ticket = (u * stops[-1]).astype(np.int64)
            episode = np.searchsorted(stops, ticket, side="right")
            return firsts[episode] + ticket - (stops - counts)[episode]
        episode = (u * len(firsts)).astype(np.int64)
        if self.at == "first":
            return firsts[episode]
        reach = 1 + (self.progress * (counts[episode] - 1)).astype(np.int64)
        return firsts[episode] + counts[episode] - 1 - (v * reach).astype(np.int64)

    def frames(self, rows: np.ndarray) -> UInt8[Tensor, "b t c h w"]:
        """The windows that begin in some rows."""
        return self._frames.gather(rows[:, None] + np.arange(self.length) * self.stride)

    def ahead(self, row: int, steps: int) -> Ahead:
        """What followed the window that begins in a row, at most so many steps of the world.

        Raises:
            ValueError: the dataset holds no actions.
        """
        if self.actions is None:
            raise ValueError(f"{self.path}: holds no actions (unlabelled video?)")
        last = row + (self.length - 1) * self.stride
        end = self.ends[np.searchsorted(self.windows.firsts, row, side="right") - 1]
        index = np.arange(last, min(end, last + steps * self.stride + 1), self.stride)
        return Ahead(self._frames.gather(index[None])[0], torch.from_numpy(self.actions[index[:-1]]))


def _uniforms(generators: Sequence[torch.Generator]) -> list[list[float]]:
    """Two numbers in [0, 1) of each generator."""
    return [torch.rand(2, dtype=torch.float64, generator=g, device=g.device).tolist() for g in generators]


def _stride(data: Dataset, world: World) -> int:
    """Rows of the dataset from one frame of the world to the next."""
    stride = round(data.fps / world.fps)
    if stride < 1 or abs(data.fps / world.fps - stride) > 0.05:
        raise ValueError(f"{data.ref} has {data.fps:g} frames/s, {world.name} {world.fps:g}: the first must be a multiple")
    if data.frames.shape[-1] != world.frame_shape[0]:
        raise ValueError(f"{data.ref} has frames {data.frames.shape[1:]} (h, w, c), {world.name} {world.frame_shape} (c, h, w)")
    return stride


def _rewarded(data: Dataset, among: np.ndarray) -> np.ndarray:
    """Which episodes earn a reward; all, where none of these `among` does, or rewards are not known."""
    if data.rewards is None:
        return among
    earns = np.add.reduceat(data.rewards[:] > 0, data.episodes[0]) > 0
    return earns if (earns & among).any() else among
