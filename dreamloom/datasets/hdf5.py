"""HDF5 files with D4RL's flat names: ours, and all the variants that D4RL published.

D4RL leaves out `timeouts` in its older files, where its rule counts the environment's step limit instead. Files that
`save_dataset` wrote hold closing rows (`Closing`), which say what followed the last row of every run of rows.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import IntFlag
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.atomic import Room, atomic_path
from dreamloom.datasets.columns import COLUMNS, DatasetError, normalized
from dreamloom.datasets.hdf5_file import held_item, kind, open_file
from dreamloom.datasets.lazy import LazyArray, as_lazy, picked
from dreamloom.datasets.reading import guarded, reading
from dreamloom.datasets.runs import with_run_ends
from dreamloom.datasets.scores import step_limit
from dreamloom.datasets.store import FORMAT_VERSION, Dataset, episode_bounds, write_attrs
from dreamloom.datasets.types import Transitions

_PIECE = 2**26  # bytes that are copied at a time
_MEANT = ("closing", "level_seed")  # infos that change what is read, so that none of them may be passed over


class Closing(IntFlag):
    """`infos/closing` (N,) uint8: what a row is for. Rows that are 0 are ordinary.

    A closing row is no step: its observation is what followed the row before it, its action is zero, and its timeout makes
    D4RL's `qlearning_dataset` drop it. So that rule reads the very transitions that were written, even where they are not
    consecutive (each is then followed by a closing row).

    Attributes:
        ROW: a closing row.
        TIMED_OUT: the row before it timed out.
        UNKNOWN: what followed the row before it is not known; its observation is repeated.
    """

    ROW = 1
    TIMED_OUT = 2
    UNKNOWN = 4


def open_hdf5(path: Path, *, max_episode_steps: int | None = None) -> Dataset:
    """Opens one HDF5 file.

    Args:
        path: the file.
        max_episode_steps: after how many rows an episode timed out, for a file without `timeouts`; by default what the file's
            attribute of that name says, or D4RL's own limit where the file bears the name of one of its datasets or
            environments. Without any of them episodes end only where they are terminal.

    Raises:
        DatasetError: not a whole HDF5 file, or a column is missing or malformed.
    """
    file = open_file(path)
    try:
        attrs = _attrs(path, file)
        columns = normalized(str(path), {key: held_item(path, file, key) if key in COLUMNS else None for key in file})
        infos, passed_over = _infos(path, file, len(columns["observations"]))
        if "timeouts" not in columns:
            limit = max_episode_steps or attrs.get("max_episode_steps") or step_limit(attrs.get("env") or path.stem)
            columns["timeouts"] = as_lazy(_timeouts(guarded(columns["terminals"], path, "terminals")[:], limit))
        if "closing" in infos:
            columns, infos = _without_closing_rows(path, columns, infos)
    except BaseException:
        file.close()
        raise
    return Dataset(path, columns, infos=infos, attrs=attrs, passed_over=passed_over, close=file.close)


def save_hdf5(path: Path, parts: Iterable[Transitions], attrs: Mapping[str, Any]) -> None:
    """Writes transitions so that D4RL's rule and `open_hdf5` both read exactly them (`Closing` says how).

    Args:
        path: the file to make.
        parts: all rows, piece by piece.
        attrs: attributes of the file.
    """
    with atomic_path(path) as temporary:
        room = Room(path)
        with h5py.File(temporary, "w") as file:
            write_attrs(file, attrs)
            for part, ends in with_run_ends(parts):
                for name, rows in _with_closing_rows(part, ends).items():
                    room.take(rows.nbytes)
                    _append(file, name, rows)


def _append(file: h5py.File, name: str, rows: np.ndarray) -> None:
    if name not in file:
        chunk = (max(1, min(4096, 2**18 // max(1, rows[:1].nbytes))), *rows.shape[1:])
        file.create_dataset(name, (0, *rows.shape[1:]), rows.dtype, maxshape=(None, *rows.shape[1:]), chunks=chunk)
    file[name].resize(len(file[name]) + len(rows), axis=0)
    file[name][-len(rows) :] = rows


def copy_rows(path: Path, data: Dataset, attrs: Mapping[str, Any]) -> None:
    """Copies a recording's rows and its `infos` as they are: each frame once, and what followed a row is the next one.

    Args:
        path: the file to make.
        data: a dataset without `next_observations`.
        attrs: attributes of the file.
    """
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    columns = {name: getattr(data, name) for name in names if getattr(data, name) is not None}
    columns |= {f"infos/{name}": array for name, array in data.infos.items()}
    with atomic_path(path) as temporary:
        room = Room(path)
        with h5py.File(temporary, "w") as file:
            write_attrs(file, attrs)
            for name, array in columns.items():
                size = max(1, _PIECE // max(1, array.nbytes // max(1, len(array))))
                held = file.create_dataset(name, array.shape, array.dtype)
                for start in range(0, len(array), size):
                    rows = array[start : start + size]
                    room.take(rows.nbytes)
                    held[start : start + size] = rows


def _with_closing_rows(part: Transitions, ends: np.ndarray) -> dict[str, np.ndarray]:
    index = np.repeat(np.arange(len(part)), 1 + ends)
    closing = np.zeros(len(index), bool)
    closing[1:] = index[1:] == index[:-1]
    code = np.where(closing, Closing.ROW + Closing.TIMED_OUT * part.timeouts[index], 0).astype(np.uint8)
    if part.next_known is not None:
        code += np.uint8(Closing.UNKNOWN) * (closing & ~part.next_known[index])
    columns = {"observations": part.observations[index], "actions": part.actions[index], "rewards": part.rewards[index]}
    columns["observations"][closing] = part.next_observations[ends]
    columns["actions"][closing] = 0
    columns["rewards"][closing] = 0
    return columns | {"terminals": part.terminals[index] & ~closing, "timeouts": closing, "infos/closing": code}


def _infos(path: Path, file: h5py.File, rows: int) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The arrays under `infos/` that have a value for each row; of the others, why they are passed over.

    D4RL's files hold whatever the policy or the simulator told, scalars and arrays of other lengths among it.
    """
    group = held_item(path, file, "infos") if "infos" in file else {}
    if isinstance(group, h5py.Dataset):
        raise DatasetError(f"{path}: `infos` is {kind(group)}, expected a group of arrays with N rows")
    found, passed_over = {}, {}
    for name in group if isinstance(group, h5py.Group) else ():
        try:
            array = held_item(path, group, name)
            if not isinstance(array, h5py.Dataset) or array.shape[:1] != (rows,):
                raise DatasetError(f"{path}: `infos/{name}` is {kind(array)}, expected an array of {rows} rows")
            found[name] = as_lazy(array)
        except DatasetError as error:
            if name in _MEANT:
                raise
            passed_over[f"infos/{name}"] = str(error).partition(f"`infos/{name}` ")[2] or str(error)
    return found, passed_over


