"""Good files of every format, and what may become of them: cut, flipped, renamed, of other kinds, lying of their size."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
from some_rows import rows

from dreamloom.datasets.convert import save_dataset

N = 12


def good(folder):
    """Writes one small file or folder of each format; returns name -> what `open_dataset` is given."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (N, 6, 6, 3), np.uint8)
    ends = np.arange(N) % 6 == 5
    numbers = {"observations": random.normal(size=(N, 3)), "actions": random.normal(size=(N, 2)), "rewards": np.ones(N)}
    _hdf5(folder / "d4rl.hdf5", {**numbers, "terminals": ends, "timeouts": ~ends & False, "infos/qpos": np.ones((N, 2))})
    discrete = {"actions": np.arange(N) % 3, "rewards": np.ones(N), "terminals": ends, "infos/level_seed": np.arange(N)}
    _hdf5(folder / "video.hdf5", {"observations": pixels, **discrete}, compression="gzip")
    save_dataset(rows(N), folder / "ours.hdf5")
    save_dataset(rows(N), folder / "ours.npz")
    save_dataset(rows(N), folder / "shards")
    labels = {"reward": np.ones(N), "discount": np.ones(N)}
    action, frames = random.normal(size=(N, 2)).astype(np.float32), pixels.transpose(0, 3, 1, 2)
    kinds = np.where(ends, 2, np.where(np.roll(ends, 1), 0, 1))
    _hdf5(folder / "flat.hdf5", {"observation": frames, "action": action, **labels, "step_type": kinds}, compression="gzip")
    for name in ("dgrl", "vd4rl"):
        (folder / name).mkdir()
    for number in range(2):
        np.savez_compressed(folder / "vd4rl" / f"{number}.npz", image=pixels, action=action, **labels)
        episode = {"observations": np.tile(frames[:1], (N + 1, 1, 1, 1)), "actions": np.ones((N, 1), np.int64)}
        dones = np.arange(N) == N - 1
        np.savez_compressed(folder / "dgrl" / f"{number}_7_3.0.npz", **episode, rewards=np.ones((N, 1)), dones=dones)
    return [path.name for path in sorted(folder.iterdir())]


def with_minari(folder, monkeypatch):
    """The same in Minari's format."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder / "root"))
    save_dataset(rows(4), "minari:minari-v0")
    (folder / "root" / "minari-v0").rename(folder / "minari")
    (folder / "root").rmdir()


def _hdf5(path, columns, **options):
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file.create_dataset(name, data=column, chunks=True if options else None, **options)


def files_of(path):
    """The files of a dataset, in order."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def spoil(path: Path, random: np.random.Generator) -> str:
    """Does one thing to one file of a dataset; returns what."""
    file = files_of(path)[random.integers(len(files_of(path)))]
    kinds = {".hdf5": (cut, flip, flip, structure), ".npz": (cut, flip, flip, member), ".json": (cut, flip, replaced)}[
        file.suffix
    ]
    kind = kinds[random.integers(len(kinds))]
    return f"{file.relative_to(path.parent)}: {kind.__name__} {kind(file, random)}"


def cut(path, random):
    """Truncates."""
    size = int(random.integers(path.stat().st_size))
    with path.open("r+b") as file:
        file.truncate(size)
    return size


def flip(path, random):
    """Changes up to eight bytes, most of them where the tables of a format are: at the beginning or the end."""
    content = bytearray(path.read_bytes())
    count = int(random.integers(1, 9))
    for _ in range(count):
        near = int(random.integers(min(len(content), 600)))
        place = [near, len(content) - 1 - near, int(random.integers(len(content)))][random.integers(3)]
        content[place] = int(random.integers(256))
    path.write_bytes(content)
    return count


def other(value, random):
    """A value that is not what it should be."""
    value = np.asarray(value)
    choices = [
        value[:-1] if value.ndim else np.zeros(N),
        np.concatenate([value, value[:1]]) if value.ndim else np.zeros((N, 2)),
        np.float32(3),
        np.array([b"text"] * N),
        np.zeros((N, 0)),
        np.zeros(0),
        np.full(value.shape, np.nan),
        np.zeros(N, complex),
        np.zeros((N, 2, 2)),
        np.full(N, 7),
    ]
    return choices[random.integers(len(choices))]


def structure(path, random):
    """Renames, removes or replaces something in an HDF5 file."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name, what = names[random.integers(len(names))], int(random.integers(9))
        value = file[name][()]
        del file[name]
        if what == 0:
            file[f"{name}s"] = value
        elif what == 1:
            file.create_group(name)
        elif what == 2:
            file[name] = np.dtype("f4")
        elif what == 3:
            file[name] = [h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"), h5py.ExternalLink("x.hdf5", "/y")][
                random.integers(3)
            ]
        elif what == 4:
            file[name] = h5py.Empty("f4")
        elif what == 5:
            file.create_dataset(name, (2**40, *value.shape[1:]), value.dtype, chunks=(4, *value.shape[1:]))
        elif what == 6:
            file.create_dataset(name, value.shape, "f4", external=[("absent.bin", 0, 4 * value.size)])
        else:
            file[name] = other(value, random)
    return name, what


def member(path, random):
    """Renames, removes or replaces a member of an archive, or makes its header lie."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive}
    name, what = list(arrays)[random.integers(len(arrays))], int(random.integers(6))
    value = arrays.pop(name)
    if what == 0:
        arrays[f"{name}s"] = value
    elif what > 2:
        arrays[name] = other(value, random)
    np.savez_compressed(path, **arrays)
    if what in (1, 2):
        content = io.BytesIO()
        shape = [(2**40, *value.shape[1:]), (-1, *value.shape[1:])][what - 1]
        head = {"descr": value.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(content, head)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"{name}.npy", content.getvalue() + value.tobytes())
    return name, what


def replaced(path, random):
    """Other JSON."""
    whole = json.loads(path.read_text())
    key = list(whole)[random.integers(len(whole))]
    values = ["[" * 50_000, *(json.dumps({**whole, key: value}) for value in (None, -1, "text", [], {}, [1], 1e300))]
    path.write_text(values[random.integers(len(values))])
    return key
