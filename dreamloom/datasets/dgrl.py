"""DGRL's offline Procgen (Mediratta et al. 2023): a folder with one compressed file an episode.

A file holds what numpy's `savez_compressed` writes, whatever its suffix (`.npz` or `.npy`): `observations` (T + 1, 3, 64, 64),
`actions` (T, 1), `rewards` (T, 1), `dones` (T,); its name ends in `_<level seed>_<return>`. Procgen resets itself, so the last
frame of a finished episode is the first of the next one, and is not what followed. Nothing is ever unpickled.
"""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

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


def members(path: Path) -> set[str]:
    """Names of an archive's arrays; none where the file is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return set()


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
    count = len(arrays["actions"])
    for name, array in arrays.items():
        if array.size != count or array.dtype.kind not in ("iu" if name == "actions" else "fiub"):
            raise DatasetError(
                f"{file}: `{name}` is {array.dtype} {array.shape}, expected one number for each of {count} actions"
            )
    dones = arrays["dones"].reshape(count) != 0
    if dones[:-1].any():
        raise DatasetError(f"{file}: `dones` is set in step {int(dones.argmax())} of {count}, expected at the end alone")
    rewards = arrays["rewards"].reshape(count).astype(np.float32)
    return Steps(arrays["actions"].reshape(count).astype(np.int64), rewards, bool(dones[-1:].any()), int(found[1]))


def _frames(file: Path) -> np.ndarray:
    """The frames, channels last; some of DGRL's tools keep bytes as floats."""
    frames = load(file, "observations")["observations"]
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise DatasetError(f"{file}: `observations` is {frames.dtype} {frames.shape}, expected uint8 (T + 1, 3, h, w)")
    if frames.dtype != np.uint8:
        whole = frames.astype(np.uint8)
        if frames.dtype.kind not in "fiu" or (whole != frames).any():
            raise DatasetError(f"{file}: `observations` is {frames.dtype} and not all are whole numbers 0 to 255")
        frames = whole
    return frames if frames.shape[1] != 3 else np.ascontiguousarray(frames.transpose(0, 2, 3, 1))


def load(file: Path, *names: str) -> dict[str, np.ndarray]:
    """Some arrays of an archive, whatever its suffix.

    Raises:
        DatasetError: no whole archive, an array is missing, or it is pickled.
    """
    try:
        # Of the file, not of its name: numpy would take a bare array for one too.
        with np.lib.npyio.NpzFile(file.open("rb"), own_fid=True, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise DatasetError(f"{file}: no array `{missing[0]}`; expected {', '.join(names)}")
            return {name: archive[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file}: not a whole archive of numbers ({error})") from error


def _attrs(file: Path) -> dict[str, Any]:
    """What the published names tell: the game, where a folder or the file bears its name."""
    from dreamloom.datasets.procgen import ACTION_NAMES, FPS, Game

    words = [*re.split(r"[_\W]+", file.name), *(part.lower() for part in reversed(file.absolute().parts[:-1]))]
    game = next((word for word in words if word in get_args(Game)), None)
    attrs: dict[str, Any] = {"fps": FPS, "action_names": ACTION_NAMES}
    return attrs | ({"game": game} if game else {})
