"""Statistics of a column, in one pass over rows that may be more than fit in memory.

Whatever the file, a pass holds some 16 MB of its rows and a column's sample of at most 64 MB.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dreamloom.datasets.lazy import LazyArray

_BLOCK = 2**24  # bytes that are read at a time
_ROWS = 65536  # read at a time, however narrow
_SAMPLE = 50_000  # rows that are kept for quantiles and histograms
_KEPT = 2**26  # bytes of them


@dataclass(frozen=True)
class Summary:
    """Each dimension of a column: exact moments and range, and some rows spread evenly over the file.

    Attributes:
        mean: (d,).
        std: (d,).
        low: (d,) smallest value.
        high: (d,) largest value.
        nan: (d,) how many values are NaN; they count for nothing else.
        infinite: (d,) how many are infinite; they count for nothing else.
        sample: (k, d) rows, at most about 50,000.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    nan: np.ndarray
    infinite: np.ndarray
    sample: np.ndarray

    @property
    def broken(self) -> np.ndarray:
        """(d,) how many values are not finite."""
        return self.nan + self.infinite

    def quantiles(self, *points: float) -> np.ndarray:
        """(points, d) quantiles of the finite values of the sampled rows; NaN where there is none."""
        found = np.full((len(points), self.sample.shape[1]), np.nan)
        for column, values in enumerate(self.sample.T):
            finite = values[np.isfinite(values)]
            if len(finite):
                found[:, column] = np.quantile(finite, points)
        return found


def iter_blocks(array: LazyArray, name: str = "") -> Iterator[np.ndarray]:
    """All rows, so many at a time as fit in 16 MB (one, where a row is larger)."""
    width = max(1, math.prod(array.shape[1:]) * max(8, array.dtype.itemsize))
    step = max(1, min(_ROWS, _BLOCK // width))
    for start in tqdm(range(0, len(array), step), desc=name, unit=" blocks", delay=2.0):
        yield array[start : start + step]


def summarize(array: LazyArray, name: str = "") -> Summary:
    """Reads a column (N,) or (N, d) once, with N > 0."""
    d = array.shape[1] if array.ndim > 1 else 1
    step = max(1, len(array) // min(_SAMPLE, max(1, _KEPT // (8 * d))))
    count, total, squares = np.zeros(d), np.zeros(d), np.zeros(d)
    nan, infinite = np.zeros(d, np.int64), np.zeros(d, np.int64)
    low, high, kept, start = np.full(d, np.inf), np.full(d, -np.inf), [], 0
    shift: np.ndarray | None = None  # sums of squares lose no digits around a typical value
    for block in iter_blocks(array, name):
        rows = block.reshape(-1, d).astype(np.float64)
        finite = np.isfinite(rows)
        if shift is None:
            shift = np.where(finite, rows, 0).mean(axis=0)
        off = np.where(finite, rows - shift, 0)
        count, total, squares = count + finite.sum(axis=0), total + off.sum(axis=0), squares + (off**2).sum(axis=0)
        nan, infinite = nan + np.isnan(rows).sum(axis=0), infinite + np.isinf(rows).sum(axis=0)
        low = np.minimum(low, np.where(finite, rows, np.inf).min(axis=0))
        high = np.maximum(high, np.where(finite, rows, -np.inf).max(axis=0))
        kept.append(rows[-start % step :: step].copy())
        start += len(rows)
    count = np.maximum(count, 1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    none = low > high  # no value is finite
    low, high = np.where(none, np.nan, low), np.where(none, np.nan, high)
    return Summary(mean + (0 if shift is None else shift), std, low, high, nan, infinite, np.concatenate(kept))
