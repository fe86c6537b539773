"""Which format a file or folder has, told by what is in it; and what of a folder is not of that format."""

import re
from pathlib import Path

from dreamloom.datasets.archive import members
from dreamloom.datasets.columns import DatasetError
from dreamloom.suggest import did_you_mean

_HDF5, _ARCHIVES = (".hdf5", ".h5"), (".npz", ".npy")
# Kind -> what the names of its files match, and what it is called.
_READ = {
    "shards": (re.compile(r"shard-\d+\.hdf5"), "a folder of shards"),
    "minari": (re.compile(r"main_data\.hdf5|data"), "a Minari dataset"),
    "dgrl": (re.compile(r".*\.np[yz]"), "DGRL's episodes"),
    "vd4rl": (re.compile(r".*\.np[yz]"), "V-D4RL's episodes"),
    "vd4rl flat": (re.compile(r".*\.(hdf5|h5)"), "V-D4RL's flat files"),
}

FORMATS = ("minari", "d4rl", "dgrl", "vd4rl")  # which a reference may name: minari:NAME, dgrl:PATH, ...


def split_ref(ref: str) -> tuple[str, str]:
    """The format that a reference names before a colon, "" where it names none, and the rest of it.

    Raises:
        DatasetError: it names one that is not known, and there is no file of that name.
    """
    kind, colon, rest = ref.partition(":")
    if kind in FORMATS and colon:
        return kind, rest
    if re.fullmatch(r"[A-Za-z][\w+.-]+", kind) and colon and not Path(ref).exists():  # one letter is a drive of Windows
        near = did_you_mean(kind, FORMATS)
        raise DatasetError(f"{ref}: format {kind!r} is not known{near}; formats named so are {', '.join(FORMATS)}")
    return "", ref


def kind_of(path: Path) -> str:
    """The format: "hdf5", "npz", "dgrl", "vd4rl", "shards" or "minari".

    Raises:
        DatasetError: a folder of none of them.
    """
    return _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)


def not_read(folder: Path, kind: str) -> dict[str, str]:
    """Data in a folder that its format does not read: what it is -> why.

    Args:
        folder: that is read.
        kind: its format.
    """
    if kind == "vd4rl" and any(file.suffix in _HDF5 for file in folder.iterdir()):
        kind = "vd4rl flat"
    names, told = _READ[kind]
    left: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        folders = path.is_dir() and not (kind == "minari" and path.name.isdecimal())  # Arrow's: one for each episode
        if not path.name.startswith(".") and not names.fullmatch(path.name) and (folders or path.suffix in _HDF5 + _ARCHIVES):
            left.setdefault("folder" if folders else f"{path.suffix} file", []).append(path.name)
    return {_counted(what, found): f"the folder is read as {told}" for what, found in left.items()}


def _counted(what: str, names: list[str]) -> str:
    """E.g. `2 .npz files (a.npz, b.npz)`."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names):,} {what}{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more})"


def _kind_of_folder(folder: Path) -> str:
    from dreamloom.datasets.shards import is_shard_folder

    if is_shard_folder(folder):
        return "shards"
    if any(folder.joinpath(*parts, "metadata.json").is_file() for parts in ((), ("data",))):
        return "minari"
    files = [file for file in sorted(folder.iterdir(), reverse=True) if not file.name.startswith(".")]
    for file in sorted({file.suffix: file for file in files if file.suffix in _HDF5 + _ARCHIVES}.values()):
        kind = _kind_of_file(file)  # of the first file with each suffix
        if kind in ("dgrl", "vd4rl"):
            return kind
    raise DatasetError(
        f"{folder}: is a folder; expected a file, a folder of shards, of episodes (DGRL, V-D4RL) or a Minari dataset"
    )


def _kind_of_file(path: Path) -> str:
    """By its suffix and the names of its arrays."""
    from dreamloom.datasets import dgrl, vd4rl

    if path.suffix in _ARCHIVES:
        held = members(path)
        return "dgrl" if held >= dgrl.MEMBERS else "vd4rl" if held >= vd4rl.MEMBERS else "npz"
    return "vd4rl" if path.suffix in _HDF5 and vd4rl.is_flat(path) else "hdf5"
