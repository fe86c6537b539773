"""A folder of shards that reads as one dataset: `shard-00000.hdf5` and its manifest `shard-00000.json`, ..., `index.json` last.

A shard is one HDF5 file with D4RL's names and `next_observations`. Its manifest, written after it, says how many rows it
has, how many bytes, and their sha256: a shard without a fitting manifest does not count. The index, written when the last
shard is there, lists them in order.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.reading import reading, require_file
from dreamloom.datasets.store import DatasetError, write_attrs
from dreamloom.datasets.types import Transitions

FORMAT, VERSION = "dreamloom-shards", 1
INDEX = "index.json"


class Plan(NamedTuple):
    """Which rows of the endless stream `seed` go into which shard; shard i depends on nothing but this and i."""

    seed: int
    rows: int
    shard_rows: int

    @property
    def shards(self) -> int:
        """Number of shards; the last may be shorter."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        """Rows of the stream that this shard holds."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))


def is_shard_folder(path: str | Path) -> bool:
    """Whether the path is a folder of shards, finished or not."""
    path = Path(path)
    return path.is_dir() and (path.joinpath(INDEX).is_file() or next(path.glob("shard-*.json"), None) is not None)


def shard_paths(folder: str | Path) -> list[Path]:
    """The HDF5 files of a folder, in order; each is there and has the size that the index gives.

    Raises:
        DatasetError: the folder is unfinished, or a file is missing, cut short or not one of ours.
    """
    folder, paths = Path(folder), []
    for entry in _index(folder)["shards"]:
        path = folder / Path(entry["file"]).name
        if not path.is_file():
            raise DatasetError(f"{path}: a shard of {folder} is missing; run the command that made the folder again")
        if path.stat().st_size != entry["bytes"]:
            raise DatasetError(f"{path}: has {path.stat().st_size} bytes, {INDEX} says {entry['bytes']}; it was changed")
        paths.append(path)
    return paths


def folder_attrs(folder: str | Path) -> dict[str, Any]:
    """What holds of the whole folder, as a single file's attributes would: `synthetic`, `source`, ...

    Raises:
        DatasetError: the folder is unfinished or its index cannot be read.
    """
    return _index(Path(folder))["attrs"]


def write_shard(
    folder: Path, shard: int, data: Transitions | Mapping[str, np.ndarray], attrs: Mapping[str, Any], **notes: Any
) -> None:
    """Writes a shard and then its manifest, each whole or not at all.

    Args:
        folder: where.
        shard: its number.
        data: its rows, or its columns by name.
        attrs: attributes of the file.
        notes: what else the manifest shall hold, as JSON.
    """
    path, manifest = shard_path(folder, shard), manifest_path(folder, shard)
    manifest.unlink(missing_ok=True)  # an older one must never vouch for the new file
    for left in folder.glob(f".{path.stem}.*.tmp.*"):  # by a run that was killed
        left.unlink(missing_ok=True)
    columns = data if isinstance(data, Mapping) else {name: x for name, x in vars(data).items() if x is not None}
    image = _image(columns, attrs)
    _write(path, image)
    entry = {
        "file": path.name,
        "rows": len(columns["observations"]),
        "bytes": len(image),
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    _write_json(manifest, {**entry, **notes})


def missing_shards(folder: Path, plan: Plan) -> list[int]:
    """Numbers of the shards that are still to be made; warns of each whose file is not what its manifest says."""
    missing = []
    for shard in range(plan.shards):
        manifest = read_manifest(folder, shard) or {}
        fits = manifest.get("generated") == len(plan.rows_of(shard))
        if fits and not is_intact(folder, manifest):
            warnings.warn(f"{shard_path(folder, shard)} is not what its manifest says: it is made again", stacklevel=2)
            fits = False
        missing += [] if fits else [shard]
    return missing


def shard_numbers(folder: Path) -> list[int]:
    """Numbers of the shards that have a manifest, in order."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json"))


def read_manifest(folder: Path, shard: int) -> dict[str, Any] | None:
    """A shard's manifest; None where there is none that can be read."""
    path = manifest_path(folder, shard)
    try:
        manifest = json.loads(path.read_text()) if path.is_file() else None
    except (ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the file that a manifest speaks of has the bytes that it had when it was written."""
    path = folder / manifest["file"]
    return path.is_file() and path.stat().st_size == manifest["bytes"] and sha256(path) == manifest["sha256"]


def write_index(folder: Path, manifests: Sequence[Mapping[str, Any]], attrs: Mapping[str, Any], **notes: Any) -> None:
    """Makes a folder whose shards are all there readable as one dataset.

    Args:
        folder: where the shards are.
        manifests: of all shards, in order.
        attrs: what holds of the whole folder.
        notes: what else the index shall hold, as JSON.
    """
    entries = [{key: manifest[key] for key in ("file", "rows", "bytes", "sha256")} for manifest in manifests]
    head = {"format": FORMAT, "format_version": VERSION, "rows": sum(entry["rows"] for entry in entries)}
    _write_json(folder / INDEX, {**head, **notes, "attrs": dict(attrs), "shards": entries})


def shard_path(folder: Path, shard: int) -> Path:
    """The HDF5 file of a shard."""
    return folder / f"shard-{shard:05d}.hdf5"


def manifest_path(folder: Path, shard: int) -> Path:
    """The manifest of a shard."""
    return folder / f"shard-{shard:05d}.json"


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _image(columns: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> bytes:
    """The bytes of an HDF5 file. It is made in memory: where a disk is full, HDF5 crashes the process later on."""
    with h5py.File("shard", "w", driver="core", backing_store=False) as file:
        write_attrs(file, dict(attrs))
        for name, column in columns.items():
            file.create_dataset(name, data=column)
        file.flush()
        return file.id.get_file_image()


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.exists():
        done = len(list(folder.glob("shard-*.json")))
        raise DatasetError(
            f"{folder}: no {INDEX}; it has {done} finished shards: run the command that made them again to finish it"
        )
    require_file(path)
    with reading(path):
        index = json.loads(path.read_text())
    head = (index.get("format"), index.get("format_version")) if isinstance(index, dict) else None
    if head != (FORMAT, VERSION) or not {"attrs", "shards"} <= index.keys():
        raise DatasetError(f"{path}: not an index of shards; expected format {FORMAT!r}, format_version {VERSION}")
    if not isinstance(index["attrs"], dict) or not isinstance(index["shards"], list):
        raise DatasetError(f"{path}: `attrs` must be a table and `shards` a list")
    for number, entry in enumerate(index["shards"]):
        known = {"file": str, "bytes": int}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in known.items()):
            raise DatasetError(f"{path}: entry {number} of `shards` must give `file`, a name, and `bytes`, a number")
    return index
