"""An HDF5 file opened with care: nothing of it lies in other files, and no array claims more than is stored."""

import math
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.reading import DEFLATE, UNCHECKED, fault, reading, require_file, require_held, size

_DENSEST = 2**16  # bytes that filters other than deflate may make of one: zstd's runs reach 2**15
_BUILT_IN = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
# What HDF5 says -> what it means for the user.
_FAULTS = {
    "unable to lock file": "is locked by a program that writes it; wait until that is done, or close it there",
    "already open for write": "is held open by a writer, or its writer was killed; finish or repeat the run that makes it",
    "Permission denied": "may not be read (permission denied)",
}


def open_file(path: Path) -> h5py.File:
    """Opens a file for reading.

    Raises:
        DatasetError: no whole HDF5 file, one that a writer holds, or one with links to other files.
    """
    require_file(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        known = next((told for words, told in _FAULTS.items() if words in str(error)), None)
        raise DatasetError(f"{path}: {known}" if known else f"{path}: not a whole HDF5 file ({fault(error)})") from error
    except Exception as error:
        raise DatasetError(f"{path}: not a whole HDF5 file ({type(error).__name__}: {fault(error)})") from error
    try:
        _require_no_external_links(path, file)
    except BaseException:
        file.close()
        raise
    return file


def held_item(path: Path, group: Any, key: str) -> Any:
    """What a group holds under a name: an array whose rows can be read, a group, or a type.

    Args:
        path: the file, for messages.
        group: of this file.
        key: the name.

    Raises:
        DatasetError: a broken link, an array without values, one that lies in other files, needs a filter that is not
            installed, or claims more than is stored.
    """
    label = f"{group.name}/{key}".lstrip("/")
    with reading(path, label):
        item = group[key]
        if isinstance(item, h5py.Dataset):
            _require_array(path, label, item)
        return item


def held_tree(path: Path, group: Any, key: str) -> Any:
    """Like `held_item`, with all that is under it looked at too.

    Args:
        path: the file, for messages.
        group: of this file.
        key: the name.

    Raises:
        DatasetError: as `held_item`, or groups nested too deep.
    """
    with reading(path, key):
        item = held_item(path, group, key)
        if isinstance(item, h5py.Group):
            for name in item:
                held_tree(path, item, name)
        return item


def kind(item: Any) -> str:
    """What a thing in a file is, for messages."""
    if isinstance(item, h5py.Dataset | np.ndarray):
        return f"{item.dtype} {item.shape}"
    return "a group" if isinstance(item, h5py.Group | Mapping) else "a type" if isinstance(item, h5py.Datatype) else "no array"


def _require_no_external_links(path: Path, file: h5py.File) -> None:
    found: list[str] = []

    def visit(name: bytes, info: Any) -> bool | None:
        if info.type not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            found.append(name.decode(errors="replace"))
            return True  # which ends the visit
        return None

    with reading(path):
        file.id.links.visit(visit, info=True)
    if found:
        raise DatasetError(f"{path}: `{found[0]}` is a link to another file, which is never followed; copy the array in")


def _require_array(path: Path, key: str, array: h5py.Dataset) -> None:
    if array.shape is None:
        raise DatasetError(f"{path}: `{key}` holds no values (a null dataspace)")
    if array.external or (array.is_virtual and any(source.file_name != "." for source in array.virtual_sources())):
        raise DatasetError(f"{path}: `{key}` is stored in other files, which are never read; copy the array in")
    codes = _filters(path, key, array)
    nbytes = math.prod(array.shape) * array.dtype.itemsize
    if nbytes > UNCHECKED and not array.is_virtual:
        _require_stored(path, key, array, nbytes)
        require_held(path, key, nbytes, ratio=DEFLATE if codes <= _BUILT_IN else _DENSEST)


def _filters(path: Path, key: str, array: h5py.Dataset) -> set[int]:
    properties = array.id.get_create_plist()
    found = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    for code, _, _, name in found:
        if not _available(code):
            label = name.decode(errors="replace").split(";")[0] or "without a name"
            raise DatasetError(f"{path}: `{key}` is packed by the filter {label} ({code}); `pip install hdf5plugin` brings it")
    return {code for code, *_ in found}


def _available(code: int) -> bool:
    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import_module("hdf5plugin")  # which registers its filters
    return h5py.h5z.filter_avail(code)


def _require_stored(path: Path, key: str, array: h5py.Dataset, nbytes: int) -> None:
    """Every chunk was written, or the whole array lies inside the file."""
    if array.chunks:
        claimed = math.prod(-(-length // step) for length, step in zip(array.shape, array.chunks, strict=True))
        stored = array.id.get_num_chunks() / claimed
    else:
        offset = array.id.get_offset()
        left = 0 if offset is None else path.stat().st_size - offset
        stored = min(1.0, max(0, left) / nbytes)
    if stored < 1:
        raise DatasetError(
            f"{path}: `{key}` claims {array.shape}, {size(nbytes)}, and the file stores {stored:.0%} of it; was it cut short?"
        )
