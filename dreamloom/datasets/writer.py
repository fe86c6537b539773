"""Writing a dataset whose length is not known beforehand: episode after episode, in constant memory, whole or not at all."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.atomic import atomic_path, require_new_file
from dreamloom.datasets.recorder import Column
from dreamloom.datasets.store import write_attrs

_ROWS = 64  # rows that are gathered before they are written


class EpisodeWriter:
    """Appends episodes to a new file; used as a context, and the file appears when the context ends without an error.

    `terminals` and `timeouts` are columns of every file; a row that does not give them has False.

    Args:
        out: the file to make; it must not exist yet.
        columns: name -> column, e.g. `observations` and `actions`.
        attrs: attributes of the file: `fps`, `action_names`, `source`, ...

    Raises:
        ValueError: `out` exists.
    """

    def __init__(self, out: str | Path, columns: Mapping[str, Column], attrs: Mapping[str, Any]) -> None:
        require_new_file(out)
        self.columns = {**columns, "terminals": Column(np.bool_), "timeouts": Column(np.bool_)}
        self.rows = self.episodes = 0  # of finished episodes
        self._out, self._attrs = Path(out), dict(attrs)
        self._written = 0
        self._gathered: list[Mapping[str, Any]] = []

    def __enter__(self) -> "EpisodeWriter":
        self._stack = ExitStack()
        path = self._stack.enter_context(atomic_path(self._out))
        self._file = self._stack.enter_context(h5py.File(path, "w"))
        write_attrs(self._file, self._attrs)
        for name, column in self.columns.items():
            chunk = (16 if column.shape else 4096, *column.shape)
            self._file.create_dataset(name, (0, *column.shape), column.dtype, maxshape=(None, *column.shape), chunks=chunk)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self.drop_episode()  # an unfinished one
        self._stack.__exit__(kind, *rest)

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
        self._file[name] = np.array(table, dtype=h5py.string_dtype())

    def _flush(self) -> None:
        start = self._written
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