def _timeouts(terminals: np.ndarray, limit: int | None) -> np.ndarray:
    """Where D4RL's rule sees a timeout in a file that has no such column: the last row that the step limit allows.

    (Its published loop starts to count at 1 after a terminal row, which would cut the next episode one row too early; this
    counts from 0 in every episode.)
    """
    timeouts = np.zeros(len(terminals), bool)
    if limit:
        starts, ends = episode_bounds(terminals)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            timeouts[start + limit - 1 : end : limit] = True
    return timeouts


def _without_closing_rows(
    path: Path, columns: Mapping[str, LazyArray], infos: Mapping[str, LazyArray]
) -> tuple[dict[str, LazyArray], dict[str, LazyArray]]:
    """Transitions of a file with closing rows: what follows a row is the row after it, closing or not."""
    if infos["closing"].ndim != 1 or infos["closing"].dtype.kind not in "iu":
        raise DatasetError(f"{path}: `infos/closing` is {infos['closing'].dtype} {infos['closing'].shape}, expected uint8 (N,)")
    closing = guarded(infos["closing"], path, "infos/closing")[:]
    rows = np.flatnonzero(closing == 0)
    if len(rows) and rows[-1] + 1 == len(closing):
        raise DatasetError(f"{path}: `infos/closing` is 0 in the last row, expected a closing row after the last transition")
    after = closing[rows + 1]
    found = {key: picked(array, rows) for key, array in columns.items()}
    found["next_observations"] = picked(columns["observations"], rows + 1)
    found["timeouts"] = as_lazy((after & Closing.TIMED_OUT) > 0)
    if (after & Closing.UNKNOWN).any():
        found["next_known"] = as_lazy((after & Closing.UNKNOWN) == 0)
    return found, {name: picked(array, rows) for name, array in infos.items() if name != "closing"}


def _attrs(path: Path, file: h5py.File) -> dict[str, Any]:
    attrs = {name: _attribute(path, file, name) for name in file.attrs}
    version = attrs.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise DatasetError(f"{path}: format_version {version}; this version reads {FORMAT_VERSION}")
    limit = attrs.get("max_episode_steps", 1)
    if not isinstance(limit, int) or limit < 1:
        raise DatasetError(f"{path}: the attribute `max_episode_steps` is {limit!r}, expected a whole number above 0")
    words = dict(_metadata(path, file))
    return attrs | ({"metadata": words} if words else {})


def _attribute(path: Path, file: h5py.File, name: str) -> Any:
    with reading(path, f"attribute {name}"):
        return _decode(file.attrs[name])


def _metadata(path: Path, file: h5py.File) -> Iterator[tuple[str, Any]]:
    """D4RL's: the policy's weights, and a few words about it, which are all that is kept; what cannot be read is not needed."""
    with suppress(DatasetError):
        group = held_item(path, file, "metadata") if "metadata" in file else None
        for name in group if isinstance(group, h5py.Group) else ():
            with suppress(DatasetError), reading(path, f"metadata/{name}"):
                item = held_item(path, group, name)
                if isinstance(item, h5py.Dataset) and item.shape == ():
                    yield name, _decode(item[()])


def _decode(value: Any) -> Any:
    """HDF5 attributes hold text, numbers and arrays; our lists and tables are JSON text."""
    if isinstance(value, np.generic | np.ndarray):
        return _decode(value.tolist())
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
