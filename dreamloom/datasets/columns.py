"""The columns of a dataset as any format holds them, checked and brought to one form while they are read.

D4RL enforces no types, so its files hold float64 observations, (N, 1) rewards, and flags that are 0.0 and 1.0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreamloom.datasets.lazy import LazyArray, as_lazy
from dreamloom.datasets.precision import centre_of, warn_of_merging


class DatasetError(ValueError):
    """A file that is not a dataset, or not a whole one; the message names the file and the key."""


PIXELS = "uint8 (N, h, w, 3)"
_EXPECTED = {
    "observations": f"numbers (N, o) or pixels {PIXELS}",
    "actions": "integers (N,) or floats (N, a)",
    "rewards": "numbers (N,) or (N, 1)",
    "terminals": "flags (N,) or (N, 1): bool (N,), or numbers that are 0 or 1",
}
_EXPECTED |= {"next_observations": _EXPECTED["observations"]}
_EXPECTED |= dict.fromkeys(["timeouts", "next_known"], _EXPECTED["terminals"])
COLUMNS = tuple(_EXPECTED)
REQUIRED = ("observations", "terminals")


def normalized(where: str, raw: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, LazyArray]:
    """Checks the columns of a file, and gives them in one form, still on disk.

    Args:
        where: the file, for messages.
        raw: key -> what the file holds there (arrays, or anything else for a key that is not an array).
        names: key -> what the file calls it, where that differs.

    Returns:
        `observations` and `next_observations` float32 (N, o) or uint8 (N, h, w, c); `actions` int64 (N,) or float32 (N, a);
        `rewards` float32 (N,); `terminals`, `timeouts` and `next_known` bool (N,); each where the file has it.

    Raises:
        DatasetError: a column is missing, of another kind or of another length; when rows are read, also a flag that is
            neither 0 nor 1.
    """
    names = names or {}
    found = {}
    for key, expected in _EXPECTED.items():
        label = names.get(key, key)
        array: Any = raw.get(key)
        if key not in raw and key not in REQUIRED:
            continue
        if not hasattr(array, "dtype") or not hasattr(array, "shape"):
            held = ", ".join(f"`{name}`" for name in raw) or "nothing"
            told = f"`{label}` is no array" if key in raw else f"no array `{label}`"
            raise DatasetError(f"{where}: {told}; expected {expected}. It holds {held}")
        column = _form(key)(where, label, as_lazy(array))
        if column is None:
            raise DatasetError(f"{where}: `{label}` is {array.dtype} {array.shape}, expected {expected}")
        found[key] = column
    for key, column in found.items():
        require_rows(where, names.get(key, key), column, len(found["observations"]))
    _require_equal_shapes(where, found)
    for key in ("actions", "rewards"):
        if key in found and found[key].dtype == np.float32:
            warn_of_merging(where, names.get(key, key), as_lazy(raw[key]))
    return found | _centred(where, raw, found)


def _centred(where: str, raw: Mapping[str, Any], found: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Observations less what float32 would drown their differences in; empty where there is nothing of the kind."""
    names = [name for name in ("observations", "next_observations") if name in found]
    if found["observations"].dtype != np.float32:
        return {}
    centre = centre_of(where, names[0], as_lazy(raw[names[0]]))
    return {} if centre is None else {name: _less(as_lazy(raw[name]), centre) for name in names}


def _less(array: LazyArray, centre: np.ndarray) -> LazyArray:
    def read(start: int, stop: int) -> np.ndarray:
        return (array.read(start, stop).astype(np.float64) - centre).astype(np.float32)

    return LazyArray(array.shape, np.float32, read, centre=centre)


def require_rows(where: str, key: str, array: Any, rows: int) -> None:
    """Every array of a dataset has as many rows as its observations.

    Raises:
        DatasetError: it has not.
    """
    if len(array) != rows:
        raise DatasetError(f"{where}: `{key}` has {len(array)} rows, `observations` has {rows}")


def is_pixels(array: Any) -> bool:
    """Frames with channels last."""
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3, 4)


def _require_equal_shapes(where: str, found: Mapping[str, LazyArray]) -> None:
    now, following = found["observations"], found.get("next_observations")
    if following is not None and (following.shape, following.dtype) != (now.shape, now.dtype):
        raise DatasetError(
            f"{where}: `next_observations` is {following.dtype} {following.shape}, `observations` is {now.dtype} {now.shape}"
        )


def _form(key: str) -> Callable[[str, str, LazyArray], LazyArray | None]:
    """What makes the normal form of a column, or None where the column cannot have it."""
    if key in ("observations", "next_observations"):
        return _observations
    return {"actions": _actions, "rewards": _rewards}.get(key, _flags)


def _observations(where: str, key: str, array: LazyArray) -> LazyArray | None:
    if 0 in array.shape[1:]:
        return None
    if is_pixels(array):
        return array
    return _cast(array, np.float32, array.shape) if array.ndim == 2 and array.dtype.kind in "fiub" else None


def _actions(where: str, key: str, array: LazyArray) -> LazyArray | None:
    if array.dtype.kind in "iu" and (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        return _cast(array, np.int64, array.shape[:1])
    wide = array.ndim == 2 and array.shape[1] > 0
    return _cast(array, np.float32, array.shape) if wide and array.dtype.kind == "f" else None


def _rewards(where: str, key: str, array: LazyArray) -> LazyArray | None:
    return _cast(array, np.float32, array.shape[:1]) if _is_flat(array) and array.dtype.kind in "fiub" else None


def _flags(where: str, key: str, array: LazyArray) -> LazyArray | None:
    if not _is_flat(array) or array.dtype.kind not in "fiub":
        return None

    def read(start: int, stop: int) -> np.ndarray:
        values = array.read(start, stop).reshape(stop - start)
        wrong = ~((values == 0) | (values == 1))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DatasetError(f"{where}: `{key}` is {values[row]} in row {start + row}, expected 0 or 1")
        return values.astype(np.bool_)

    return array if array.dtype == np.bool_ and array.ndim == 1 else LazyArray(array.shape[:1], np.bool_, read)


def _is_flat(array: LazyArray) -> bool:
    return array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)


def _cast(array: LazyArray, dtype: Any, shape: tuple[int, ...]) -> LazyArray:
    if array.dtype == dtype and array.shape == shape:
        return array

    def read(start: int, stop: int) -> np.ndarray:
        with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, which is counted as such
            return array.read(start, stop).astype(dtype, copy=False).reshape(stop - start, *shape[1:])

    return LazyArray(shape, dtype, read)
