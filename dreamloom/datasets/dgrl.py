"""DGRL's offline Procgen (Mediratta et al. 2023): a folder with one compressed file an episode.

A file holds what numpy's `savez_compressed` writes, whatever its suffix (`.npz` or `.npy`): `observations` (T + 1, 3, 64, 64),
`actions` (T, 1), `rewards` (T, 1), `dones` (T,); its name ends in `_<level seed>_<return>`. Procgen resets itself, so the last
frame of a finished episode is the first of the next one, and is not what followed. Nothing is ever unpickled.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from dreamloom.datasets.archive import header, load, open_archive
from dreamloom.datasets.atomic import atomic_folder
from dreamloom.datasets.columns import DatasetError
from dreamloom.datasets.episodes import Steps, iter_episodes, open_episodes
from dreamloom.datasets.store import Dataset
from dreamloom.datasets.types import Transitions

MEMBERS = {"observations", "actions", "rewards", "dones"}
SUFFIXES = (".npz", ".npy")
# Level seeds of the published split (Mediratta et al. 2023), LO:HI with HI excluded.
SPLITS = {"train": (0, 200), "validation": (200, 250), "test": (250, 2**31 - 1)}
_NAME = re.compile(r"_(-?\d+)_(-?\d+(?:\.\d+)?)$")


def episode_files(path: Path) -> list[Path]:
    """The episode files of a folder, in the order of their names; a file is itself."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))


def open_dgrl(path: Path) -> Dataset:
    """Opens a folder of episodes, or one of its files; labels are read at once, frames where they are asked for.

    Raises:
        DatasetError: no episode is there, a name has no level and return, or a file is malformed, cut short or pickled.
    """
    files = episode_files(path)
    if not files:
        raise DatasetError(f"{path}: no episode is in it; expected files named ..._<level>_<return>.npz (or .npy)")
    steps = [_steps(file) for file in tqdm(files, unit=" episodes", desc=str(path), delay=2.0, leave=False)]
    filled = [number for number, episode in enumerate(steps) if len(episode.actions)]  # as DGRL's loader does
    if not filled:
        raise DatasetError(f"{path}: all episodes are empty")
    return open_episodes(path, [files[n] for n in filled], [steps[n] for n in filled], _frames, _attrs(files[0]))


def save_dgrl(folder: Path, source: Dataset | Transitions, game: str | None = None) -> int:
    """Writes episodes in DGRL's layout: `<game>_<number>_<steps>_<level>_<return>.npz`.

    The last frame of a finished episode, which only DGRL's own collector saw, repeats the frame before it (DGRL's loader puts
    zeros there). A cut episode ends in its last frame and has no `done`.

    Returns:
        The number of transitions written.

    Raises:
        DatasetError: no pictures, no discrete actions, or no rewards.
    """
    count = 0
    with atomic_folder(folder) as temporary:
        for number, episode in enumerate(tqdm(iter_episodes(source), unit=" episodes", desc=str(folder), delay=2.0)):
            if episode.actions.ndim > 1:
                raise DatasetError(f"{folder}: DGRL holds discrete actions, these are {episode.actions.dtype} with an axis")
            steps, total = len(episode.actions), episode.rewards.sum(dtype=np.float64)
            name = f"{game or 'episode'}_{number:06d}_{steps}_{episode.level}_{total:.2f}.npz"
            dones = np.zeros(steps, bool)
            dones[-1] = episode.terminal
            np.savez_compressed(
                temporary / name,
                observations=np.ascontiguousarray(episode.frames.transpose(0, 3, 1, 2)),
                actions=episode.actions.astype(np.int64)[:, None],
                rewards=episode.rewards.astype(np.float32)[:, None],
                dones=dones,
            )
            count += steps
    return count


def _steps(file: Path) -> Steps:
    found = _NAME.search(file.stem)
    if not found:
        raise DatasetError(f"{file}: the name does not end in _<level>_<return>")
    arrays = load(file, "actions", "rewards", "dones")
    require_lists(file, arrays)
    count = len(arrays["actions"])
    if count:
        require_frames(file, "observations", count + 1)
    for name, array in arrays.items():
        if array.size != count or array.dtype.kind not in ("iu" if name == "actions" else "fiub"):
            raise DatasetError(
                f"{file}: `{name}` is {array.dtype} {array.shape}, expected one number for each of {count} actions"
            )
    dones = arrays["dones"].reshape(count) != 0
    if dones[:-1].any():
        raise DatasetError(f"{file}: `dones` is set in step {int(dones.argmax())} of {count}, expected at the end alone")
    rewards = arrays["rewards"].reshape(count).astype(np.float32)
    level = int(found[1])
    if abs(level) > np.iinfo(np.int32).max:
        raise DatasetError(f"{file}: the level seed {level} in its name has more than 32 bits")
    return Steps(arrays["actions"].reshape(count).astype(np.int64), rewards, bool(dones[-1:].any()), level)


def require_lists(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Every array of an episode has an axis of time.

    Raises:
        DatasetError: one is a single number.
    """
    for name, array in arrays.items():
        if not array.ndim:
            raise DatasetError(f"{file}: `{name}` is a single {array.dtype}, expected an array with a value for each step")


def require_frames(file: Path, name: str, count: int) -> None:
    """An episode's frames are as many as its labels ask for; told by the array's header, without reading it.

    Raises:
        DatasetError: there are none, or another number.
    """
    with open_archive(file) as archive:
        shape = header(file, archive, name).shape
    if len(shape) != 4 or shape[0] != count:
        raise DatasetError(f"{file}: `{name}` is {shape}, expected {count} frames")


def _frames(file: Path) -> np.ndarray:
    """The frames, channels last; some of DGRL's tools keep bytes as floats."""
    frames = load(file, "observations")["observations"]
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise DatasetError(f"{file}: `observations` is {frames.dtype} {frames.shape}, expected uint8 (T + 1, 3, h, w)")
    if frames.dtype != np.uint8:
        numbers = frames.dtype.kind in "fiu"
        with np.errstate(invalid="ignore"):  # NaN is not equal to what becomes of it
            whole = frames.astype(np.uint8) if numbers else frames
        if not numbers or (whole != frames).any():
            raise DatasetError(f"{file}: `observations` is {frames.dtype} and not all are whole numbers 0 to 255")
        frames = whole
    return frames if frames.shape[1] != 3 else np.ascontiguousarray(frames.transpose(0, 2, 3, 1))


def _attrs(file: Path) -> dict[str, Any]:
    """What the published names tell: the game, where a folder or the file bears its name."""
    from dreamloom.datasets.procgen import ACTION_NAMES, FPS, Game

    words = [*re.split(r"[_\W]+", file.name), *(part.lower() for part in reversed(file.absolute().parts[:-1]))]
    game = next((word for word in words if word in get_args(Game)), None)
    attrs: dict[str, Any] = {"fps": FPS, "action_names": ACTION_NAMES}
    return attrs | ({"game": game} if game else {})
