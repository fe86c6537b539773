"""Writing transitions as a Minari dataset (Farama), through minari's own storage."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import NAMESPACE_METADATA_FILENAME, namespace_hierarchy, validate_namespace
from minari.storage import get_dataset_path

from dreamloom.datasets.atomic import Room, atomic_folder, atomic_path, require_folder
from dreamloom.datasets.minari_format import NEXT_KNOWN, minari_path
from dreamloom.datasets.runs import iter_runs
from dreamloom.datasets.types import Transitions

log = logging.getLogger(__name__)

_MANY = 10_000  # episodes
_EPISODE = 2**14  # bytes that HDF5 takes for the arrays of an episode, be they ever so small


def save_minari(name: str, parts: Iterable[Transitions], attrs: Mapping[str, Any], *, actions: int = 0) -> None:
    """Writes transitions as episodes: consecutive rows are one, with the final `next_observations` as its last observation.

    A row that nothing follows from, as a generative model makes them, is an episode of one step. An episode ends truncated
    where it does not end terminated.

    Args:
        name: NAMESPACE/NAME-v0.
        parts: all rows, piece by piece.
        attrs: kept in the metadata; `env`, if Gymnasium knows it, becomes Minari's environment, and `action_start` the start of
            the space of discrete actions.
        actions: how many discrete actions there are; 0 for continuous ones.

    Raises:
        ValueError: no name of a Minari dataset, or there is one already.
    """
    path = require_new_minari(name)
    parts = iter(parts)
    first, start = next(parts), int(attrs.get("action_start", 0)) if actions else 0
    with atomic_folder(path) as temporary:
        storage = MinariStorage.new(
            _made(temporary / "data"),
            observation_space=_box(first.observations),
            action_space=spaces.Discrete(actions, start=start) if actions else _box(first.actions),
            env_spec=_known_environment(attrs),
            jpeg_encoding=False,  # which would change the pixels
        )
        storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__, "dreamloom": dict(attrs)})
        storage.update_episodes(_buffers(chain([first], parts), Room(path), start))
        if "/" in name:
            _make_namespaces(name.rpartition("/")[0])


def require_new_minari(name: str) -> Path:
    """Where a dataset of that name goes.

    Raises:
        ValueError: no name of a Minari dataset, or there is one already, or its folder cannot be written.
    """
    path = minari_path(name)
    if path.exists():
        raise ValueError(f"minari:{name}: exists already ({path}); delete it, or choose another name or version")
    require_folder(path)
    return path


def _make_namespaces(namespace: str) -> None:
    """Makes a folder and those above it namespaces, each file whole or not there, which minari's own function does not do."""
    validate_namespace(namespace)
    for name in (namespace, *namespace_hierarchy(namespace)):
        path = get_dataset_path(name) / NAMESPACE_METADATA_FILENAME
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text("{}")


def _buffers(parts: Iterable[Transitions], room: Room, start: int) -> Iterator[EpisodeBuffer]:
    for number, run in enumerate(iter_runs(parts)):
        if number == _MANY:
            log.warning(
                "more than %d episodes: Minari keeps a group of arrays for each, so rows that do not follow one another take "
                "far more time and disk there than in an HDF5 file, a folder of shards or an .npz archive",
                _MANY,
            )
        room.take(_EPISODE + 2 * run.observations.nbytes + run.actions.nbytes + 8 * len(run))
        ended = np.zeros(len(run), bool)
        ended[-1] = not run.terminals[-1]
        infos = None if run.next_known is None else {NEXT_KNOWN: np.append(True, run.next_known)}
        yield EpisodeBuffer(
            observations=np.concatenate([run.observations, run.next_observations[-1:]]),  # type: ignore[arg-type]
            actions=run.actions + start if start else run.actions,  # type: ignore[arg-type]
            rewards=run.rewards,  # type: ignore[arg-type]
            terminations=run.terminals,  # type: ignore[arg-type]
            truncations=ended,  # type: ignore[arg-type]
            infos=infos,
        )


def _box(rows: np.ndarray) -> spaces.Box:
    low, high = (0, 255) if rows.dtype == np.uint8 else (-np.inf, np.inf)
    return spaces.Box(low, high, rows.shape[1:], rows.dtype.type)


def _known_environment(attrs: Mapping[str, Any]) -> Any:
    """Its specification, where it is registered already; a name that would import a module is left alone."""
    return gymnasium.registry.get(str(attrs.get("env")))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
