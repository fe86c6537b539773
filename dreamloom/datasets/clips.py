"""Windows of video drawn from a dataset file: seeded, inside one episode, the same for any number of workers and ranks."""

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from dreamloom.datasets.finite import Nonfinite, finite_episodes
from dreamloom.datasets.lazy import LazyArray
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.types import Clip

Residence = Literal["auto", "device", "ram", "disk"]


@dataclass(frozen=True)
class Windows:
    """Every place where a window may start: `counts[e]` consecutive rows from `firsts[e]` on, for each episode e.

    Attributes:
        firsts: (e,) first row of each episode that holds a window.
        counts: (e,) number of windows of that episode.
        skipped: episodes left out because they are shorter than a window.
    """

    firsts: np.ndarray
    counts: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def draw(self, random: np.random.Generator, size: int) -> np.ndarray:
        """First rows of `size` windows, uniform over all windows (not over episodes), with replacement."""
        stops = np.cumsum(self.counts)
        ticket = random.integers(stops[-1], size=size)
        episode = np.searchsorted(stops, ticket, side="right")
        return self.firsts[episode] + ticket - (stops - self.counts)[episode]

    def only(self, episodes: np.ndarray) -> "Windows":
        """The windows of some of the episodes (a mask)."""
        return Windows(self.firsts[episodes], self.counts[episodes], self.skipped)


class Frames(Protocol):
    """Frames that live somewhere and are gathered by row."""

    def gather(self, rows: Int[np.ndarray, "b t"]) -> UInt8[Tensor, "b t c h w"]:
        """Copies the rows into a new batch."""


