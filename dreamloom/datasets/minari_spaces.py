"""Minari's observations and actions as columns of numbers, whatever Gymnasium space they come from.

A dictionary or tuple becomes one vector: the numbers of its parts, in order of their names. Texts are left out.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
from gymnasium import Space, spaces

from dreamloom.datasets.columns import DatasetError

log = logging.getLogger(__name__)


class Leaf(NamedTuple):
    """A part that holds numbers: where it is, and the shape of one of its values."""

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    kind: str  # "pixels", "index", "indices" or "numbers"
    dtype: np.dtype = np.dtype(np.float32)  # in which its values are told apart
    start: int = 0  # of an index

    @property
    def name(self) -> str:
        """E.g. `goal/0`."""
        return "/".join(map(str, self.path))


class Form:
    """How a column is made from the values of a space.

    Args:
        where: the dataset, for messages.
        space: of Minari's values.
        discrete: whether a single whole number stays one, (N,) int64 counted from 0 (an action); else it is a vector of one.

    Attributes:
        start: what the space counts such a whole number from.

    Raises:
        DatasetError: the space holds no numbers, or several discrete actions at once.
    """

    def __init__(self, where: str, space: Space, *, discrete: bool) -> None:
        self.leaves = list(_leaves(where, space, ()))
        if not self.leaves:
            raise DatasetError(f"{where}: {space} holds no numbers")
        only = self.leaves[0] if len(self.leaves) == 1 else None
        self.start = only.start if only is not None and discrete else 0
        if discrete and any(leaf.kind == "indices" or (leaf.kind == "index" and only is None) for leaf in self.leaves):
            raise DatasetError(f"{where}: actions are {space}; expected Box, Discrete, or a dictionary or tuple of Box")
        self.shape: tuple[int, ...] = (sum(math.prod(leaf.shape) for leaf in self.leaves),)
        self.dtype: np.dtype = np.result_type(np.float32, *(leaf.dtype for leaf in self.leaves))
        if only is not None and only.kind == "pixels":
            self.shape, self.dtype = (*only.shape, 1)[:3], np.dtype(np.uint8)
        elif only is not None and only.kind == "index" and discrete:
            self.shape, self.dtype = (), np.dtype(np.int64)

    def __call__(self, values: Any, rows: int) -> np.ndarray:
        """Values of an episode (arrays, or dictionaries and tuples of arrays) as an array of `rows` rows."""
        found = [np.asarray(_at(values, leaf.path)) for leaf in self.leaves]
        if any(len(part) != rows for part in found):
            raise ValueError(f"{rows} values expected, got {[len(part) for part in found]}")
        if len(found) == 1:
            column = found[0].astype(self.dtype, copy=False).reshape(rows, *self.shape)
            return column - self.start if self.start else column
        return np.concatenate([part.reshape(rows, -1) for part in found], axis=1, dtype=self.dtype, casting="unsafe")

    @property
    def parts(self) -> dict[str, list[int]] | None:
        """Name of each part -> [first, one past the last] of its numbers; None where there is only one part."""
        if len(self.leaves) == 1:
            return None
        stops = np.cumsum([math.prod(leaf.shape) for leaf in self.leaves]).tolist()
        return {leaf.name: [stop - math.prod(leaf.shape), stop] for leaf, stop in zip(self.leaves, stops, strict=True)}


def _leaves(where: str, space: Space, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for name in sorted(space.spaces):
            yield from _leaves(where, space.spaces[name], (*path, name))
    elif isinstance(space, spaces.Tuple):
        for number, part in enumerate(space.spaces):
            yield from _leaves(where, part, (*path, number))
    elif isinstance(space, spaces.Discrete):
        yield Leaf(path, (1,), "index", start=int(space.start))
    elif isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        if not path and len(space.shape) == 3 and space.shape[2] not in (1, 3, 4):
            raise DatasetError(
                f"{where}: frames are {space.shape}; expected single frames (h, w, c), neither stacked nor (c, h, w)"
            )
        yield Leaf(path, space.shape, "pixels")
    elif isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        yield Leaf(path, space.shape, "indices")
    elif isinstance(space, spaces.Box):
        yield Leaf(path, space.shape, "numbers", np.result_type(np.float32, space.dtype))
    elif isinstance(space, spaces.Text) and path:
        log.warning("%s: left out `%s`, which is text", where, "/".join(map(str, path)))
    else:
        raise DatasetError(f"{where}: {space} cannot be read as numbers")


def _at(values: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        values = values[step]
    return values


def stored_space(item: Any) -> Space:
    """The space that stored values of an episode show, for a dataset that names only its environment.

    Args:
        item: a group or array of Minari's HDF5 file.

    Raises:
        ValueError: pictures packed as JPEG, whose size is not stored.
    """
    if isinstance(item, Mapping | h5py.Group):
        parts = {name: stored_space(part) for name, part in item.items()}
        if all(name.startswith("_index_") for name in parts):
            return spaces.Tuple([parts[f"_index_{number}"] for number in range(len(parts))])
        return spaces.Dict(parts)
    if item.dtype == object:
        raise ValueError("it holds no observation space, and its observations are packed")
    if item.ndim == 1 and item.dtype.kind in "iu":
        return spaces.Discrete(max(1, int(np.max(item[:], initial=0)) + 1))
    limit = np.iinfo(item.dtype) if item.dtype.kind in "iu" else None
    low, high = (limit.min, limit.max) if limit else (-np.inf, np.inf)
    return spaces.Box(low, high, item.shape[1:], item.dtype.type)  # type: ignore[arg-type]
