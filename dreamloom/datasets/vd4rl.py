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

from dreamloom.datasets.atomic import atomic_folder, atomic_path
from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.dgrl import episode_files, load
from dreamloom.datasets.episodes import Episode, Steps, iter_episodes, joined_columns, open_episodes
from dreamloom.datasets.lazy import LazyArray, joined, picked
from dreamloom.datasets.store import Dataset
from dreamloom.datasets.types import Transitions

FLAT = ("observation", "action", "reward", "discount", "step_type")
MEMBERS = {"image", "action", "reward", "discount"}
_FIRST, _MID, _LAST = 0, 1, 2
_TASK = re.compile(r"(cheetah[_-]run|walker[_-]walk|humanoid[_-]walk)")


def is_flat(path: Path) -> bool:
    """Whether a file is V-D4RL's flat HDF5."""
    try:
        with h5py.File(path, "r") as file:
            return {"observation", "step_type"} <= set(file)
    except OSError:
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
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        for episode in episodes:
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
            count += len(episode.actions)
    return count


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
        steps, frames = [], []
        for name in files:
            handles.append(_opened(name))
            parts = list(_flat_steps(name, handles[-1]))
            steps += [part for part, _ in parts]
            kept = np.concatenate([np.arange(start, start + part.rows) for part, start in parts])
            whole = _channels_last(handles[-1]["observation"])
            frames.append(whole if len(kept) == len(whole) else picked(whole, kept))
    except BaseException:
        _close(handles)
        raise
    columns = joined_columns(steps)
    columns["observations"] = frames[0] if len(frames) == 1 else joined(frames)
    infos = {name.removeprefix("infos/"): columns.pop(name) for name in list(columns) if name.startswith("infos/")}
    return Dataset(path, columns, infos=infos, attrs=_attrs(path), close=lambda: _close(handles))


def _close(handles: list[h5py.File]) -> None:
    for handle in handles:
        handle.close()


def _opened(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DatasetError(f"{path}: not a whole HDF5 file ({error})") from error
    missing = [name for name in FLAT if not isinstance(file.get(name), h5py.Dataset)]
    shape: tuple[int, ...] = () if missing else file["observation"].shape
    if missing or len(shape) != 4 or shape[1] != 3 or file["observation"].dtype != np.uint8 or not shape[0]:
        file.close()
        told = f"no array `{missing[0]}`" if missing else f"`observation` is {shape}, expected uint8 (N, 3, h, w)"
        raise DatasetError(f"{path}: {told}; V-D4RL's flat files hold {', '.join(FLAT)}")
    return file


def _flat_steps(path: Path, file: h5py.File) -> Iterator[tuple[Steps, int]]:
    """The episodes of a file, each with its first row."""
    kind = file["step_type"][:].reshape(-1)
    starts = np.union1d([0], np.flatnonzero(kind == _FIRST))
    ends = np.append(starts[1:], len(file["observation"]))
    arrays = {name: file[name][:] for name in ("action", "reward", "discount")}
    wrong = np.setdiff1d(np.flatnonzero(kind == _LAST) + 1, ends)
    if len(wrong):
        raise DatasetError(f"{path}: `step_type` is 2 in row {wrong[0] - 1}, and row {wrong[0]} does not begin an episode")
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield _steps(f"{path}, rows {start}-{end - 1}", {k: v[start:end] for k, v in arrays.items()}, end - start), start


def _steps_of(file: Path) -> Steps:
    arrays = load(file, "action", "reward", "discount")
    return _steps(str(file), arrays, len(arrays["action"]))


def _steps(where: str, arrays: Mapping[str, np.ndarray], rows: int) -> Steps:
    action, reward, discount = arrays["action"], arrays["reward"], arrays["discount"]
    if action.ndim != 2 or action.dtype.kind != "f" or reward.size != rows or discount.size != rows:
        raise DatasetError(
            f"{where}: `action` is {action.dtype} {action.shape}, `reward` {reward.shape}, `discount` {discount.shape}; "
            f"expected floats ({rows}, a), ({rows},) and ({rows},)"
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
