"""Reading a dataset, whatever its format: D4RL's flat names (docs/data.md), from rows that stay on disk until sliced."""

import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.columns import PIXELS, DatasetError, is_pixels
from dreamloom.datasets.kinds import kind_of, not_read, split_ref
from dreamloom.datasets.lazy import LazyArray
from dreamloom.datasets.reading import guarded, reading, require_file

__all__ = ["FORMAT", "FORMAT_VERSION", "Dataset", "DatasetError", "episode_bounds", "open_dataset", "write_attrs"]

FORMAT = "dreamloom"
FORMAT_VERSION = 1


class Dataset:
    """An open dataset; every array is read from disk only where it is sliced, and has one form whatever the file holds.

    Attributes:
        ref: what was opened, e.g. "minari:cheetah/synth-v0".
        path: the file or folder.
        observations: (N, o) float32, or frames (N, h, w, c) uint8; what was seen in row i.
        actions: (N,) int64 or (N, a) float32, taken at observation i; None for unlabelled video.
        rewards: (N,) float32, earned by action i; None for unlabelled video.
        terminals: (N,) bool; action i ended the MDP.
        timeouts: (N,) bool; the episode ended after row i for another reason.
        next_observations: like `observations`, what followed row i; None where that is row i + 1.
        next_known: (N,) bool, False where `next_observations` does not hold what followed; None where all are known.
        infos: name -> array of N rows, e.g. `level_seed`.
        attrs: the file's attributes; those that hold JSON are decoded. `action_start` is what the environment numbers action 0
            with, `observation_offset` what its observations have beyond these.
        passed_over: what is there and is not part of the dataset -> why.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Mapping[str, LazyArray],
        *,
        infos: Mapping[str, LazyArray] | None = None,
        attrs: Mapping[str, Any] | None = None,
        passed_over: Mapping[str, str] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.path, self.ref = Path(path), str(path)
        columns = {name: guarded(array, path, name) for name, array in columns.items()}
        self.observations, self.terminals = columns["observations"], columns["terminals"]
        self.timeouts = columns["timeouts"]
        self.actions, self.rewards = columns.get("actions"), columns.get("rewards")
        self.next_observations, self.next_known = columns.get("next_observations"), columns.get("next_known")
        self.infos = {name: guarded(array, path, f"infos/{name}") for name, array in (infos or {}).items()}
        self.attrs, self.passed_over = dict(attrs or {}), dict(passed_over or {})
        if self.observations.centre is not None:
            before = np.array(self.attrs.get("observation_offset", 0.0))
            self.attrs["observation_offset"] = (before + self.observations.centre).tolist()
        self.max_episode_steps: int | None = None
        self._close = close

    def __len__(self) -> int:
        return len(self.observations)

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process opens the file for itself: HDF5 handles do not survive a fork or a pickle.
        return _reopen, (self.ref, self.max_episode_steps)

    def close(self) -> None:
        """Closes the file; the arrays cannot be read afterwards."""
        self._close()

    @cached_property
    def episodes(self) -> tuple[np.ndarray, np.ndarray]:
        """First rows and one-past-last rows of all episodes, both int64 (e,), in file order.

        An episode ends after a row that is terminal or timed out, and at the end of the file.
        """
        return episode_bounds(self.terminals[:] | self.timeouts[:])

    @property
    def frames(self) -> LazyArray:
        """The observations of a dataset of pictures.

        Raises:
            DatasetError: the observations are no pictures.
        """
        if not is_pixels(self.observations) or self.observations.shape[-1] != 3:
            seen = f"{self.observations.dtype} {self.observations.shape}"
            raise DatasetError(f"{self.ref}: `observations` is {seen}, expected pixels {PIXELS}")
        return self.observations

    @property
    def fps(self) -> float:
        """Frames a second of real time.

        Raises:
            DatasetError: the file's attribute is no number above 0.
        """
        fps = self.attrs.get("fps", 15.0)
        if not isinstance(fps, int | float) or not 0 < fps < math.inf:
            raise DatasetError(f"{self.ref}: the attribute `fps` is {fps!r}, expected a number above 0")
        return float(fps)

    @property
    def action_names(self) -> list[str] | None:
        """A name for each discrete action, where the file holds them.

        Raises:
            DatasetError: the file's attribute is no list of texts.
        """
        names = self.attrs.get("action_names")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DatasetError(f"{self.ref}: the attribute `action_names` is {names!r:.60}, expected a list of names")
        return names


def open_dataset(ref: str | Path, *, max_episode_steps: int | None = None) -> Dataset:
    """Opens a dataset for reading.

    Args:
        ref: an HDF5 file (ours, any of D4RL's, or V-D4RL's flat ones), a folder of shards, an `.npz` of transitions, a folder
            of DGRL's or V-D4RL's episodes, `minari:NAME` (or a Minari folder), or `d4rl:NAME`, which is fetched once.
            `dgrl:PATH` and `vd4rl:PATH` say which of these a path is.
        max_episode_steps: the environment's step limit, for a D4RL file without `timeouts`.

    Raises:
        DatasetError: not a readable dataset, or an array is missing, of another kind or of another length.
    """
    kind, path, limit = _located(str(ref))
    with reading(ref):
        kind = kind or kind_of(path)
        data = _reader(kind)(path, max_episode_steps or limit)
        if path.is_dir():
            for name, why in not_read(path, kind).items():
                data.passed_over[name] = why
                warnings.warn(f"{path}: {name} passed over, {why}", stacklevel=2)
    data.ref, data.max_episode_steps = str(ref), max_episode_steps
    return data


def _reopen(ref: str, max_episode_steps: int | None) -> Dataset:
    return open_dataset(ref, max_episode_steps=max_episode_steps)


def _located(ref: str) -> tuple[str, Path, int | None]:
    """Which format it is ("" where the path itself tells), where it lies, and the environment's step limit if it is known."""
    kind, rest = split_ref(ref)
    if kind == "minari":
        from dreamloom.datasets.fetch import minari_folder

        return kind, minari_folder(rest), None
    if kind == "d4rl":
        from dreamloom.datasets.fetch import d4rl_file
        from dreamloom.datasets.scores import step_limit

        return kind, d4rl_file(rest), step_limit(rest)
    path = Path(rest)
    if not path.exists():
        raise DatasetError(f"{path}: no such file")
    if not path.is_dir():
        require_file(path)
    return kind, path, None


