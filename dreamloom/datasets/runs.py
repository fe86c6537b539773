"""Where one row follows from the row before it: runs of consecutive transitions, the shape that D4RL and Minari store.

A recording is a few long runs (its episodes); rows of a generative model are as many runs of one row each.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from dreamloom.datasets.types import Transitions


def run_ends(part: Transitions, following: Transitions | None) -> np.ndarray:
    """Which rows are the last of a run: (n,) bool.

    A run ends where the episode does, where what followed is not known, and where it is not the next row's observation.

    Args:
        part: some rows.
        following: the rows that come after them; None after the last.
    """
    ends = part.terminals | part.timeouts
    if part.next_known is not None:
        ends |= ~part.next_known
    after = part.observations[1:]
    if following is None or not len(following):
        ends[-1:] = True
    else:
        after = np.concatenate([after, following.observations[:1]])
    count = len(after)
    differs = part.next_observations[:count] != after
    ends[:count] |= differs.any(axis=tuple(range(1, differs.ndim)))
    return ends


def with_run_ends(parts: Iterable[Transitions]) -> Iterator[tuple[Transitions, np.ndarray]]:
    """Every piece that is not empty (one that is, where all are), with the rows that are the last of a run."""
    before: Transitions | None = None
    for part in parts:
        if before is None or not len(before):
            before = part
        elif len(part):
            yield before, run_ends(before, part)
            before = part
    if before is not None:
        yield before, run_ends(before, None)


def iter_runs(parts: Iterable[Transitions]) -> Iterator[Transitions]:
    """Every run as a whole; one run, not more, is held in memory."""
    begun: list[Transitions] = []
    for part, ends in with_run_ends(parts):
        start = 0
        for stop in (np.flatnonzero(ends) + 1).tolist():
            yield Transitions.concatenate([*begun, part[start:stop]]) if begun else part[start:stop]
            begun, start = [], stop
        if start < len(part):
            begun.append(part[start:])
