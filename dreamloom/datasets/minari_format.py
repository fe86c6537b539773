"""Reading Minari datasets (Farama) through minari's own storage, and never by building a stranger's environment.

A Minari folder may name an environment whose entry point is imported and called when the environment is built, which
`minari.load_dataset` does where the spaces are not stored. Here it is only a name.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from minari.dataset._storages import get_minari_storage
from minari.dataset.minari_dataset import DATASET_ID_RE
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space
from minari.storage.datasets_root_dir import get_dataset_path

from dreamloom.datasets.columns import DatasetError, normalized
from dreamloom.datasets.hdf5_file import held_tree, kind, open_file
from dreamloom.datasets.lazy import LazyArray, as_lazy
from dreamloom.datasets.minari_spaces import Form, stored_space
from dreamloom.datasets.reading import reading, require_file
from dreamloom.datasets.store import Dataset

NEXT_KNOWN = "next_known"  # the `infos` entry that says whether a final observation was known
MAIN = "main_data.hdf5"
_PER_STEP = {"rewards": "rewards", "terminals": "terminations", "timeouts": "truncations"}  # ours -> Minari's
_NONE = {name: np.empty(0, np.float32 if name == "rewards" else bool) for name in (*_PER_STEP, NEXT_KNOWN)}
_KEPT = ("dataset_id", "algorithm_name", "author", "description", "code_permalink", "minari_version")


def minari_path(name: str) -> Path:
    """The folder of a dataset in Minari's own root (`MINARI_DATASETS_PATH`, or ~/.minari/datasets).

    Raises:
        ValueError: no name of a Minari dataset.
    """
    match = DATASET_ID_RE.fullmatch(name)
    if match is None or match["version"] is None:
        raise ValueError(f"minari:{name}: no name of a Minari dataset; expected one like NAMESPACE/NAME-v0")
    return get_dataset_path(name)


def open_minari(path: Path) -> Dataset:
    """Opens a Minari folder; nothing that it names is imported.

    Raises:
        DatasetError: not a whole Minari dataset, or its observations or actions are no numbers.
    """
    folder = path / "data" if (path / "data").is_dir() else path
    require_file(folder / "metadata.json")
    with reading(folder / "metadata.json"):
        metadata = MinariStorage.read_raw_metadata(folder)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("data_format"), str):
            raise DatasetError(f"{folder / 'metadata.json'}: not a Minari dataset's: it names no `data_format`")
        attrs = _attrs(metadata)
    if metadata["data_format"] == "arrow":
        import_module("pyarrow")  # whose absence minari tells without its name, and so without our extra
    with reading(path):
        episodes = _Episodes(folder, metadata)
        columns = normalized(str(path), episodes.columns())
    return Dataset(path, columns, attrs=attrs | episodes.attrs)


class _Episodes:
    """The episodes of a Minari dataset as rows: T actions and T + 1 observations are T rows with what followed each."""

    def __init__(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        found = {name: _storage_space(folder, metadata, f"{name}_space") for name in ("observation", "action")}
        packed = bool(metadata.get("jpeg_encoding", True))
        # Not `MinariStorage.read`, which builds the environment of a dataset without spaces.
        self.storage = get_minari_storage(metadata["data_format"])(
            folder, found["observation"], found["action"], jpeg_encoding=packed
        )
        self.seen = Form(str(folder), found["observation"], discrete=False)
        self.done = Form(str(folder), found["action"], discrete=True)
        seen = (self.seen.shape, self.seen.dtype)
        self._shapes: dict[str, tuple[tuple[int, ...], Any]] = {"observations": seen, "next_observations": seen}
        self._shapes["actions"] = (self.done.shape, self.done.dtype)
        labels = [_labels(folder, f"episode_{number}", *told) for number, told in enumerate(self._told())]
        self.stops = np.cumsum([len(episode["rewards"]) for episode in labels], dtype=np.int64)
        self.rows = int(self.stops[-1]) if labels else 0
        # Six bytes a row, so that these need no reading of observations.
        self._flat = {name: np.concatenate([_NONE[name], *(episode[name] for episode in labels)]) for name in _NONE}
        self.attrs: dict[str, Any] = {"observation_parts": self.seen.parts} if self.seen.parts else {}
        self.attrs |= {"action_start": self.done.start} if self.done.start else {}
        self._last: tuple[tuple[int, int], dict[str, np.ndarray]] | None = None

    def columns(self) -> dict[str, LazyArray]:
        shapes = {**self._shapes, "rewards": ((), np.float32), "terminals": ((), np.bool_), "timeouts": ((), np.bool_)}
        columns = {}
        for name, (shape, dtype) in shapes.items():

            def read(start: int, stop: int, name: str = name) -> np.ndarray:
                flat = self._flat.get(name)
                return self._block(start, stop)[name] if flat is None else flat[start:stop]

            columns[name] = LazyArray((self.rows, *shape), dtype, read)
        if not self._flat[NEXT_KNOWN].all():
            columns[NEXT_KNOWN] = as_lazy(self._flat[NEXT_KNOWN])
        return columns

    def _told(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Of each episode the number of steps that its metadata gives, and the episode itself."""
        count = self.storage.total_episodes
        lengths = (int(episode["total_steps"]) for episode in self.storage.get_episode_metadata(range(count)))
        if self.storage.FORMAT != "hdf5":
            yield from zip(lengths, self.storage.get_episodes(range(count)), strict=True)
            return
        path = self.storage.data_path / MAIN
        with open_file(path) as file:
            if len(file) != count:
                raise DatasetError(f"{path}: holds {len(file)} episodes, metadata.json says {count}")
            for number, steps in enumerate(lengths):
                yield steps, held_tree(path, file, f"episode_{number}")

    def _block(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Observations and actions of some rows; the last block is kept, since its columns are read one after another."""
        if self._last is None or self._last[0] != (start, stop):
            first = int(np.searchsorted(self.stops, start, side="right"))
            last = int(np.searchsorted(self.stops, stop, side="left"))
            numbers = range(first, last + 1) if stop > start else range(0)
            pieces = [self._piece(n, episode, start, stop) for n, episode in zip(numbers, self._read(numbers), strict=True)]
            block = {
                name: np.concatenate([piece[name] for piece in pieces]) if pieces else np.empty((0, *shape), dtype)
                for name, (shape, dtype) in self._shapes.items()
            }
            self._last = (start, stop), block
        return self._last[1]

    def _read(self, numbers: range) -> Iterable[Mapping[str, Any]]:
        return self.storage.get_episodes(numbers) if len(numbers) else []

    def _piece(self, number: int, episode: Mapping[str, Any], start: int, stop: int) -> dict[str, np.ndarray]:
        end = int(self.stops[number])
        begin = int(self.stops[number - 1]) if number else 0
        rows = slice(max(start, begin) - begin, min(stop, end) - begin)
        try:
            seen = self.seen(episode["observations"], end - begin + 1)
            actions = self.done(episode["actions"], end - begin)
        except (ValueError, LookupError, TypeError) as error:
            raise DatasetError(f"{self.storage.data_path}: `episode_{number}` does not fit the spaces ({error})") from error
        return {"observations": seen[:-1][rows], "next_observations": seen[1:][rows], "actions": actions[rows]}


def _labels(folder: Path, name: str, steps: int, episode: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rewards and flags of an episode, each with a value for every step."""
    missing = next((key for key in (*_PER_STEP.values(), "observations", "actions") if key not in episode), None)
    if missing:
        raise DatasetError(f"{folder}: no array `{name}/{missing}`")
    columns = {}
    for ours, key in _PER_STEP.items():
        array = episode[key]
        if getattr(array, "shape", None) != (steps,) or array.dtype.kind not in "fiub":
            told = f"expected a number for each step; `total_steps` is {steps}"
            raise DatasetError(f"{folder}: `{name}/{key}` is {kind(array)}, {told}")
        with reading(folder, f"{name}/{key}"), np.errstate(over="ignore"):
            columns[ours] = np.asarray(array[:]).astype(_NONE[ours].dtype)
    known = (episode.get("infos") or {}).get(NEXT_KNOWN)
    if known is not None and known.shape != (steps + 1,):
        raise DatasetError(f"{folder}: `{name}/infos/{NEXT_KNOWN}` is {known.shape}, expected {steps + 1} flags")
    columns[NEXT_KNOWN] = np.ones(steps, bool) if known is None else np.asarray(known[:])[1:].astype(bool)
    columns["timeouts"][-1:] |= ~columns["terminals"][-1:]  # cut off, whatever it says
    return columns


def _storage_space(folder: Path, metadata: Mapping[str, Any], key: str) -> spaces.Space:
    if key in metadata:
        with reading(folder / "metadata.json", key):
            return deserialize_space(metadata[key])
    if metadata["data_format"] != "hdf5":
        raise DatasetError(f"{folder}: metadata.json has no `{key}`, and the environment that it names is not built")
    with open_file(folder / MAIN) as file:
        first = held_tree(folder / MAIN, file, "episode_0")
        with reading(folder / MAIN, f"episode_0/{key.replace('_space', 's')}"):
            return stored_space(first[key.replace("_space", "s")])


def _attrs(metadata: Mapping[str, Any]) -> dict[str, Any]:
    own = metadata.get("dreamloom")
    attrs = {name: metadata[name] for name in _KEPT if name in metadata} | (own if isinstance(own, dict) else {})
    spec = metadata.get("env_spec")
    if isinstance(spec, str):
        told = json.loads(spec)
        attrs.setdefault("env", told.get("id") if isinstance(told, dict) else None)
    return attrs
