"""Statistics of a column, in one pass over rows that may be more than fit in memory."""

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dreamloom.datasets.lazy import LazyArray

_ROWS = 65536  # read at a time
_SAMPLE = 50_000  # rows that are kept for quantiles and histograms


@dataclass(frozen=True)
class Summary:
    """Each dimension of a column: exact moments and range, and some rows spread evenly over the file.

    Attributes:
        mean: (d,).
        std: (d,).
        low: (d,) smallest value.
        high: (d,) largest value.
        broken: (d,) how many values are not finite; they count for nothing else.
        sample: (k, d) rows, at most about 50,000.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    broken: np.ndarray
    sample: np.ndarray

    def quantiles(self, *points: float) -> np.ndarray:
        """(points, d) quantiles of the sampled rows."""
        return np.nanquantile(np.where(np.isfinite(self.sample), self.sample, np.nan), points, axis=0)


def summarize(array: LazyArray, name: str = "") -> Summary:
    """Reads a column (N,) or (N, d) once, with N > 0."""
    step = max(1, len(array) // _SAMPLE)
    d = array.shape[1] if array.ndim > 1 else 1
    count, total, squares, broken = np.zeros(d), np.zeros(d), np.zeros(d), np.zeros(d, np.int64)
    low, high, kept = np.full(d, np.inf), np.full(d, -np.inf), []
    shift: np.ndarray | None = None  # sums of squares lose no digits around a typical value
    for start in tqdm(range(0, len(array), _ROWS), desc=name, unit=" blocks", delay=2.0):
        rows = array[start : start + _ROWS].reshape(-1, d).astype(np.float64)
        finite = np.isfinite(rows)
        if shift is None:
            shift = np.where(finite, rows, 0).mean(axis=0)
        off = np.where(finite, rows - shift, 0)
        count, total, squares = count + finite.sum(axis=0), total + off.sum(axis=0), squares + (off**2).sum(axis=0)
        broken += (~finite).sum(axis=0)
        low = np.minimum(low, np.where(finite, rows, np.inf).min(axis=0))
        high = np.maximum(high, np.where(finite, rows, -np.inf).max(axis=0))
        kept.append(rows[-start % step :: step])
    count = np.maximum(count, 1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return Summary(mean + (0 if shift is None else shift), std, low, high, broken, np.concatenate(kept))
