"""Recording a known number of rows so that nothing is lost: preallocated columns, numbered segments, a journal.

A recording is cut into segments whose rows are known beforehand, and each segment is a pure function of the settings and
its number. Rows go straight to their place in `OUT.part`; once a segment is safely on the disk, `OUT.part.json` says so.
A killed recording therefore resumes at the first unfinished segment and ends in the very bytes that an uninterrupted one
would have written. The finished file is renamed to `OUT`.
"""

import fcntl
import json
import math
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dreamloom.datasets.atomic import atomic_path, fsync, require_new_file, require_space
from dreamloom.datasets.store import write_attrs

_PAGE = 4096  # direct writes need addresses, offsets and sizes in whole pages; a 64x64 frame is three


class Column(NamedTuple):
    """One array of the file: its element type, and the shape of one row."""

    dtype: Any
    shape: tuple[int, ...] = ()


def page_aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An uninitialised uint8 array that can be written without a copy."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)


def split_rows(rows: int, parts: int) -> np.ndarray:
    """Cuts rows into parts whose sizes differ by at most one; returns the (parts + 1) bounds."""
    return np.arange(parts + 1, dtype=np.int64) * rows // parts


class Recorder:
    """Writes numbered segments of rows into a preallocated file, in the background.

    Args:
        out: the file to make; it must not exist yet.
        columns: name -> column; all have the same number of rows.
        bounds: (segments + 1) first rows of the segments.
        settings: all that the rows depend on, as JSON; kept as the file's `source`, and a resumed recording must have the same.
        attrs: further attributes of the file.

    Raises:
        ValueError: `out` exists, or another process records it, or its unfinished recording had other settings.
    """

    def __init__(
        self,
        out: str | Path,
        columns: dict[str, Column],
        bounds: np.ndarray,
        *,
        settings: dict[str, Any],
        attrs: dict[str, Any],
    ) -> None:
        self.out, self.bounds = Path(out), bounds
        self.part = self.out.with_name(self.out.name + ".part")
        self.journal = self.out.with_name(self.out.name + ".part.json")
        # As it reads back from the journal, so that a resumed recording compares like with like.
        self.settings = json.loads(json.dumps(settings))
        require_new_file(self.out)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._file = lock(self.part)
        require_new_file(self.out)
        self.finished = self._resume()
        if self.finished is None:
            self._require_space(columns)
            _preallocate(self.part, columns, int(bounds[-1]), {**attrs, "source": settings})
            self._note(0)
        self._places = _places(self.part, columns)
        self._direct = _open_direct(self.part)
        # One thread writes, another waits for the disk; neither stops the environment.
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._committed: Future[None] | None = None

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._writer.shutdown(cancel_futures=True)
            self._syncer.shutdown(cancel_futures=True)
            if self._direct is not None:
                os.close(self._direct)
            self._file.close()

    @property
    def segments(self) -> range:
        """Numbers of the segments that are still to be recorded."""
        return range(self.finished or 0, len(self.bounds) - 1)

    @property
    def rows_done(self) -> int:
        """Rows of the segments that an earlier recording finished."""
        return int(self.bounds[self.segments.start])

    def write(self, blocks: list[tuple[str, int, np.ndarray]]) -> "Future[None]":
        """Queues (column, first row, rows) blocks; the arrays may be reused once the returned future is done."""
        self._pending.append(self._writer.submit(self._write, blocks))
        return self._pending[-1]

    def commit(self, segment: int) -> None:
        """Notes that all rows up to the end of this segment have been queued, once they are on the disk."""
        if self._committed:
            self._committed.result()
        self._committed = self._syncer.submit(self._commit, self._pending, segment + 1)
        self._pending = []

    def _write(self, blocks: list[tuple[str, int, np.ndarray]]) -> None:
        for name, row, array in blocks:
            start, column = self._places[name]
            array = np.ascontiguousarray(array, dtype=column.dtype)
            assert array.shape[1:] == column.shape, (name, array.shape, column.shape)
            start += row * array[:1].nbytes
            aligned = not any(number % _PAGE for number in (start, array.nbytes, array.ctypes.data))
            descriptor = self._direct if self._direct is not None and aligned else self._file.fileno()
            if os.pwrite(descriptor, array.data.cast("B"), start) != array.nbytes:
                raise OSError(f"{self.part}: the disk took only a part of a write")

    def _commit(self, written: "list[Future[None]]", finished: int) -> None:
        for future in written:
            future.result()
        os.fsync(self._file.fileno())
        self._note(finished)

    def _note(self, finished: int) -> None:
        with atomic_path(self.journal) as temporary:
            temporary.write_text(json.dumps({"finished": finished, "settings": self.settings}))

    def _finish(self) -> None:
        if self._committed:
            self._committed.result()
        os.replace(self.part, self.out)
        self.journal.unlink()
        fsync(self.out.parent)

    def _require_space(self, columns: dict[str, Column]) -> None:
        """A disk that is too small shows now, not after hours. (The file is sparse until its rows are written.)"""
        row = sum(np.dtype(column.dtype).itemsize * math.prod(column.shape) for column in columns.values())
        try:
            require_space(self.out, int(self.bounds[-1]) * row)
        except ValueError:
            self.part.unlink()
            self._file.close()
            raise

    def _resume(self) -> int | None:
        """Finished segments of an earlier, killed recording; None where there is none."""
        if not self.journal.exists() or not self.part.stat().st_size:
            return None
        noted = json.loads(self.journal.read_text())
        before = noted["settings"]
        changed = [k for k in {**before, **self.settings} if before.get(k) != self.settings.get(k)]
        if changed:
            was = ", ".join(f"{k}={before.get(k)!r} (now {self.settings.get(k)!r})" for k in sorted(changed))
            raise ValueError(
                f"{self.part}: an unfinished recording with other settings: {was}; "
                "finish it with the same settings, or delete it"
            )
        return noted["finished"]


def lock(part: Path) -> Any:
    """Opens an unfinished file for this process alone, until it is closed.

    Raises:
        ValueError: another process has it.
    """
    file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"{part}: another process is recording this file") from error
    return file


def _open_direct(part: Path) -> int | None:
    """A way round the page cache, whose copying costs a third as much as stepping Procgen; None where there is none."""
    try:
        return os.open(part, os.O_RDWR | os.O_DIRECT)
    except (AttributeError, OSError):  # macOS has no such flag, some file systems refuse it
        return None


def _preallocate(part: Path, columns: dict[str, Column], rows: int, attrs: dict[str, Any]) -> None:
    """Makes the file with contiguous columns whose place on disk is fixed, without writing them."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    # HDF5's own lock would collide with ours.
    with h5py.File(part, "w", locking=False, alignment_threshold=_PAGE, alignment_interval=_PAGE) as file:
        write_attrs(file, attrs)
        for name, column in columns.items():
            file.create_dataset(name, (rows, *column.shape), column.dtype, dcpl=plan)


def _places(part: Path, columns: dict[str, Column]) -> dict[str, tuple[int, Column]]:
    """Byte offset of every column in the file."""
    with h5py.File(part, "r", locking=False) as file:
        return {name: (file[name].id.get_offset(), column) for name, column in columns.items()}
