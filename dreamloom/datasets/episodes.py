"""Episodes of pictures as DGRL and V-D4RL keep them, T steps and the T + 1 frames around them, and our rows.

Our rows (docs/data.md) hold a frame and the step taken at it. So an episode that ended the task is T rows: the frame after the
last step is never bootstrapped from, and in DGRL's files it belongs to the next episode. One that was only cut is T + 1
rows, of which the last is a closing row: a frame without a step (zero action, zero reward), marked by a timeout, which D4RL's
rule drops. Both ways the transitions are exactly the T steps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.lazy import LazyArray, as_lazy, joined
from dreamloom.datasets.runs import iter_runs
from dreamloom.datasets.store import Dataset
from dreamloom.datasets.transitions import iter_transitions
from dreamloom.datasets.types import Transitions

_LOADED = 8  # episodes whose frames stay in memory


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        frames: (T + 1, h, w, 3) uint8; the last repeats the one before where what followed a terminal step is not known.
        actions: (T,) int64 or (T, a) float32; action i is taken at frame i.
        rewards: (T,) float32, earned by action i.
        terminal: the last step ended the task.
        level: its level seed; -1 where that is not known.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    level: int = -1


def iter_episodes(source: Dataset | Transitions) -> Iterator[Episode]:
    """All episodes, one in memory at a time: the transitions of D4RL's rule, and a terminal last row, which that rule drops.

    Raises:
        DatasetError: no pictures, no actions or no rewards.
    """
    levels = None
    if isinstance(source, Dataset):
        _ = source.frames  # which refuses what is no picture
        for name in ("actions", "rewards"):
            if getattr(source, name) is None:
                raise DatasetError(f"{source.ref}: no array `{name}`, so its rows are no transitions (unlabelled video?)")
        levels = source.infos.get("level_seed")
        if source.next_observations is None:
            yield from _recorded(source, levels)
            return
    row = 0
    for run in iter_runs(iter_transitions(source, 1024) if isinstance(source, Dataset) else [source]):
        if len(run):
            frames = np.concatenate([run.observations, run.next_observations[-1:]])
            yield Episode(frames, run.actions, run.rewards, bool(run.terminals[-1]), _level(levels, row))
            row += len(run)


def _recorded(data: Dataset, levels: LazyArray | None) -> Iterator[Episode]:
    assert data.actions is not None
    assert data.rewards is not None
    for start, end in zip(*(bounds.tolist() for bounds in data.episodes), strict=True):
        terminal = bool(data.terminals[end - 1])
        frames = data.frames[start:end]
        if terminal:
            frames = np.concatenate([frames, frames[-1:]])
        stop = start + len(frames) - 1  # of a cut episode the last row has no known outcome
        if stop > start:
            yield Episode(frames, data.actions[start:stop], data.rewards[start:stop], terminal, _level(levels, start))


def _level(levels: LazyArray | None, row: int) -> int:
    return -1 if levels is None else int(levels[row])


@dataclass(frozen=True)
class Steps:
    """An episode of a file whose frames are not read yet; names as in `Episode`."""

    actions: np.ndarray
    rewards: np.ndarray
    terminal: bool
    level: int | None = None

    @property
    def rows(self) -> int:
        """How many rows of ours it makes."""
        return len(self.actions) + (not self.terminal)

    def columns(self) -> dict[str, np.ndarray]:
        """Its rows without the frames; `infos/last_frame` is 1 in a row that is no step."""
        closing = np.zeros(self.rows, bool)
        closing[len(self.actions) :] = True
        terminals = np.zeros(self.rows, bool)
        terminals[-1:] = self.terminal
        blank = [(0, len(closing) - len(self.actions))]
        found = {
            "actions": np.pad(self.actions, blank + [(0, 0)] * (self.actions.ndim - 1)),
            "rewards": np.pad(self.rewards, blank),
            "terminals": terminals,
            "timeouts": closing,
            "infos/last_frame": closing.astype(np.uint8),
            "infos/episode_return": np.full(self.rows, self.rewards.sum(dtype=np.float64), np.float32),
        }
        return found if self.level is None else found | {"infos/level_seed": np.full(self.rows, self.level, np.int32)}


def open_episodes(
    path: Path, files: Sequence[Path], steps: Sequence[Steps], frames: Callable[[Path], np.ndarray], attrs: dict[str, Any]
) -> Dataset:
    """A dataset over a file for each episode; frames are read where they are asked for.

    Args:
        path: what was opened.
        files: of the episodes, in order.
        steps: of the episodes.
        frames: reads (T + 1, h, w, 3) uint8 from a file.
        attrs: of the dataset.

    Raises:
        DatasetError: also when rows are read: a file's frames differ in number or shape from what is expected.
    """
    shape = frames(files[0]).shape[1:]

    @lru_cache(maxsize=_LOADED)
    def loaded(number: int) -> np.ndarray:
        found, expected = frames(files[number]), (len(steps[number].actions) + 1, *shape)
        if found.shape != expected:
            raise DatasetError(f"{files[number]}: frames are {found.shape}, expected {expected}")
        return found

    def part(number: int) -> LazyArray:
        return LazyArray((steps[number].rows, *shape), np.uint8, lambda start, stop: loaded(number)[start:stop])

    columns = joined_columns(steps, files)
    columns["observations"] = joined([part(number) for number in range(len(files))])
    infos = {name.removeprefix("infos/"): columns.pop(name) for name in list(columns) if name.startswith("infos/")}
    return Dataset(path, columns, infos=infos, attrs=attrs, close=loaded.cache_clear)


def joined_columns(steps: Sequence[Steps], files: Sequence[Path]) -> dict[str, LazyArray]:
    """The rows of all episodes without the frames.

    Args:
        steps: of the episodes.
        files: that each of them is in.

    Raises:
        DatasetError: the actions of two episodes differ in size.
    """
    first = steps[0].actions
    for file, episode in zip(files, steps, strict=True):
        if episode.actions.shape[1:] != first.shape[1:]:
            raise DatasetError(
                f"{file}: actions are {episode.actions.shape[1:]}, those of {files[0].name} are {first.shape[1:]}"
            )
    tables = [episode.columns() for episode in steps]
    return {name: as_lazy(np.concatenate([table[name] for table in tables])) for name in tables[0]}
