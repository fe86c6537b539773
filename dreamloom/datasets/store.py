"""Reading one recorded file: D4RL's flat HDF5 names with pixels as observations (the layout is docs/data.md)."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "dreamloom"
FORMAT_VERSION = 1


class DatasetError(ValueError):
    """A file that is not a dataset, or not a whole one; the message names the file and the key."""


class Dataset:
    """An open file; every array is read from disk only where it is sliced.

    Attributes:
        path: the file.
        observations: (N, h, w, 3) uint8; frame i.
        actions: (N,) integers or (N, a) floats, taken at frame i; None for unlabelled video.
        rewards: (N,) float32, earned by action i; None for unlabelled video.
        terminals: (N,) bool; action i ended the MDP.
        timeouts: (N,) bool; the episode ended after row i for another reason.
        infos: name -> array of N rows, e.g. `level_seed`.
        attrs: the file's attributes; those that hold JSON are decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        self.attrs = {name: _decode(value) for name, value in self._file.attrs.items()}
        self._check_version()
        self.observations = self._array("observations", "uint8 (N, h, w, 3)", _is_pixels)
        self.actions = self._array("actions", "integers (N,) or floats (N, a)", _is_actions, required=False)
        self.rewards = self._array("rewards", "floats (N,)", _is_floats, required=False)
        self.terminals = self._array("terminals", "bool (N,)", _is_flags)
        self.timeouts = self._array("timeouts", "bool (N,)", _is_flags)
        infos = self._file.get("infos", {})
        if isinstance(infos, h5py.Dataset):
            raise DatasetError(f"{self.path}: `infos` is an array, expected a group of arrays with N rows")
        self.infos = {name: self._array(f"infos/{name}", "an array of N rows", lambda _: True) for name in infos}

    def __len__(self) -> int:
        return len(self.observations)

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the file for itself: HDF5 handles do not survive a fork or a pickle.
        return Dataset, (self.path,)

    def close(self) -> None:
        """Closes the file; the arrays cannot be read afterwards."""
        self._file.close()

    @cached_property
    def episodes(self) -> tuple[np.ndarray, np.ndarray]:
        """First rows and one-past-last rows of all episodes, both int64 (e,), in file order.

        An episode ends after a row that is terminal or timed out, and at the end of the file.
        """
        return episode_bounds(self.terminals[:] | self.timeouts[:])

    @property
    def fps(self) -> float:
        """Frames a second of real time."""
        return float(self.attrs.get("fps", 15.0))

    @property
    def action_names(self) -> list[str] | None:
        """A name for each discrete action, where the file holds them."""
        return self.attrs.get("action_names")

    def _array(self, key: str, expected: str, fits: Any, required: bool = True) -> Any:
        array = self._file.get(key)
        if array is None and not required:
            return None
        if not isinstance(array, h5py.Dataset):
            raise DatasetError(f"{self.path}: no array `{key}`; expected {expected}. It holds {_keys(self._file)}")
        if not array.ndim or not fits(array):
            raise DatasetError(f"{self.path}: `{key}` is {array.dtype} {array.shape}, expected {expected}")
        rows = len(self._file["observations"])
        if len(array) != rows:
            raise DatasetError(f"{self.path}: `{key}` has {len(array)} rows, `observations` has {rows}")
        return array

    def _check_version(self) -> None:
        version = self.attrs.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise DatasetError(f"{self.path}: format_version {version}; this version reads {FORMAT_VERSION}")


def open_dataset(path: str | Path) -> Dataset:
    """Opens a recorded file for reading.

    Args:
        path: an HDF5 file as docs/data.md describes it.

    Raises:
        DatasetError: not a readable HDF5 file, or an array is missing, of another kind or of another length.
    """
    return Dataset(path)


def episode_bounds(ends_after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episodes from one flag a row: (N,) bool -> first rows and one-past-last rows, int64 (e,) each."""
    ends = np.flatnonzero(ends_after).astype(np.int64) + 1
    rows = len(ends_after)
    if rows and (not len(ends) or ends[-1] != rows):
        ends = np.append(ends, rows)
    return np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]]), ends


def write_attrs(file: h5py.File, attrs: dict[str, Any]) -> None:
    """Writes the attributes of a new file; lists and tables become JSON text."""
    for name, value in {"format": FORMAT, "format_version": FORMAT_VERSION, **attrs}.items():
        file.attrs[name] = json.dumps(value) if isinstance(value, list | dict) else value


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise DatasetError(f"{path}: no such file")
    if path.is_dir():
        raise DatasetError(f"{path}: is a folder; expected one HDF5 file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path}: not a whole HDF5 file ({error})") from error


def _decode(value: Any) -> Any:
    """HDF5 attributes hold text and numbers; our lists and tables are JSON text."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value.item() if isinstance(value, np.generic) else value


def _keys(file: h5py.File) -> str:
    return ", ".join(f"`{key}`" for key in file) or "nothing"


def _is_pixels(array: h5py.Dataset) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def _is_actions(array: h5py.Dataset) -> bool:
    return (array.ndim == 1 and array.dtype.kind in "iu") or (array.ndim == 2 and array.dtype.kind == "f")


def _is_floats(array: h5py.Dataset) -> bool:
    return array.ndim == 1 and array.dtype.kind == "f"


def _is_flags(array: h5py.Dataset) -> bool:
    return array.ndim == 1 and array.dtype == np.bool_