def _reader(kind: str) -> Callable[[Path, int | None], Dataset]:
    """The reader of a format. Readers import this module, and some of them optional packages, so they come in late."""
    from dreamloom.datasets.hdf5 import open_hdf5

    if kind == "minari":
        from dreamloom.datasets.minari_format import open_minari

        return lambda path, _: open_minari(path)
    if kind in ("dgrl", "vd4rl"):
        from dreamloom.datasets.dgrl import open_dgrl
        from dreamloom.datasets.vd4rl import open_vd4rl

        return lambda path, _: open_dgrl(path) if kind == "dgrl" else open_vd4rl(path)
    if kind == "shards":
        from dreamloom.datasets.folder import open_folder

        return lambda path, _: open_folder(path)
    if kind == "npz":
        from dreamloom.datasets.npz import open_npz

        return lambda path, _: open_npz(path)
    return lambda path, limit: open_hdf5(path, max_episode_steps=limit)


def episode_bounds(ends_after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Episodes from one flag a row: (N,) bool -> first rows and one-past-last rows, int64 (e,) each."""
    ends = np.flatnonzero(ends_after).astype(np.int64) + 1
    rows = len(ends_after)
    if rows and (not len(ends) or ends[-1] != rows):
        ends = np.append(ends, rows)
    return np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]]), ends


def write_attrs(file: h5py.File, attrs: Mapping[str, Any]) -> None:
    """Writes the attributes of a new file; lists and tables become JSON text."""
    for name, value in {"format": FORMAT, "format_version": FORMAT_VERSION, **attrs}.items():
        file.attrs[name] = json.dumps(value) if isinstance(value, list | dict) else value
