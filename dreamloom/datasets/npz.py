"""`.npz` archives of transitions as SynthER saves them: observations, actions, rewards, next_observations, terminals.

Nothing is ever unpickled. Members that are not compressed are memory-mapped where they lie; compressed ones (numpy's
`savez_compressed`, which SynthER uses) are unpacked to a temporary file first, so neither needs the memory.
"""

import json
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from dreamloom.datasets.archive import header, load, members_of, open_archive
from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.columns import COLUMNS, normalized
from dreamloom.datasets.lazy import LazyArray, as_lazy
from dreamloom.datasets.reading import reading
from dreamloom.datasets.store import Dataset
from dreamloom.datasets.types import Transitions

_LOCAL_HEADER = 30  # bytes before a member's name (PKWARE's APPNOTE, 4.3.7)
_ATTRS = "attrs"  # our own member: the attributes as JSON


def open_npz(path: Path) -> Dataset:
    """Opens an archive; without `timeouts`, no row timed out.

    Raises:
        DatasetError: not a whole archive, or a column is missing, malformed or pickled.
    """
    with open_archive(path) as archive:
        raw = {name: _member(path, archive, name) if name in COLUMNS else None for name in sorted(members_of(archive))}
        attrs = _attrs(path, archive) if _ATTRS in raw else {}
    columns = normalized(str(path), raw)
    columns.setdefault("timeouts", as_lazy(np.zeros(len(columns["observations"]), bool)))
    return Dataset(path, columns, attrs=attrs)


def save_npz(path: Path, parts: Iterable[Transitions], rows: int, attrs: Mapping[str, Any]) -> None:
    """Writes transitions with the names and types that SynthER uses; `timeouts` and `next_known` are added where needed.

    Args:
        path: the file to make.
        parts: all rows, piece by piece.
        rows: how many they are.
        attrs: kept as JSON in a member of its own.
    """
    with atomic_path(path) as temporary, ExitStack() as stack, zipfile.ZipFile(temporary, "w") as archive:
        files: dict[str, IO[bytes]] = {}
        flagged = {"timeouts": False, "next_known": False}
        for part in parts:
            flagged["timeouts"] |= bool(part.timeouts.any())
            flagged["next_known"] |= part.next_known is not None
            for name, column in _saved(part).items():
                if name not in files:
                    files[name] = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
                    _write_header(files[name], (rows, *column.shape[1:]), column.dtype)
                files[name].write(np.ascontiguousarray(column).data.cast("B") if column.size else b"")
        for name, file in files.items():
            if flagged.get(name, True):
                file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    shutil.copyfileobj(file, member, 2**20)
        with archive.open(f"{_ATTRS}.npy", "w") as member:
            np.save(member, np.array(json.dumps(dict(attrs))), allow_pickle=False)


def _saved(part: Transitions) -> dict[str, np.ndarray]:
    known = np.ones(len(part), bool) if part.next_known is None else part.next_known
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    return {name: getattr(part, name) for name in names} | {"next_known": known}


def _write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> LazyArray:
    shape, fortran, dtype, skip = header(path, archive, name)
    info = archive.getinfo(f"{name}.npy")
    if not shape or 0 in shape or fortran:
        return LazyArray(shape, dtype, lambda start, stop: load(path, name)[name][start:stop])
    mapped: list[np.ndarray] = []

    def read(start: int, stop: int) -> np.ndarray:
        if not mapped:
            mapped.append(_map(path, info, skip, shape, dtype))
        return np.array(mapped[0][start:stop])

    return LazyArray(shape, dtype, read)


def _map(path: Path, info: zipfile.ZipInfo, skip: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if info.compress_type == zipfile.ZIP_STORED:
        with path.open("rb") as file:
            file.seek(info.header_offset + _LOCAL_HEADER - 4)
            lengths = struct.unpack("<HH", file.read(4))  # of the name and of the extra field
        return np.memmap(path, dtype, "r", info.header_offset + _LOCAL_HEADER + sum(lengths) + skip, shape)
    with tempfile.TemporaryFile() as file, open_archive(path) as archive:
        with reading(path, info.filename), archive.open(info) as member:
            shutil.copyfileobj(member, file, 2**20)
        file.flush()
        return np.memmap(file, dtype, "r", skip, shape)  # which keeps the nameless file alive


def _attrs(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    header(path, archive, _ATTRS)
    with reading(path, _ATTRS), archive.open(f"{_ATTRS}.npy") as member:
        attrs = json.loads(str(np.lib.format.read_array(member, allow_pickle=False)))
    return attrs if isinstance(attrs, dict) else {}
