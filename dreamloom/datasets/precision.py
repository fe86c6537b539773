"""Columns whose values float32 cannot tell apart: counters, clock times and positions far from 0."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamloom.datasets.lazy import LazyArray

_LOOK = 1024  # rows at the head, in the middle and at the end
_STEPS = 1000  # that float32 should tell apart within one standard deviation


def centre_of(where: str, key: str, array: LazyArray) -> np.ndarray | None:
    """What to take off the columns (N, o) of a file so that float32 tells their values apart; None where it does anyway.

    Args:
        where: the file, for the warning.
        key: of the columns.
        array: as the file holds them.
    """
    found = _merging(array)
    if found is None:
        return None
    columns, before, after, typical = found
    centre = np.where(columns, typical.astype(np.float32).astype(np.float64), 0.0)
    _warn(where, key, columns, before, after, "they are read less a number each, which is kept as `observation_offset`")
    return centre


def warn_of_merging(where: str, key: str, array: Any) -> None:
    """Warns where values of a column become equal as float32, which it is nonetheless kept in."""
    found = _merging(array)
    if found is not None:
        _warn(where, key, *found[:3], "take off what they have in common before you write them")


def _merging(array: Any) -> tuple[np.ndarray, int, int, np.ndarray] | None:
    """Which columns merge values, how many distinct ones there were and are left in all of these, and each one's mean."""
    if array.dtype.itemsize < 4 or array.dtype == np.float32 or array.dtype.kind not in "fiu" or not len(array):
        return None
    rows = np.unique([np.clip(at + np.arange(_LOOK), 0, len(array) - 1) for at in _places(len(array))])
    try:
        values = np.asarray(array[rows], np.float64).reshape(len(rows), -1)
    except Exception:  # whatever a broken file raises is told, with its name, to whoever reads these rows
        return None
    values = np.where(np.isfinite(values), values, 0.0)
    spacing = np.spacing(np.abs(values).max(0).astype(np.float32)).astype(np.float64)
    before, after = (np.array([len(np.unique(c)) for c in v.T]) for v in (values, values.astype(np.float32)))
    columns = (after < before) & (spacing * _STEPS > values.std(0))
    if not columns.any():
        return None
    return columns, int(before[columns].sum()), int(after[columns].sum()), values.mean(0)


def _places(rows: int) -> Sequence[int]:
    return 0, max(0, rows // 2 - _LOOK // 2), max(0, rows - _LOOK)


def _warn(where: str, key: str, columns: np.ndarray, before: int, after: int, done: str) -> None:
    which = f"`{key}`" if len(columns) == 1 else f"`{key}` {np.flatnonzero(columns).tolist()}"
    warnings.warn(
        f"{where}: {which}: values lie so far from 0 that float32 cannot tell them apart "
        f"(of the rows looked at {before:,} different ones become {after:,}): {done}",
        stacklevel=2,
    )
