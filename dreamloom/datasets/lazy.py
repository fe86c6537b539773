"""Arrays of N rows that stay where they are (file, archive, folder) until some of their rows are asked for."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

_GAP = 64  # rows; index arrays are read in runs, and reading over a smaller gap is cheaper than another read


class LazyArray:
    """An array that is read in runs of rows, and sliced like a numpy array along its first axis.

    Args:
        shape: (N, ...) of the whole array.
        dtype: of the rows as `read` returns them.
        read: (start, stop) -> rows start..stop, with 0 <= start <= stop <= N.
        offset: where the rows lie in their file as plain bytes in one piece, so that it can be memory-mapped; else None.
        centre: (o,) what was taken off the file's values (`datasets.precision`); None for nothing.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any,
        read: Callable[[int, int], np.ndarray],
        offset: int | None = None,
        centre: np.ndarray | None = None,
    ) -> None:
        self.shape, self.dtype, self.read, self.offset = tuple(shape), np.dtype(dtype), read, offset
        self.centre = centre

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> Any:
        rows, *inner = key if isinstance(key, tuple) else (key,)
        found = self._rows(slice(None) if rows is Ellipsis else rows)
        if not inner:
            return found
        return found[tuple(inner)] if np.isscalar(rows) else found[(slice(None), *inner)]

    def _rows(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return self._slice(range(*rows.indices(len(self))))
        index = np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} for {len(self)} rows")
            index = np.flatnonzero(index)
        if index.size and not (-len(self) <= index.min() and index.max() < len(self)):
            raise IndexError(f"rows {index.min()} to {index.max()} of an array of {len(self)} rows")
        index = np.where(index < 0, index + len(self), index).astype(np.int64)
        return self._slice(range(int(index), int(index) + 1))[0] if not index.ndim else self._take(index)

    def _slice(self, rows: range) -> np.ndarray:
        if not rows:
            return self.read(0, 0)
        first, last = min(rows[0], rows[-1]), max(rows[0], rows[-1])
        return self.read(first, last + 1)[:: rows.step]

    def _take(self, index: np.ndarray) -> np.ndarray:
        """Rows in any order, read in as few runs as makes sense."""
        wanted, places = np.unique(index, return_inverse=True)
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        cuts = [0, *(np.flatnonzero(np.diff(wanted) > _GAP) + 1).tolist(), len(wanted)]
        for first, last in pairwise(cuts):
            if last > first:
                start = int(wanted[first])
                found[first:last] = self.read(start, int(wanted[last - 1]) + 1)[wanted[first:last] - start]
        return found[places.reshape(index.shape)]


def as_lazy(array: Any) -> LazyArray:
    """Any array whose rows can be sliced (numpy, memory map, HDF5) as a lazy one."""
    if isinstance(array, LazyArray):
        return array
    return LazyArray(array.shape, array.dtype, lambda start, stop: np.asarray(array[start:stop]), _offset(array))


def _offset(array: Any) -> int | None:
    # HDF5 knows where an array lies that is neither chunked nor compressed.
    return array.id.get_offset() if hasattr(array, "id") and hasattr(array.id, "get_offset") else None


def joined(parts: Sequence[LazyArray]) -> LazyArray:
    """Arrays of equal rows, one after another."""
    stops = np.cumsum([len(part) for part in parts])
    starts = stops - [len(part) for part in parts]

    def read(start: int, stop: int) -> np.ndarray:
        first = int(np.searchsorted(stops, start, side="right"))
        pieces = []
        for part, begin, end in zip(parts[first:], starts[first:].tolist(), stops[first:].tolist(), strict=True):
            if begin >= stop:
                break
            pieces.append(part.read(max(start, begin) - begin, min(stop, end) - begin))
        return np.concatenate(pieces) if pieces else parts[0].read(0, 0)

    return LazyArray((int(stops[-1]), *parts[0].shape[1:]), parts[0].dtype, read)


def picked(array: LazyArray, rows: np.ndarray) -> LazyArray:
    """Some rows of an array, given by increasing numbers."""

    def read(start: int, stop: int) -> np.ndarray:
        wanted = rows[start:stop]
        if not len(wanted):
            return array.read(0, 0)
        return array.read(int(wanted[0]), int(wanted[-1]) + 1)[wanted - wanted[0]]

    return LazyArray((len(rows), *array.shape[1:]), array.dtype, read, centre=array.centre)
