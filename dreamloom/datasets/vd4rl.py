"""V-D4RL (Lu et al. 2022): the DeepMind Control Suite from pixels, as flat HDF5 (84 px) or one `.npz` an episode (64 px).

Both keep dm_env's convention: row t holds a frame and the action, reward and discount of the step that led INTO it. So the
first row of an episode has no action (zeros), and ours, taken at frame t, is their row t + 1. `step_type` is 0, 1, 2 for first,
middle, last; a discount of 0 in the last row is a terminal, 1 a timeout. Frame stacks are never stored.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamloom.datasets.archive import load
from dreamloom.datasets.atomic import Room, atomic_folder, atomic_path
from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.dgrl import episode_files, require_frames, require_lists
from dreamloom.datasets.episodes import Episode, Steps, iter_episodes, joined_columns, open_episodes
from dreamloom.datasets.hdf5_file import held_item, kind, open_file
from dreamloom.datasets.lazy import LazyArray, joined, picked
from dreamloom.datasets.reading import guarded, reading
from dreamloom.datasets.store import Dataset
from dreamloom.datasets.types import Transitions

FLAT = ("observation", "action", "reward", "discount", "step_type")
MEMBERS = {"image", "action", "reward", "discount"}
_FIRST, _MID, _LAST = 0, 1, 2
_TASK = re.compile(r"(cheetah[_-]run|walker[_-]walk|humanoid[_-]walk)")


def is_flat(path: Path) -> bool:
    """Whether a file is V-D4RL's flat HDF5."""
    try:
        with open_file(path) as file:
            return {"observation", "step_type"} <= set(file)
    except DatasetError:
        return False


def open_vd4rl(path: Path) -> Dataset:
    """Opens a flat HDF5 file, a folder of such files, an episode's `.npz`, or a folder of these.

    Raises:
        DatasetError: nothing of this kind, or a file is malformed or cut short.
    """
    flat = [path] if path.suffix in (".hdf5", ".h5") else []
    if path.is_dir():
        flat = sorted(file for suffix in ("hdf5", "h5") for file in path.glob(f"*.{suffix}"))
    if flat:
        return _open_flat(path, flat)
    files = episode_files(path)
    if not files:
        raise DatasetError(f"{path}: no episode is in it; expected .npz files, or flat .hdf5 files")
    return open_episodes(path, files, [_steps_of(file) for file in files], _images, _attrs(path))


def save_vd4rl(path: Path, source: Dataset | Transitions) -> int:
    """Writes a flat HDF5 file, or, to a path without a suffix, a folder of episodes; nothing is resized.

    Returns:
        The number of transitions written.

    Raises:
        DatasetError: no pictures, no continuous actions, or no rewards.
        ValueError: the path has another suffix.
    """
    if path.suffix not in (".hdf5", ".h5", ""):
        raise ValueError(f"vd4rl:{path}: expected FILE.hdf5 or a folder without a suffix")
    episodes = _continuous(path, iter_episodes(source))
    return _save_flat(path, episodes) if path.suffix else _save_folder(path, episodes)


def _continuous(path: Path, episodes: Iterator[Episode]) -> Iterator[Episode]:
    for episode in episodes:
        if episode.actions.ndim != 2:
            raise DatasetError(f"{path}: V-D4RL holds continuous actions (T, a), these are {episode.actions.dtype} (T,)")
        yield episode


def _labels(episode: Episode) -> dict[str, np.ndarray]:
    """The T + 1 rows of an episode in dm_env's convention."""
    discount = np.ones(len(episode.frames), np.float32)
    discount[-1] = 0.0 if episode.terminal else 1.0
    reward = np.pad(episode.rewards, (1, 0)).astype(np.float32)
    return {"action": np.pad(episode.actions, ((1, 0), (0, 0))).astype(np.float32), "reward": reward, "discount": discount}


def _save_flat(path: Path, episodes: Iterator[Episode]) -> int:
    count = 0
    with atomic_path(path) as temporary:
        room = Room(path)
        with h5py.File(temporary, "w") as file:
            for episode in episodes:
                room.take(episode.frames.nbytes)
                _append(file, episode)
                count += len(episode.actions)
    return count


def _append(file: h5py.File, episode: Episode) -> None:
    step_type = np.full(len(episode.frames), _MID, np.float64)
    step_type[[0, -1]] = _FIRST, _LAST
    frames = episode.frames.transpose(0, 3, 1, 2)
    for name, rows in {"observation": frames, **_labels(episode), "step_type": step_type}.items():
        if name not in file:
            chunk, inner = (16 if rows.ndim == 4 else 4096, *rows.shape[1:]), rows.shape[1:]
            options = {"maxshape": (None, *inner), "chunks": chunk, "compression": "gzip"}
            file.create_dataset(name, (0, *inner), rows.dtype, **options)
        file[name].resize(len(file[name]) + len(rows), axis=0)
        file[name][-len(rows) :] = rows


def _save_folder(folder: Path, episodes: Iterator[Episode]) -> int:
    count = 0
    with atomic_folder(folder) as temporary:
        for number, episode in enumerate(episodes):
            rows = np.arange(len(episode.frames))
            first, last = rows == 0, rows == rows[-1]
            ends: dict[str, Any] = {"is_first": first, "is_last": last, "is_terminal": last & episode.terminal}
            name = f"episode-{number:06d}-{len(rows)}.npz"
            np.savez_compressed(temporary / name, image=episode.frames, **{**_labels(episode), **ends})
            count += len(episode.actions)
    return count


