"""A part of a dataset: some levels, some episodes drawn with a seed, or those of the highest return."""

from pathlib import Path
from typing import Any

import numpy as np

from dreamloom.datasets.dgrl import SPLITS
from dreamloom.datasets.lazy import LazyArray
from dreamloom.datasets.store import Dataset, DatasetError, open_dataset

_COLUMNS = ("observations", "terminals", "timeouts", "actions", "rewards", "next_observations", "next_known")


class Subset(Dataset):
    """Some episodes of another dataset, in its order; its rows are read from there."""

    def __init__(self, data: Dataset, rows: np.ndarray, chosen: dict[str, Any]) -> None:
        columns = {name: _picked(getattr(data, name), rows) for name in _COLUMNS if getattr(data, name) is not None}
        infos = {name: _picked(array, rows) for name, array in data.infos.items()}
        super().__init__(data.path, columns, infos=infos, attrs={**data.attrs, "subset": chosen}, close=data.close)
        self.ref, self.max_episode_steps = data.ref, data.max_episode_steps
        self._whole, self._chosen = data, chosen

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._whole, self._chosen)


def subset(
    data: Dataset | str | Path,
    *,
    levels: str | None = None,
    rows: int | None = None,
    top_return: float | None = None,
    seed: int = 0,
) -> Dataset:
    """Whole episodes of a dataset that fulfil all that is asked.

    Args:
        data: an open dataset (which the subset then closes), or what `open_dataset` opens.
        levels: level seeds LO:HI (HI excluded), or the name of DGRL's split: train (0:200), validation (200:250), test (250
            and beyond).
        rows: draw episodes at random until they have so many rows (the last one whole, so there may be a few more).
        top_return: of the episodes on these levels, the share with the highest return, e.g. 0.1; before `rows`.
        seed: of the draw.

    Raises:
        DatasetError: the dataset has no levels or no rewards that are asked for, or no episode is left.
        ValueError: a range, share or number that is none.
    """
    if not isinstance(data, Dataset):
        data = open_dataset(data)
    starts, ends = data.episodes
    kept = np.arange(len(starts))
    if levels is not None:
        low, high = level_range(levels)
        if "level_seed" not in data.infos:
            raise DatasetError(f"{data.ref}: no array `infos/level_seed`, so levels {levels} cannot be chosen")
        seeds = data.infos["level_seed"][:][starts]
        kept = kept[(low <= seeds) & (seeds < high)]
    if top_return is not None:
        kept = _best(data, kept, top_return)
    if rows is not None:
        kept = _drawn(kept, ends - starts, rows, seed)
    if not len(kept):
        raise DatasetError(f"{data.ref}: no episode is left (levels {levels}, top-return {top_return}, rows {rows})")
    index = np.concatenate([np.arange(start, end) for start, end in zip(starts[kept], ends[kept], strict=True)])
    chosen = {"levels": levels, "rows": rows, "top_return": top_return, "seed": seed}
    return Subset(data, index, {name: value for name, value in chosen.items() if value is not None})


def level_range(levels: str) -> tuple[int, int]:
    """First and one-past-last seed of `LO:HI`, or of one of DGRL's splits by its name.

    Raises:
        ValueError: neither.
    """
    from dreamloom.datasets.procgen import parse_levels

    if levels in SPLITS:
        return SPLITS[levels]
    if ":" not in levels:
        raise ValueError(f"--levels {levels!r}: expected LO:HI, or one of {', '.join(SPLITS)}")
    return parse_levels(levels)


def overlap(levels: str, others: str) -> bool:
    """Whether two ranges of levels have one in common.

    Raises:
        ValueError: one is no range.
    """
    (low, high), (first, last) = level_range(levels), level_range(others)
    return low < last and first < high


def _again(data: Dataset, chosen: dict[str, Any]) -> Dataset:
    return subset(data, **chosen)


def _best(data: Dataset, kept: np.ndarray, share: float) -> np.ndarray:
    if not 0 < share <= 1:
        raise ValueError(f"--top-return {share}: expected a share above 0 and at most 1")
    if data.rewards is None:
        raise DatasetError(f"{data.ref}: no array `rewards`, so no returns to choose by")
    returns = np.add.reduceat(data.rewards[:].astype(np.float64), data.episodes[0])[kept]
    count = int(np.ceil(share * len(kept)))
    return np.sort(kept[np.argsort(-returns, kind="stable")[:count]])


def _drawn(kept: np.ndarray, lengths: np.ndarray, rows: int, seed: int) -> np.ndarray:
    if rows < 1:
        raise ValueError(f"--rows {rows}: must be at least 1")
    order = np.random.default_rng(seed).permutation(kept)
    before = np.cumsum(lengths[order]) - lengths[order]
    return np.sort(order[before < rows])


def _picked(array: LazyArray, rows: np.ndarray) -> LazyArray:
    # By index, which skips what lies between: the episodes may be far apart.
    shape, centre = (len(rows), *array.shape[1:]), array.centre
    return LazyArray(shape, array.dtype, lambda start, stop: array[rows[start:stop]], centre=centre)
