"""The boundary between files and the rest of the code.

Files come from anywhere, and each format's library has errors of its own for bytes that are not what they should be. Inside
`reading`, whatever such a library raises becomes one line that names the file, the key and the fault.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.lazy import LazyArray

UNCHECKED = 2**26  # bytes that an array may claim without proof that the file stores them
DEFLATE = 1032  # at most so many bytes come out of one that is stored (zlib's technical details)

_ABOUT_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}  # not about the file that is read
_SPECIAL = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a character device",
    stat.S_ISBLK: "a block device",
}
_LONGEST = 300  # characters of a library's message


@contextmanager
def reading(where: str | Path, key: str | None = None) -> Iterator[None]:
    """Turns what a format's library raises into one line.

    Args:
        where: the file.
        key: the array or attribute in it.

    Raises:
        DatasetError: anything was raised; one that is a `DatasetError` already is left as it is.
    """
    named = f"{where}: `{key}`" if key else f"{where}:"
    try:
        yield
    except (DatasetError, ImportError):  # a missing package says of itself what to install
        raise
    except MemoryError as error:
        raise DatasetError(f"{named} does not fit in memory ({fault(error)})") from error
    except json.JSONDecodeError as error:
        raise DatasetError(f"{named} is not JSON ({fault(error)})") from error
    except RecursionError as error:
        raise DatasetError(f"{named} cannot be read: it is nested too deep") from error
    except OSError as error:
        if error.errno in _ABOUT_THE_DISK:
            raise
        raise DatasetError(f"{named} cannot be read ({fault(error)})") from error
    except Exception as error:  # h5py, zipfile, numpy, minari and pyarrow raise whatever their own libraries do
        raise DatasetError(f"{named} cannot be read ({type(error).__name__}: {fault(error)})") from error


def fault(error: BaseException) -> str:
    """What an error says, in one line of printable characters."""
    words = " ".join(str(error).split())
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."


def guarded(array: LazyArray, where: str | Path, key: str) -> LazyArray:
    """The same array, whose rows are read inside `reading` and have the promised shape.

    Args:
        array: rows that stay in the file until they are asked for.
        where: the file.
        key: the array's name in it.
    """

    def read(start: int, stop: int) -> np.ndarray:
        with reading(where, key):
            rows = array.read(start, stop)
        if rows.shape != (stop - start, *array.shape[1:]):
            raise DatasetError(f"{where}: `{key}` gives {rows.shape} for rows {start} to {stop} of {array.shape}")
        return rows

    return LazyArray(array.shape, array.dtype, read, array.offset, array.centre)


def require_file(path: Path) -> None:
    """Refuses what would wait for ever, or is no file.

    Raises:
        DatasetError: the path is not there, or is a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or fault(error)}") from error
    if not stat.S_ISREG(mode):
        raise DatasetError(f"{path}: is {special(mode)}, expected a file")


def special(mode: int) -> str:
    """What a path leads to that is not a regular file, by its `st_mode`."""
    return next((name for test, name in _SPECIAL.items() if test(mode)), "a folder")


def require_held(path: Path, key: str, nbytes: int, *, ratio: int = DEFLATE) -> None:
    """Refuses an array that is larger than what the file's blocks on the disk can hold, e.g. in a file that is one hole.

    Args:
        path: the file.
        key: the array's name in it.
        nbytes: that the array claims.
        ratio: bytes that can come out of one that is stored.

    Raises:
        DatasetError: it is larger.
    """
    if nbytes <= UNCHECKED:
        return
    held = _held(path, -(-nbytes // ratio))
    if held * ratio < nbytes:
        raise DatasetError(f"{path}: `{key}` claims {size(nbytes)}, and the file holds {size(held)}")


def size(nbytes: int) -> str:
    """Bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            break
        nbytes /= 1000  # type: ignore[assignment]
    return f"{nbytes:,.0f} {unit}" if unit == "bytes" else f"{nbytes:,.1f} {unit}"


def _held(path: Path, enough: int) -> int:
    """Bytes of a file that are no holes; counts no further than `enough`."""
    held = place = 0
    with path.open("rb") as file:
        whole = os.fstat(file.fileno()).st_size
        while held < enough and place < whole:
            try:
                start = os.lseek(file.fileno(), place, os.SEEK_DATA)
                place = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    break
                return whole  # a file system that knows no holes
            held += place - start
    return held