def _open_flat(path: Path, files: list[Path]) -> Dataset:
    handles: list[h5py.File] = []
    try:
        steps, owners, frames = [], [], []
        for name in files:
            handles.append(open_file(name))
            arrays = _arrays(name, handles[-1])
            parts = list(_flat_steps(name, arrays))
            steps += [part for part, _ in parts]
            owners += [name] * len(parts)
            kept = np.concatenate([np.arange(start, start + part.rows) for part, start in parts])
            whole = guarded(_channels_last(arrays["observation"]), name, "observation")
            frames.append(whole if len(kept) == len(whole) else picked(whole, kept))
            if whole.shape[1:] != frames[0].shape[1:]:
                raise DatasetError(f"{name}: frames are {whole.shape[1:]}, those of {files[0].name} are {frames[0].shape[1:]}")
        columns = joined_columns(steps, owners)
    except BaseException:
        _close(handles)
        raise
    columns["observations"] = frames[0] if len(frames) == 1 else joined(frames)
    infos = {name.removeprefix("infos/"): columns.pop(name) for name in list(columns) if name.startswith("infos/")}
    return Dataset(path, columns, infos=infos, attrs=_attrs(path), close=lambda: _close(handles))


def _close(handles: list[h5py.File]) -> None:
    for handle in handles:
        handle.close()


def _arrays(path: Path, file: h5py.File) -> dict[str, Any]:
    """The arrays of a flat file: the frames where they are, the labels read; each has a row for every frame."""
    held: dict[str, Any] = {name: held_item(path, file, name) if name in file else None for name in FLAT}
    for name, array in held.items():
        if not isinstance(array, h5py.Dataset):
            raise DatasetError(f"{path}: no array `{name}` ({kind(array)}); V-D4RL's flat files hold {', '.join(FLAT)}")
    shape = held["observation"].shape
    if held["observation"].dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
        raise DatasetError(f"{path}: `observation` is {kind(held['observation'])}, expected uint8 (N, 3, h, w)")
    for name in FLAT[1:]:
        array, flat = held[name], name != "action"
        if array.shape[:1] != shape[:1] or array.dtype.kind not in "fiub" or (flat and array.size != shape[0]):
            expected = "numbers (N,)" if flat else "floats (N, a)"
            raise DatasetError(f"{path}: `{name}` is {kind(array)}, expected {expected} for {shape[0]} frames of `observation`")
        with reading(path, name):
            held[name] = array[:].reshape(shape[0]) if flat else array[:]
    return held


def _flat_steps(path: Path, arrays: Mapping[str, Any]) -> Iterator[tuple[Steps, int]]:
    """The episodes of a file, each with its first row."""
    types = arrays["step_type"]
    wrong = np.flatnonzero(~np.isin(types, (_FIRST, _MID, _LAST)))
    if len(wrong):
        raise DatasetError(f"{path}: `step_type` is {types[wrong[0]]} in row {wrong[0]}, expected 0, 1 or 2")
    starts = np.union1d([0], np.flatnonzero(types == _FIRST))
    ends = np.append(starts[1:], len(types))
    wrong = np.setdiff1d(np.flatnonzero(types == _LAST) + 1, ends)
    if len(wrong):
        raise DatasetError(f"{path}: `step_type` is 2 in row {wrong[0] - 1}, and row {wrong[0]} does not begin an episode")
    labels = {name: arrays[name] for name in ("action", "reward", "discount")}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield _steps(f"{path}, rows {start}-{end - 1}", {k: v[start:end] for k, v in labels.items()}, end - start), start


def _steps_of(file: Path) -> Steps:
    arrays = load(file, "action", "reward", "discount")
    require_lists(file, arrays)
    rows = len(arrays["action"])
    require_frames(file, "image", rows)
    return _steps(str(file), arrays, rows)


def _steps(where: str, arrays: Mapping[str, np.ndarray], rows: int) -> Steps:
    action, reward, discount = arrays["action"], arrays["reward"], arrays["discount"]
    numbers = reward.dtype.kind in "fiub" and discount.dtype.kind in "fiub"
    if not rows or action.ndim != 2 or action.dtype.kind != "f" or not numbers or {reward.size, discount.size} != {rows}:
        raise DatasetError(
            f"{where}: `action` is {action.dtype} {action.shape}, `reward` {reward.dtype} {reward.shape}, `discount` "
            f"{discount.dtype} {discount.shape}; expected floats (N, a), (N,) and (N,), with N at least 1"
        )
    discount = discount.reshape(rows)
    if not np.isin(discount[-1], (0, 1)) or (discount[1:-1] != 1).any():
        raise DatasetError(f"{where}: `discount` must be 1, and 0 or 1 in the last row of an episode")
    return Steps(
        action[1:].astype(np.float32), reward.reshape(rows)[1:].astype(np.float32), bool(discount[-1] == 0 and rows > 1)
    )


def _images(file: Path) -> np.ndarray:
    frames = load(file, "image")["image"]
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise DatasetError(f"{file}: `image` is {frames.dtype} {frames.shape}, expected uint8 (T, h, w, 3)")
    return frames


def _channels_last(frames: h5py.Dataset) -> LazyArray:
    rows, channels, height, width = frames.shape
    shape = (rows, height, width, channels)
    return LazyArray(shape, np.uint8, lambda start, stop: np.ascontiguousarray(frames[start:stop].transpose(0, 2, 3, 1)))


def _attrs(path: Path) -> dict[str, Any]:
    """What the published folders tell, e.g. main/walker_walk/medium/84px: the task."""
    found = _TASK.search(str(path.absolute()))
    return {"env": found[1].replace("_", "-")} if found else {}
