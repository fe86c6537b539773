"""Columns of few distinct values: finding them, numbering their combinations, coding these for a network."""

import numpy as np
from jaxtyping import Float, Float64, Int64

MAX_COMBINATIONS = 1024  # a column that would give more is left to diffusion


def find_discrete(flat: Float[np.ndarray, "n w"], must: list[int], max_levels: int) -> list[int]:
    """Numbers of the columns to draw: those in `must`, constants, and those of few values while combinations stay few."""
    chosen = sorted(must)
    joint = combine(flat[:, chosen])[2]
    for column in range(flat.shape[1]):
        if column in must or not _has_few_values(flat[:, column], max_levels):
            continue
        # Two numbers that are numbered together are a combination.
        _, counts, both = combine(np.stack([joint, flat[:, column]], 1))
        if len(counts) <= MAX_COMBINATIONS:
            chosen, joint = [*chosen, column], both
    return sorted(chosen)


def _has_few_values(column: np.ndarray, max_levels: int) -> bool:
    """Constant, or at most `max_levels` distinct values with ten rows each on average."""
    allowed = max(1, min(max_levels, len(column) // 10))
    # A look at some rows spares sorting most columns whole.
    return len(np.unique(column[:1000])) <= allowed and len(np.unique(column)) <= allowed


def combine(columns: np.ndarray) -> tuple[Float64[np.ndarray, "k c"], Int64[np.ndarray, "k"], Int64[np.ndarray, "n"]]:
    """Distinct rows of (n, c) in lexical order, how often each occurs, and the number of each row's."""
    number = np.zeros(len(columns), np.int64)
    for column in columns.T:
        levels, places = np.unique(column, return_inverse=True)
        number = np.unique(number * len(levels) + places, return_inverse=True)[1]
    _, first, counts = np.unique(number, return_index=True, return_counts=True)
    return columns[first].astype(np.float64), counts.astype(np.int64), number.astype(np.int64)


def one_hots(values: Float64[np.ndarray, "k c"]) -> Float[np.ndarray, "k f"]:
    """Codes of combinations: one-hot for each column that varies, side by side."""
    codes = [np.zeros((len(values), 0), np.float32)]
    for column in values.T:
        levels, places = np.unique(column, return_inverse=True)
        if len(levels) > 1:
            codes.append(np.eye(len(levels), dtype=np.float32)[places])
    return np.concatenate(codes, 1)
