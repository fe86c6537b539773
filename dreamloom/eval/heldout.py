"""Clips of a file's episodes to evaluate on: spread over levels, of any length, split by level where a part is for training."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from dreamloom.datasets.store import Dataset
from dreamloom.datasets.types import Clip


@dataclass(frozen=True)
class Episodes:
    """Some of a file's episodes.

    Attributes:
        data: the open file.
        starts: (e,) first rows.
        ends: (e,) one-past-last rows.
        levels: (e,) level of each episode; its number where the file does not tell levels.
        stride: rows from one frame to the next.
    """

    data: Dataset
    starts: np.ndarray
    ends: np.ndarray
    levels: np.ndarray
    stride: int = 1

    @staticmethod
    def of(data: Dataset, stride: int = 1) -> "Episodes":
        """All episodes of a file."""
        starts, ends = data.episodes
        seeds = data.infos.get("level_seed")
        levels = np.arange(len(starts)) if seeds is None else seeds[:][starts]
        return Episodes(data, starts, ends, levels, stride)

    def _room(self, length: int) -> np.ndarray:
        """(e,) windows of `length` frames in each episode, negative or 0 for none."""
        return self.ends - self.starts - (length - 1) * self.stride

    def affording(self, length: int) -> int:
        """How many episodes hold a window of `length` frames."""
        return int((self._room(length) > 0).sum())

    def longest(self) -> int:
        """Frames of the longest episode."""
        return int((self.ends - self.starts - 1).max(initial=-1)) // self.stride + 1

    def clips(self, count: int, length: int, *, seed: int) -> Clip:
        """Clips spread over episodes: no episode gives a second one before each has given one.

        Args:
            count: clips.
            length: frames of each.
            seed: of the choice.

        Raises:
            ValueError: no episode is that long.
        """
        room = self._room(length)
        fits = np.flatnonzero(room > 0)
        if not len(fits):
            raise ValueError(f"{self.data.path}: no episode has {length} frames; the longest has {self.longest()}")
        random = np.random.default_rng((seed, length))
        chosen = np.resize(random.permutation(fits), count)
        firsts = self.starts[chosen] + random.integers(room[chosen])
        spans = [slice(first, first + (length - 1) * self.stride + 1, self.stride) for first in firsts]
        frames = np.stack([self.data.frames[span] for span in spans])
        actions = None
        if self.data.actions is not None:
            actions = torch.from_numpy(np.stack([self.data.actions[span] for span in spans]))
        return Clip(rearrange(torch.from_numpy(frames), "b t h w c -> b t c h w").contiguous(), actions)

    def sample(self, count: int, *, seed: int) -> UInt8[torch.Tensor, "n c h w"]:
        """Single frames, each at most once: as many as asked for, or all.

        Args:
            count: frames.
            seed: of the choice.
        """
        rows = np.concatenate([np.arange(start, end) for start, end in zip(self.starts, self.ends, strict=True)])
        chosen = np.sort(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False))
        return rearrange(torch.from_numpy(self.data.frames[chosen]), "n h w c -> n c h w").contiguous()

    def halves(self) -> "tuple[Episodes, Episodes]":
        """Two parts that share no level; the split depends on the file alone. The second is empty if there is one level."""
        levels = np.random.default_rng(0).permutation(np.unique(self.levels))
        first = np.isin(self.levels, levels[: (len(levels) + 1) // 2])
        return self._only(first), self._only(~first)

    def _only(self, mask: np.ndarray) -> "Episodes":
        return replace(self, starts=self.starts[mask], ends=self.ends[mask], levels=self.levels[mask])
