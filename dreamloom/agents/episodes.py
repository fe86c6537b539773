"""Episodes of frames in memory, read from datasets: each frame once, as uint8, in order of time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from dreamloom.datasets.finite import Nonfinite, finite_episodes
from dreamloom.datasets.store import Dataset, DatasetError, open_dataset
from dreamloom.datasets.subset import subset
from dreamloom.datasets.transitions import left_out

_LOOKED_AT = 2  # rows of an episode whose next observations are held against the following rows


class Episodes(NamedTuple):
    """Episodes one after another: a row a frame. An episode's closing frame, where it is known, is a row without action.

    Attributes:
        frames: (n, h, w, c).
        actions: (n,) int64 or (n, a) float32.
        rewards: (n,).
        first: (n,) row of the episode's first frame.
        left: (n,) steps that are known from here on; 0: the row cannot be drawn.
        terminal: (n,) whether the episode ends in a terminal.
    """

    frames: UInt8[Tensor, "n h w c"]
    actions: Shaped[Tensor, "n ..."]
    rewards: Shaped[Tensor, "n"]
    first: Int[Tensor, "n"]
    left: Int[Tensor, "n"]
    terminal: Bool[Tensor, "n"]


def read_episodes(
    sources: Sequence[str | Path | Dataset],
    choose: Mapping[str, Any],
    *,
    nonfinite: Nonfinite = "refuse",
    tell: Callable[[str], object] = lambda line: None,
) -> tuple[Episodes, int, list[str] | None]:
    """Reads episodes of some datasets.

    Args:
        sources: the datasets.
        choose: settings of `datasets.subset.subset`; none for all episodes.
        nonfinite: whether rows with NaN or infinite actions or rewards are refused or dropped; an episode is cut there.
        tell: called with a line for each reason for which rows are left out.

    Returns:
        The episodes, the size of an action (discrete ones: how many there are), and their names where they are known.

    Raises:
        ValueError: a dataset holds no pixels or no labels, or labels that are not finite, or they do not fit each other.
    """
    parts: list[Episodes] = []
    sizes: list[int] = []
    names: list[str] | None = None
    for source in sources:
        with subset(source, **choose) if choose else _opened(source) as data:
            parts.append(_read(data, nonfinite, tell))
            names = names or data.action_names
            sizes.append(_action_size(data))
    return _joined(parts), max(sizes), names


def _opened(source: str | Path | Dataset) -> Dataset:
    return source if isinstance(source, Dataset) else open_dataset(source)


def _action_size(data: Dataset) -> int:
    assert data.actions is not None
    if data.actions.ndim > 1:
        return data.actions.shape[1]
    return len(data.action_names or []) or int(data.actions[:].max(initial=0)) + 1


def _joined(parts: list[Episodes]) -> Episodes:
    if len(parts) == 1:  # without a second copy of the frames
        return parts[0]
    kinds = {(tuple(part.frames.shape[1:]), part.actions.ndim, tuple(part.actions.shape[1:])) for part in parts}
    if len(kinds) != 1:
        raise ValueError(f"datasets of one buffer must have frames and actions of one shape, got {sorted(kinds)}")
    offsets = np.cumsum([0, *(len(part.frames) for part in parts[:-1])]).tolist()
    parts = [part._replace(first=part.first + offset) for part, offset in zip(parts, offsets, strict=True)]
    return Episodes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _read(data: Dataset, nonfinite: Nonfinite, tell: Callable[[str], object]) -> Episodes:
    if data.actions is None or data.rewards is None:
        raise DatasetError(f"{data.ref}: no actions or no rewards, so its rows are no transitions (unlabelled video?)")
    labels = {"actions": data.actions[:], "rewards": data.rewards[:]}
    if labels["actions"].ndim == 1 and labels["actions"].min(initial=0) < 0:
        raise DatasetError(f"{data.ref}: `actions` go down to {labels['actions'].min()}; discrete actions count from 0")
    (starts, ends), dropped = finite_episodes(data.episodes, labels, data.ref, nonfinite)
    for line in filter(None, (left_out(data), dropped)):
        tell(line)
    terminal = data.terminals[:][ends - 1]
    closed = _closed(data, ends, terminal)
    lengths = ends - starts + closed
    first = np.cumsum(lengths) - lengths
    frames = _frames(data, (starts, ends), first, lengths, closed)
    episode = np.repeat(np.arange(len(starts)), lengths)
    row = np.arange(len(episode))
    # A closing row has no label of its own: it takes the place of the last row's, set to 0.
    index = np.minimum(starts[episode] + row - first[episode], ends[episode] - 1)
    rewards, actions = labels["rewards"][index], labels["actions"][index]
    closing = (first + lengths - 1)[closed]
    rewards[closing], actions[closing] = 0, 0
    left = (first + lengths)[episode] - row - ~terminal[episode]
    columns = (actions, rewards, first[episode].astype(np.int32), left.astype(np.int32), terminal[episode])
    return Episodes(frames, *(torch.from_numpy(column) for column in columns))  # type: ignore[call-arg]


def _closed(data: Dataset, ends: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    """Which episodes were cut and have a frame that followed."""
    if data.next_observations is None:
        return np.zeros(len(ends), bool)
    return ~terminal if data.next_known is None else ~terminal & data.next_known[:][ends - 1]


def _frames(
    data: Dataset, bounds: tuple[np.ndarray, np.ndarray], first: np.ndarray, lengths: np.ndarray, closed: np.ndarray
) -> UInt8[Tensor, "n h w c"]:
    pixels = data.frames
    frames = torch.empty((int(lengths.sum()), *pixels.shape[1:]), dtype=torch.uint8)
    for start, stop, at, shut in zip(*bounds, first, closed, strict=True):
        frames[at : at + stop - start] = torch.from_numpy(np.ascontiguousarray(pixels[start:stop]))
        if data.next_observations is not None:
            _require_consecutive(data, int(start), int(stop), frames[at:])
        if shut:
            frames[at + stop - start] = torch.from_numpy(data.next_observations[int(stop) - 1])  # type: ignore[index]
    return frames


def _require_consecutive(data: Dataset, start: int, stop: int, frames: Tensor) -> None:
    """Next observations must be the following rows, at least where one looks: a frame is kept once."""
    assert data.next_observations is not None
    for row in range(start, min(stop - 1, start + _LOOKED_AT)):
        known = data.next_known is None or data.next_known[row]
        if known and not np.array_equal(data.next_observations[row], frames[row + 1 - start].numpy()):
            raise DatasetError(f"{data.ref}: what followed row {row} is not row {row + 1}: frames must lie in order of time")
