"""Files that are whole or not there: written under a temporary name, pushed to the disk, then renamed.

Whether a place can be written, and has room, is asked before the work whose result goes there.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from dreamloom.datasets.reading import size

_HELD_BACK = 2**24  # bytes: HDF5 caches 1 MB of each array, and files have some ten of them
_TABLES = 2**17  # bytes of what HDF5 writes of its own


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it takes its place, on failure it is removed.

    The temporary name keeps the suffix, since some libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, path)
        fsync(path.parent)
    except OSError as error:
        raise _named(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder`; on success it takes its place, on failure it is removed with all in it."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        fsync(temporary)
        os.replace(temporary, folder)
        fsync(folder.parent)
    except OSError as error:
        raise _named(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _named(error: OSError, path: Path) -> OSError:
    """A full disk does not say of itself which file it had no room for."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OSError(error.errno, os.strerror(error.errno), str(path)) if full and error.errno else error


def fsync(path: Path) -> None:
    """Pushes a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_new_file(path: str | Path, *, option: str = "--out") -> None:
    """A file that is to be made: nothing has its name, and its folder can be written or made.

    Args:
        path: the file.
        option: what the user gave it with.

    Raises:
        ValueError: it exists, or cannot be made.
    """
    if os.path.lexists(path):
        raise ValueError(f"{path}: exists already; delete it, or choose another {option}")
    _require_writable(Path(path), Path(path).absolute().parent)


def require_writable(path: str | Path) -> None:
    """A file that is to be made, in place of an older one if there is one.

    Raises:
        ValueError: it is a folder, or cannot be made.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: cannot be written: is a folder")
    _require_writable(Path(path), Path(path).absolute().parent)


def require_folder(path: str | Path) -> None:
    """A folder that is to be made, or that files are to be added to.

    Raises:
        ValueError: it is no folder, or cannot be made or written.
    """
    _require_writable(Path(path), Path(path).absolute())


def _require_writable(path: Path, folder: Path) -> None:
    """The folder, or what there is of the way to it, takes files; the one that shows it leaves no trace."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ValueError(f"{path}: cannot be written: {there} is not a folder")
    try:
        TemporaryFile(dir=there).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {there}: {error.strerror}") from error


class Room:
    """Asks for room on the disk before each piece is given to HDF5.

    HDF5 holds back some of what it is given, cannot close a file that it then has no room for, and crashes when the process
    ends. So it is never given more than there is room for.

    Args:
        path: what is written.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._taken = path, 0
        self.take(0)

    def take(self, nbytes: int) -> None:
        """Before so many bytes more are written.

        Raises:
            ValueError: there is no room for them and for what may be held back.
        """
        self._taken += nbytes
        require_space(self._path, nbytes + min(self._taken, _HELD_BACK) + _TABLES)


def require_space(path: str | Path, nbytes: int) -> None:
    """The disk has room for what is to be written.

    Args:
        path: where.
        nbytes: how much.

    Raises:
        ValueError: it has not.
    """
    folder = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
    if nbytes > (free := shutil.disk_usage(folder).free):
        raise ValueError(f"{path}: needs {size(nbytes)}, the disk has {size(free)} free: {size(nbytes - free)} too little")
