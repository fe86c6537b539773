"""Writing a dataset whose length is not known beforehand: episode after episode, in constant memory, whole or not at all."""

import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.atomic import fsync, require_new_file
from dreamloom.datasets.recorder import Column, lock
from dreamloom.datasets.store import write_attrs

_ROWS = 64  # rows that are gathered before they are written
_CACHE = 2**20  # bytes that HDF5 holds back for each column, which is its default, and for its own tables


class EpisodeWriter:
    """Appends episodes to a new file; used as a context, and the file appears when the context ends without an error.

    Rows go to `OUT.part`, which is locked. Room on the disk is reserved before HDF5 gets rows, since HDF5 cannot close a
    file that it could not write, and crashes when the process ends.

    `terminals` and `timeouts` are columns of every file; a row that does not give them has False.

    Args:
        out: the file to make; it must not exist yet.
        columns: name -> column, e.g. `observations` and `actions`.
        attrs: attributes of the file: `fps`, `action_names`, `source`, ...

    Raises:
        ValueError: `out` exists, or another process records it, or left an unfinished recording of it.
        OSError: the disk is full; nothing is left behind.
    """

    def __init__(self, out: str | Path, columns: Mapping[str, Column], attrs: Mapping[str, Any]) -> None:
        require_new_file(out)
        self.columns = {**columns, "terminals": Column(np.bool_), "timeouts": Column(np.bool_)}
        self.rows = self.episodes = 0  # of finished episodes
        self._out, self._attrs = Path(out), dict(attrs)
        self._part = self._out.with_name(self._out.name + ".part")
        self._widths = {name: np.dtype(dtype).itemsize * math.prod(shape) for name, (dtype, shape) in self.columns.items()}
        self._chunks = {name: 16 if column.shape else 4096 for name, column in self.columns.items()}
        self._file: Any = None
        self._reserved = 0  # bytes of the file that are surely on the disk
        self._written = 0
        self._gathered: list[Mapping[str, Any]] = []

    def __enter__(self) -> "EpisodeWriter":
        self._out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._lock = stack.enter_context(lock(self._part))
            self._require_no_other()
            stack.callback(self._part.unlink, missing_ok=True)
            self._reserve(0)  # on a disk without any room HDF5 could not even begin
            # HDF5's own lock would collide with ours.
            self._file = stack.enter_context(h5py.File(self._part, "w", locking=False))
            self._reserved = 0  # opening it has emptied it
            self._reserve(0)
            write_attrs(self._file, self._attrs)
            for name, (dtype, shape) in self.columns.items():
                chunk = (self._chunks[name], *shape)
                self._file.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunk)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        with self._stack:
            if kind is None:
                self.drop_episode()  # an unfinished one
                self._finish()

    def _require_no_other(self) -> None:
        """Nothing has appeared under our names while we waited for the lock."""
        require_new_file(self._out)
        if self._part.with_name(self._part.name + ".json").exists():
            raise ValueError(f"{self._part}: an unfinished recording of another kind; finish it, or delete it")

    def _finish(self) -> None:
        self._file.flush()
        size = self._file.id.get_filesize()
        self._file.close()
        os.truncate(self._part, size)  # gives back what was reserved and is not needed
        fsync(self._part)
        os.replace(self._part, self._out)
        fsync(self._out.parent)

    def _reserve(self, nbytes: int) -> None:
        """Takes room on the disk for so many bytes more, and for all that HDF5 may still hold back."""
        if not hasattr(os, "posix_fallocate"):  # macOS
            return
        held_back = sum(_CACHE + chunk * self._widths[name] for name, chunk in self._chunks.items())
        end = self._file.id.get_filesize() if self._file else 0
        start, stop = max(end, self._reserved), end + nbytes + held_back + _CACHE
        try:
            if stop > start:
                os.posix_fallocate(self._lock.fileno(), start, stop - start)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self._out)) from error
        self._reserved = max(self._reserved, stop)

    def append(self, **row: Any) -> None:
        """Adds one row to the current episode."""
        if len(self._gathered) == _ROWS:
            self._flush()
        self._gathered.append(row)

    def end_episode(self) -> None:
        """Finishes the current episode; its last row is a timeout where it is not terminal."""
        if not self._gathered:
            raise ValueError("an episode needs at least one row")
        last = self._gathered[-1]
        self._gathered[-1] = {**last, "timeouts": not last.get("terminals", False)}
        self._flush()
        self.rows = self._written
        self.episodes += 1

    def drop_episode(self) -> None:
        """Takes the current, unfinished episode back."""
        self._gathered.clear()
        self._resize(self.rows)

    def save_table(self, name: str, table: list[str]) -> None:
        """Adds a list of texts, e.g. the names that a column's numbers stand for."""
        self._reserve(sum(len(os.fsencode(text)) + 64 for text in table))
        self._file[name] = np.array(table, dtype=h5py.string_dtype())

    def _flush(self) -> None:
        start = self._written
        self._reserve(len(self._gathered) * sum(self._widths.values()))
        self._resize(start + len(self._gathered))
        for name, column in self.columns.items():
            blank = False if column.dtype is np.bool_ else None
            rows = [row[name] if blank is None else row.get(name, blank) for row in self._gathered]
            self._file[name][start:] = np.stack(rows).astype(column.dtype, copy=False)
        self._gathered.clear()

    def _resize(self, rows: int) -> None:
        self._written = rows
        for name in self.columns:
            self._file[name].resize(rows, axis=0)
