"""Rows of a dataset as transitions (observation, action, reward, next observation), by D4RL's rule.

Where a dataset does not say what followed a row, it is row i + 1, as in D4RL's `qlearning_dataset` (Fu et al. 2020): the last
row and every row with a timeout are dropped. D4RL also keeps a terminal row with the FIRST observation of the next episode
as what followed, which a masked TD target never looks at, but which is a false transition for a model of the dynamics. Here
such a row is kept too, with `next_known` False and its own observation repeated.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamloom.datasets.store import Dataset, DatasetError, open_dataset
from dreamloom.datasets.types import Transitions


def load_transitions(source: str | Path | Dataset, *, limit: int | None = None) -> Transitions:
    """All transitions of a dataset, in memory and in the file's order.

    Args:
        source: what `open_dataset` opens, or an open dataset.
        limit: read no more than the first so many.

    Raises:
        DatasetError: not a readable dataset, or it has no actions or no rewards (unlabelled video).
    """
    if not isinstance(source, Dataset):
        with open_dataset(source) as data:
            return load_transitions(data, limit=limit)
    count = count_transitions(source)
    count = count if limit is None else min(count, limit)
    whole: dict[str, np.ndarray] = {}
    known = np.ones(count, bool)
    filled = 0
    for part in iter_transitions(source):
        part = part[: count - filled]
        for name, rows in vars(part).items():
            if name != "next_known":
                whole.setdefault(name, np.empty((count, *rows.shape[1:]), rows.dtype))[filled : filled + len(part)] = rows
        if part.next_known is not None:
            known[filled : filled + len(part)] = part.next_known
        filled += len(part)
        if filled == count:
            break
    return Transitions(**whole, next_known=None if known.all() else known)


def iter_transitions(dataset: Dataset, rows: int = 65536) -> Iterator[Transitions]:
    """All transitions of a dataset, piece by piece; at least one piece, which is empty where the dataset is.

    Args:
        dataset: an open dataset.
        rows: of the file that are read at a time.

    Raises:
        DatasetError: it has no actions or no rewards.
    """
    _require_labels(dataset)
    explicit = dataset.next_observations is not None
    end = len(dataset) if explicit else max(0, len(dataset) - 1)
    for start in range(0, max(1, end), rows):
        part = slice(start, min(start + rows, end))
        yield _explicit(dataset, part) if explicit else _consecutive(dataset, part)


def count_transitions(dataset: Dataset) -> int:
    """How many transitions a dataset holds, without reading them."""
    if dataset.next_observations is not None:
        return len(dataset)
    return int((~dataset.timeouts[: max(0, len(dataset) - 1)]).sum())


def _explicit(data: Dataset, rows: slice) -> Transitions:
    assert data.next_observations is not None
    known = None if data.next_known is None else data.next_known[rows]
    known = None if known is None or known.all() else known
    return _transitions(data, rows, data.observations[rows], data.next_observations[rows], known)


def _consecutive(data: Dataset, rows: slice) -> Transitions:
    now = data.observations[rows.start : rows.stop + 1]
    now, following = now[: rows.stop - rows.start], now[1:].copy()
    terminals = data.terminals[rows]
    following[terminals] = now[terminals]
    part = _transitions(data, rows, now, following, ~terminals if terminals.any() else None)
    return part[~part.timeouts]


def _transitions(data: Dataset, rows: slice, now: np.ndarray, following: np.ndarray, known: np.ndarray | None) -> Transitions:
    assert data.actions is not None
    assert data.rewards is not None
    labels = (data.actions[rows], data.rewards[rows])
    return Transitions(now, *labels, following, data.terminals[rows], data.timeouts[rows], known)


def _require_labels(data: Dataset) -> None:
    for name in ("actions", "rewards"):
        if getattr(data, name) is None:
            raise DatasetError(f"{data.ref}: no array `{name}`, so its rows are no transitions (unlabelled video?)")