class MemoryFrames:
    """All frames in one tensor, in RAM or on a device."""

    def __init__(self, dataset: LazyArray, device: torch.device | str):
        n, h, w, c = dataset.shape
        self.frames = torch.empty((n, c, h, w), dtype=torch.uint8, device=device)
        rows = max(1, 2**26 // (h * w * c))
        for start in tqdm(range(0, n, rows), desc=f"loading frames to {device}", disable=n < 20 * rows):
            piece = torch.from_numpy(dataset[start : start + rows]).to(device)
            self.frames[start : start + rows] = rearrange(piece, "n h w c -> n c h w")

    def gather(self, rows: np.ndarray) -> Tensor:
        """Copies the rows into a new batch, where the frames live."""
        index = torch.from_numpy(rows.reshape(-1)).to(self.frames.device)
        return self.frames.index_select(0, index).unflatten(0, rows.shape)


class DiskFrames:
    """Frames left in the file: memory-mapped where they lie in one piece, else read through HDF5.

    Each process opens the file for itself: an HDF5 handle does not survive a fork.
    """

    def __init__(self, path: Path):
        self.path = path
        self._owner: int | None = None

    def __getstate__(self) -> dict:
        return {"path": self.path, "_owner": None}

    def _opened(self) -> np.ndarray | LazyArray:
        if self._owner != os.getpid():
            frames = open_dataset(self.path).frames
            offset = frames.offset  # None where chunked, compressed or in several files
            self._frames = frames if offset is None else np.memmap(self.path, np.uint8, "r", offset, frames.shape)
            self._owner = os.getpid()
        return self._frames

    def gather(self, rows: np.ndarray) -> Tensor:
        """Copies the rows into a new batch in RAM."""
        frames = self._opened()
        out = np.empty((*rows.shape, *frames.shape[1:]), np.uint8)
        if isinstance(frames, np.ndarray):
            np.take(frames, rows, axis=0, out=out, mode="clip")
        else:
            stride = int(rows[0, 1] - rows[0, 0]) if rows.shape[1] > 1 else 1
            for window, index in zip(out, rows, strict=True):
                window[...] = frames[index[0] : index[-1] + 1][::stride]
        return rearrange(torch.from_numpy(out), "b t h w c -> b t c h w").contiguous()


class ClipSource:
    """Draws windows of `length` frames from a dataset file; no window crosses an episode.

    A batch is a pure function of (seed, step, batch_size * world_size); a rank takes its slice of it.

    Args:
        path: dataset (docs/data.md) with pixel `observations`.
        length: frames of a window.
        stride: rows from one frame to the next; the actions of rows between are not kept.
        residence: where the frames live: on `device`, in RAM, or in the file; "auto" takes the first that they fit in.
        device: the accelerator for residence "device"; "auto" uses it where it is CUDA.
        processes: how many processes of this machine load the same file, which "auto" divides the memory by.
        nonfinite: whether rows with NaN or infinite actions or rewards are refused or left out; no window holds one.

    Attributes:
        left_out: a line for each reason for which rows or episodes are in no window.

    Raises:
        ValueError: the file holds no pixels, or actions or rewards that are not finite, or no episode is as long as a window.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        length: int = 16,
        stride: int = 1,
        residence: Residence = "auto",
        device: torch.device | str = "cpu",
        processes: int = 1,
        nonfinite: Nonfinite = "refuse",
    ):
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride must be at least 1, got length {length}, stride {stride}")
        self.path, self.length, self.stride = Path(path), length, stride
        with open_dataset(path) as data:
            columns = {"actions": data.actions, "rewards": data.rewards, "terminals": data.terminals}
            held = {name: column[:] for name, column in columns.items() if column is not None}
            self.episodes, dropped = finite_episodes(data.episodes, held, data.ref, nonfinite)
            self.windows = _windows(*self.episodes, (length - 1) * stride + 1, self.path)
            self.left_out = list(filter(None, [dropped, self._too_short()]))
            levels, firsts = data.infos.get("level_seed"), self.windows.firsts
            self._groups = firsts if levels is None else levels[:][firsts]
            self.residence = _fitting(data.frames.nbytes, device, processes) if residence == "auto" else residence
            self.frame_shape = (data.frames.shape[3], *data.frames.shape[1:3])  # (c, h, w)
            home = device if self.residence == "device" else "cpu"
            self._frames: Frames = DiskFrames(self.path) if self.residence == "disk" else MemoryFrames(data.frames, home)
            self._columns = {name: torch.from_numpy(column).to(home) for name, column in held.items()}

    def _too_short(self) -> str | None:
        count, rows = self.windows.skipped, (self.length - 1) * self.stride + 1
        told = f"{self.path}: left out {count:,} of {len(self.episodes[0]):,} episodes, shorter than a window of {rows} rows"
        return told if count else None

    def rows(self, seed: int, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The (b, t) file rows of a batch."""
        starts = self.windows.draw(np.random.default_rng((seed, step)), batch_size * world_size)
        mine = starts[rank * batch_size : (rank + 1) * batch_size]
        return mine[:, None] + np.arange(self.length) * self.stride

    def sample(self, seed: int, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Clip:
        """A batch of clips, on the device where the frames live (RAM for those on disk).

        Args:
            seed: of the whole run.
            step: number of the batch in the run.
            batch_size: clips for this rank.
            rank: which slice of the global batch.
            world_size: number of slices.

        Returns:
            frames (b, t, c, h, w) uint8 and, where the file has them, actions, rewards and terminals of the same rows.
        """
        return self.take(self.rows(seed, step, batch_size, rank=rank, world_size=world_size))

    def take(self, rows: np.ndarray) -> Clip:
        """The clips of some rows (b, t), which lie in steps of `stride`."""
        index = torch.from_numpy(rows)
        columns = {name: column[index.to(column.device)] for name, column in self._columns.items()}
        return Clip(frames=self._frames.gather(rows), **columns)

    def split(self, fraction: float) -> tuple["ClipSource", "ClipSource"]:
        """Two sources over the same frames: training and validation, which share no level (without levels: no episode).

        The split depends on the file alone, so that all the models of a world hold out the same levels.

        Args:
            fraction: of the levels for validation; at least one is held out, and one is left.

        Raises:
            ValueError: there is only one level (or episode).
        """
        groups = np.unique(self._groups)
        if len(groups) < 2:
            raise ValueError(
                f"{self.path}: one episode or level cannot be split into training and validation; use val_fraction 0"
            )
        shuffled = groups[np.random.default_rng(0).permutation(len(groups))]
        count = min(max(1, round(fraction * len(groups))), len(groups) - 1)
        held_out = np.isin(self._groups, shuffled[:count])
        return self._restricted(~held_out), self._restricted(held_out)

    def _restricted(self, episodes: np.ndarray) -> "ClipSource":
        part = copy.copy(self)
        part.windows, part._groups = self.windows.only(episodes), self._groups[episodes]
        return part


def _windows(starts: np.ndarray, ends: np.ndarray, span: int, path: Path) -> Windows:
    counts = ends - starts - span + 1
    fits = counts > 0
    if not fits.any():
        longest = int((ends - starts).max(initial=0))
        raise ValueError(f"{path}: a window needs {span} rows of one episode, and the longest episode has {longest}")
    return Windows(starts[fits], counts[fits], skipped=int((~fits).sum()))


def _fitting(nbytes: int, device: torch.device | str, processes: int) -> Literal["device", "ram", "disk"]:
    """Models and activations keep at least half of the device, and others three quarters of the RAM."""
    if torch.device(device).type == "cuda" and nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return "device"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return "ram" if nbytes * processes < physical / 4 else "disk"
