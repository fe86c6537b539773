"""A folder of shards (datasets/shards.py) opened as one dataset; files are opened when their rows are asked for."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from dreamloom.datasets.columns import COLUMNS
from dreamloom.datasets.hdf5 import open_hdf5
from dreamloom.datasets.lazy import LazyArray, joined
from dreamloom.datasets.shards import folder_attrs, shard_paths
from dreamloom.datasets.store import Dataset, DatasetError

_OPEN = 8  # shards; a system allows a process about a thousand open files


def open_folder(folder: Path) -> Dataset:
    """Opens a folder of shards.

    Raises:
        DatasetError: the folder is unfinished, a shard is missing, changed or malformed, or two shards differ in their
            columns.
    """
    paths = shard_paths(folder)
    if not paths:
        raise DatasetError(f"{folder}: no shard is in it")

    @lru_cache(maxsize=_OPEN)
    def shard(path: Path) -> Dataset:
        return open_hdf5(path)

    parts: dict[str, list[LazyArray]] = {}
    for path in paths:
        with open_hdf5(path) as data:
            found = {name: (array.shape[1:], array.dtype) for name, array in _columns(data).items()}
            expected = {name: (arrays[0].shape[1:], arrays[0].dtype) for name, arrays in parts.items()} or found
            if found != expected:
                raise DatasetError(f"{path}: holds {_told(found)}, expected as in {paths[0].name}: {_told(expected)}")
            for name, (inner, dtype) in found.items():

                def read(start: int, stop: int, path: Path = path, name: str = name) -> np.ndarray:
                    return _columns(shard(path))[name].read(start, stop)

                parts.setdefault(name, []).append(LazyArray((len(data), *inner), dtype, read))
    columns = {name: joined(arrays) for name, arrays in parts.items()}
    infos = {name.removeprefix("infos/"): columns.pop(name) for name in list(columns) if name.startswith("infos/")}
    return Dataset(folder, columns, infos=infos, attrs=folder_attrs(folder), close=shard.cache_clear)


def _columns(data: Dataset) -> dict[str, LazyArray]:
    columns = {name: getattr(data, name) for name in COLUMNS} | {f"infos/{name}": array for name, array in data.infos.items()}
    return {name: array for name, array in columns.items() if array is not None}


def _told(schema: dict[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"`{name}` {dtype} (N{''.join(f', {n}' for n in inner)})" for name, (inner, dtype) in schema.items())
