"""Zip archives of numpy arrays, opened with care: nothing is unpickled, and no array claims more than its member holds."""

import math
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.reading import DEFLATE, UNCHECKED, fault, reading, require_file, require_held, size


class Header(NamedTuple):
    """What a member says of its array, and where in the member the numbers begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    start: int


def open_archive(path: Path) -> zipfile.ZipFile:
    """Opens an archive.

    Raises:
        DatasetError: not a whole one.
    """
    require_file(path)
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # zipfile trusts the sizes in its directory
        raise DatasetError(f"{path}: not a whole .npz archive ({fault(error)})") from error


def header(path: Path, archive: zipfile.ZipFile, name: str) -> Header:
    """The header of an array, held against the size of its member.

    Args:
        path: of the archive, for messages.
        archive: open.
        name: of the array.

    Raises:
        DatasetError: there is none of this name, it is malformed or pickled, or it claims more than is stored.
    """
    with reading(path, name):
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found = Header(*read(member), member.tell())
    if found.dtype.hasobject:
        raise DatasetError(f"{path}: `{name}` holds pickled objects, which are never loaded; expected numbers")
    if any(length < 0 for length in found.shape):
        raise DatasetError(f"{path}: `{name}` has the shape {found.shape}, expected no negative length")
    nbytes, held = math.prod(found.shape) * found.dtype.itemsize, info.file_size - found.start
    if nbytes != held:
        raise DatasetError(
            f"{path}: `{name}` is {found.dtype} {found.shape}, {size(nbytes)}, and the archive holds {size(held)}"
        )
    if info.file_size > max(UNCHECKED, DEFLATE * info.compress_size):
        raise DatasetError(f"{path}: `{name}` claims {size(nbytes)}, and the archive stores {size(info.compress_size)} of it")
    require_held(path, name, nbytes)
    return found


def load(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Some arrays of an archive, whatever its suffix.

    Raises:
        DatasetError: no whole archive, an array is missing, or it is pickled.
    """
    with open_archive(path) as archive:
        held = members_of(archive)
        missing = [name for name in names if name not in held]
        if missing:
            raise DatasetError(f"{path}: no array `{missing[0]}`; expected {', '.join(names)}")
        return {name: _array(path, archive, name) for name in names}


def members(path: Path) -> set[str]:
    """Names of an archive's arrays; none where the file is no archive."""
    try:
        with open_archive(path) as archive:
            return members_of(archive)
    except DatasetError:
        return set()


def members_of(archive: zipfile.ZipFile) -> set[str]:
    """Names of the arrays of an open archive."""
    return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    header(path, archive, name)
    with reading(path, name), archive.open(f"{name}.npy") as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
