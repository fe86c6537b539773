"""Rows of a dataset as transitions (observation, action, reward, next observation), by D4RL's rule.

Where a dataset does not say what followed a row, it is row i + 1, as in D4RL's `qlearning_dataset` (Fu et al. 2020): the last
row and every row with a timeout are left out. A terminal row needs no successor: it is kept wherever it is, also where it timed
out at once or is the file's last (D4RL's rule loses it there, with its reward). D4RL gives it the FIRST observation of the next
episode as what followed, which a masked TD target never looks at, but which is a false transition for a model of the dynamics;
here it has `next_known` False and its own observation repeated.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dreamloom.datasets.finite import Nonfinite, finite_transitions
from dreamloom.datasets.store import Dataset, DatasetError, open_dataset
from dreamloom.datasets.types import Transitions


def load_transitions(
    source: str | Path | Dataset,
    *,
    limit: int | None = None,
    nonfinite: Nonfinite | None = None,
    tell: Callable[[str], object] | None = None,
) -> Transitions:
    """All transitions of a dataset, in memory and in the file's order.

    Args:
        source: what `open_dataset` opens, or an open dataset.
        limit: read no more than the first so many.
        nonfinite: whether rows with NaN or infinite numbers are refused or dropped; None keeps them as they are.
        tell: called with a line for each reason for which rows are left out.

    Raises:
        DatasetError: not a readable dataset, or it has no actions or no rewards (unlabelled video).
        ValueError: rows whose numbers are not finite, where these are refused.
    """
    if not isinstance(source, Dataset):
        with open_dataset(source) as data:
            return load_transitions(data, limit=limit, nonfinite=nonfinite, tell=tell)
    lines = [left_out(source)]
    found = _loaded(source, limit)
    if nonfinite is not None:
        found, dropped = finite_transitions(found, source.ref, nonfinite)
        lines.append(dropped)
    for line in filter(None, lines):
        if tell is not None:
            tell(line)
    return found


def _loaded(source: Dataset, limit: int | None) -> Transitions:
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
    for start in range(0, max(1, len(dataset)), rows):
        part = slice(start, min(start + rows, len(dataset)))
        yield _explicit(dataset, part) if explicit else _consecutive(dataset, part)


def count_transitions(dataset: Dataset) -> int:
    """How many transitions a dataset holds, without reading them."""
    return len(dataset) if dataset.next_observations is not None else int(_kept(dataset, slice(0, len(dataset))).sum())


def left_out(dataset: Dataset) -> str | None:
    """How many rows of a dataset are no transitions, and why, in a line; None where all are."""
    count = len(dataset) - count_transitions(dataset)
    if not count:
        return None
    last = int(not (dataset.timeouts[-1] or dataset.terminals[-1]))
    closing = int(dataset.infos["last_frame"][:].sum()) if "last_frame" in dataset.infos else 0
    reasons = {
        "timed out and the file does not hold what followed": count - last - closing,
        "holds the frame after an episode's last step, and no step": closing,
        "is the last row, after which nothing follows": last,
    }
    told = [f"{number:,} {reason}" for reason, number in reasons.items() if number > 0]
    return f"{dataset.ref}: left out {count:,} of {len(dataset):,} rows: {', '.join(told)}"


def _kept(data: Dataset, rows: slice) -> np.ndarray:
    """Which rows are transitions, where what followed is the row after: those that have one, and terminal ones."""
    kept = ~data.timeouts[rows]
    if rows.stop == len(data):
        kept[-1:] = False
    return kept | data.terminals[rows]


def _explicit(data: Dataset, rows: slice) -> Transitions:
    assert data.next_observations is not None
    known = None if data.next_known is None else data.next_known[rows]
    known = None if known is None or known.all() else known
    return _transitions(data, rows, data.observations[rows], data.next_observations[rows], known)


def _consecutive(data: Dataset, rows: slice) -> Transitions:
    now, count = data.observations[rows.start : rows.stop + 1], rows.stop - rows.start
    following = now[np.minimum(np.arange(1, count + 1), len(now) - 1)]
    now, terminals = now[:count], data.terminals[rows]
    following[terminals] = now[terminals]
    part = _transitions(data, rows, now, following, ~terminals if terminals.any() else None)
    return part[_kept(data, rows)]


def _transitions(data: Dataset, rows: slice, now: np.ndarray, following: np.ndarray, known: np.ndarray | None) -> Transitions:
    assert data.actions is not None
    assert data.rewards is not None
    labels = (data.actions[rows], data.rewards[rows])
    return Transitions(now, *labels, following, data.terminals[rows], data.timeouts[rows], known)


def _require_labels(data: Dataset) -> None:
    for name in ("actions", "rewards"):
        if getattr(data, name) is None:
            raise DatasetError(f"{data.ref}: no array `{name}`, so its rows are no transitions (unlabelled video?)")
