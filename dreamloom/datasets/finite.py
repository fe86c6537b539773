"""Numbers that are not finite: counted by column, refused, or left out where that is asked for."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from dreamloom.datasets.types import Transitions

Nonfinite = Literal["refuse", "drop"]
_NUMBERS = ("observations", "actions", "rewards", "next_observations")
_NAMED = 6  # columns of a message


def broken_columns(columns: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, int]]:
    """Which rows hold NaN or an infinite number, (N,) bool, and how many do in each column, e.g. `observations[2]`.

    Args:
        columns: name -> (N,) or (N, d) numbers of any kind; None and pictures count as finite.
    """
    rows = np.zeros(max((len(column) for column in columns.values() if column is not None), default=0), bool)
    counts: dict[str, int] = {}
    for name, column in columns.items():
        if column is None or column.dtype.kind != "f" or np.isfinite(column).all():
            continue
        broken = ~np.isfinite(column).reshape(len(rows), -1)
        rows |= broken.any(1)
        counts |= dict(_each(name, column.ndim, broken.sum(0)))
    return rows, counts


def require_finite(data: Transitions, where: str = "") -> None:
    """Every number of every row is finite.

    Args:
        data: the rows.
        where: they come from, for the message.

    Raises:
        ValueError: some are not; how many rows, and how many in which column.
    """
    rows, counts = broken_columns({name: getattr(data, name) for name in _NUMBERS})
    if counts:
        raise ValueError((f"{where}: " if where else "") + told(rows, counts))


def finite_transitions(data: Transitions, where: str, nonfinite: Nonfinite) -> tuple[Transitions, str | None]:
    """The rows whose numbers are all finite, and what is to be said of the others; None where there are none.

    Args:
        data: the rows.
        where: they come from, for messages.
        nonfinite: whether others are refused or dropped.

    Raises:
        ValueError: there are others, and they are refused, or no row is left.
    """
    rows, counts = broken_columns({name: getattr(data, name) for name in _NUMBERS})
    if not counts:
        return data, None
    _require_wanted(where, rows, counts, nonfinite)
    return data[~rows], f"{where}: left out rows, as data.nonfinite is `drop`: {told(rows, counts)}"


def finite_episodes(
    bounds: tuple[np.ndarray, np.ndarray], columns: Mapping[str, Any], where: str, nonfinite: Nonfinite
) -> tuple[tuple[np.ndarray, np.ndarray], str | None]:
    """Episodes cut where a row's numbers are not all finite, so that no run of rows holds one; and what is to be said of it.

    Args:
        bounds: first rows and one-past-last rows of the episodes.
        columns: name -> (N, ...) what of a row must be finite, e.g. `actions` and `rewards`.
        where: the rows come from, for messages.
        nonfinite: whether such rows are refused or dropped.

    Raises:
        ValueError: there are such rows, and they are refused, or no row is left.
    """
    rows, counts = broken_columns(columns)
    if not counts:
        return bounds, None
    _require_wanted(where, rows, counts, nonfinite)
    inside = np.zeros(len(rows) + 1, np.int64)
    for start, end in zip(*bounds, strict=True):
        inside[start:end] = start + 1  # a number of its own for each episode
    inside[:-1][rows] = 0
    changes = np.flatnonzero(np.diff(inside, prepend=0))
    starts = changes[inside[changes] > 0]
    ends = changes[np.searchsorted(changes, starts, "right")]
    return (starts, ends), f"{where}: left out rows, and cut episodes there, as data.nonfinite is `drop`: {told(rows, counts)}"


def told(rows: np.ndarray, counts: Mapping[str, int]) -> str:
    """How many rows are broken, and in which columns."""
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_NAMED]]
    more = [f"and {len(counts) - _NAMED} more columns"] if len(counts) > _NAMED else []
    return f"{int(rows.sum()):,} of {len(rows):,} rows hold NaN or infinite numbers ({', '.join([*shown, *more])})"


def _each(name: str, axes: int, counts: np.ndarray) -> Iterator[tuple[str, int]]:
    for place in np.flatnonzero(counts).tolist():
        yield name if axes == 1 else f"{name}[{place}]", int(counts[place])


def _require_wanted(where: str, rows: np.ndarray, counts: Mapping[str, int], nonfinite: Nonfinite) -> None:
    if nonfinite == "refuse":
        raise ValueError(f"{where}: {told(rows, counts)}; mend them, or leave these rows out with --data.nonfinite drop")
    if rows.all():
        raise ValueError(f"{where}: {told(rows, counts)}: none is left")
