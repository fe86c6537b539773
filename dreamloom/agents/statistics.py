"""What agents need to know of rows before they train on them."""

import numpy as np

from dreamloom.datasets.finite import require_finite
from dreamloom.datasets.types import Transitions


def require_rows(parts: list[Transitions]) -> None:
    """Rows of vectors, with the same kind of actions everywhere.

    Raises:
        ValueError: there are none, or they are of another kind, or hold numbers that are not finite.
    """
    if not parts or not sum(len(part) for part in parts):
        raise ValueError("agents need rows to prepare from, there are none")
    for part in parts:
        require_finite(part)
        if part.observations.ndim != 2 or part.observations.dtype == np.uint8:
            seen = f"{part.observations.shape} {part.observations.dtype}"
            raise ValueError(f"agents need observations (N, o) of numbers, got {seen}")
        if part.actions.ndim != parts[0].actions.ndim or (part.actions.ndim == 1 and part.actions.dtype.kind not in "iu"):
            seen = f"{part.actions.shape} {part.actions.dtype}"
            raise ValueError(f"agents need actions (N, a), or integers (N,), the same in all datasets; got {seen}")


def moments(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column over all rows; 1e-3 is added to the deviation, as TD3+BC does."""
    rows = sum(len(column) for column in columns)
    mean = sum(column.sum(0, dtype=np.float64) for column in columns) / rows
    square = sum(np.square(column - mean).sum(0) for column in columns) / rows
    return mean.astype(np.float32), (np.sqrt(square) + 1e-3).astype(np.float32)
