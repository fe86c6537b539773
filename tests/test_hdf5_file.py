"""HDF5 files that reach into other files, claim more than they store, or are no files at all."""

import fcntl
import os
import threading

import h5py
import numpy as np
import pytest

from dreamloom.datasets.lazy import as_lazy
from dreamloom.datasets.reading import guarded, size
from dreamloom.datasets.store import DatasetError, open_dataset

ROWS = 5


def write(path, **changes):
    columns = {"observations": np.zeros((ROWS, 3)), "actions": np.arange(ROWS), "rewards": np.zeros(ROWS)}
    columns |= {"terminals": np.zeros(ROWS, bool), **changes}
    with h5py.File(path, "w") as file:
        for name, value in columns.items():
            if callable(value):
                value(file, name)
            elif value is not None:
                file[name] = value
    return path


def virtual(file, name):
    layout = h5py.VirtualLayout((ROWS,), "f4")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (ROWS,))
    file.create_virtual_dataset(name, layout)


def in_another_file(file, name):
    file.create_dataset(name, (ROWS,), "f4", external=[("other.bin", 0, 4 * ROWS)])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (h5py.ExternalLink("other.hdf5", "/rewards"), "`rewards` is a link to another file"),
        (virtual, "`rewards` is stored in other files"),
        (in_another_file, "`rewards` is stored in other files"),
    ],
)
@pytest.mark.parametrize("key", ["rewards", "infos/qpos"])
def test_other_files_of_the_user_are_never_read(tmp_path, key, value, words):
    write(tmp_path / "other.hdf5")
    (tmp_path / "other.bin").write_bytes(b"secret" * 10)
    path = write(tmp_path / "a.hdf5", **{key: value})
    if key == "rewards" or isinstance(value, h5py.ExternalLink):
        with pytest.raises(DatasetError, match=f"a.hdf5: {words.replace('rewards', key)}"):
            open_dataset(path)
    else:
        data = open_dataset(path)
        assert data.infos == {}
        assert data.passed_over == {"infos/qpos": "is stored in other files, which are never read; copy the array in"}


def test_a_virtual_array_over_the_file_itself_is_read(tmp_path):
    def own(file, name):
        layout = h5py.VirtualLayout((ROWS,), "f4")
        layout[:] = h5py.VirtualSource(".", "kept", (ROWS,))
        file.create_virtual_dataset(name, layout)

    path = write(tmp_path / "a.hdf5", kept=np.arange(ROWS, dtype="f4"), rewards=own)
    assert open_dataset(path).rewards[:].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", [{}, {"chunks": (1024, 3)}, {"chunks": (1024, 3), "compression": "gzip"}])
def test_an_array_that_is_not_stored_is_refused_at_once(tmp_path, options):
    rows = 2**28
    flags = {"chunks": (2**20,), "compression": "gzip"}
    path = write(
        tmp_path / "a.hdf5",
        observations=lambda file, name: file.create_dataset(name, (rows, 3), "f4", **options),
        actions=lambda file, name: file.create_dataset(name, (rows,), "i1", **flags),
        rewards=None,
        terminals=lambda file, name: file.create_dataset(name, (rows,), bool, **flags),
    )
    words = r"`\w+` claims \(268435456.*\), .*[MG]B, and the file stores 0% of it"
    with pytest.raises(DatasetError, match=words):
        open_dataset(path)


def test_an_array_in_a_hole_of_the_disk_is_refused(tmp_path):
    def promised(file, name):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((2**33, 2))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, properties)

    path = write(tmp_path / "a.hdf5", observations=promised)
    assert path.stat().st_size > 2**35
    assert path.stat().st_blocks * 512 < 2**20
    with pytest.raises(DatasetError, match=r"a.hdf5: `observations` claims 68.7 GB, and the file holds .* kB"):
        open_dataset(path)


def test_what_packs_well_is_no_lie(tmp_path):
    rows, width = 2**13, 2**12
    path = write(
        tmp_path / "a.hdf5",
        observations=lambda file, name: file.create_dataset(name, data=np.zeros((rows, width), "f4"), compression="gzip"),
        actions=None,
        rewards=None,
        terminals=np.zeros(rows, bool),
    )
    assert path.stat().st_size < 2**20
    assert open_dataset(path).observations.shape == (rows, width)


def test_a_column_that_was_made_and_never_written_is_zeros(tmp_path):
    path = write(tmp_path / "a.hdf5", timeouts=lambda file, name: file.create_dataset(name, (ROWS,), bool))
    assert not open_dataset(path).timeouts[:].any()


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "dgrl:a.npz", "vd4rl:a.hdf5"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    kind, _, file = name.rpartition(":")
    os.mkfifo(tmp_path / file)
    found = []

    def look():
        with pytest.raises(DatasetError, match=f"{file}: is a named pipe, expected a file"):
            open_dataset(f"{kind}:{tmp_path / file}" if kind else tmp_path / file)
        found.append(True)

    # Opening a pipe waits for its other end, and would hold the test up for ever.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(20)
    assert found


def test_devices_are_refused():
    with pytest.raises(DatasetError, match="/dev/zero: is a character device, expected a file"):
        open_dataset("/dev/zero")


def test_a_file_that_a_writer_holds_is_not_called_broken(tmp_path):
    path = write(tmp_path / "a.hdf5")
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match=r"a.hdf5: is locked by a program that writes it"):
            open_dataset(path)


def test_a_filter_that_is_not_installed_is_named(tmp_path):
    def unknown(file, name):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((ROWS,))
        properties.set_filter(32017, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((ROWS,))
        h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, properties)

    path = write(tmp_path / "a.hdf5", rewards=unknown)
    with pytest.raises(DatasetError, match=r"`rewards` is packed by the filter .*\(32017\); `pip install hdf5plugin`"):
        open_dataset(path)


def test_bytes_that_are_flipped_are_named_when_they_are_read(tmp_path):
    def packed(file, name):
        file.create_dataset(name, data=np.random.default_rng(0).random((ROWS, 300)), compression="gzip", fletcher32=True)

    path = write(tmp_path / "a.hdf5", observations=packed)
    with h5py.File(path) as file:
        place = file["observations"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[place + 500] ^= 255
    path.write_bytes(whole)
    data = open_dataset(path)
    assert data.actions[:].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DatasetError, match=r"a.hdf5: `observations` cannot be read \(.*(checksum|filter|inflate|read data)"):
        _ = data.observations[:]


@pytest.mark.parametrize("error", [RuntimeError, KeyError, OSError, NotImplementedError, MemoryError, RecursionError])
def test_whatever_a_library_raises_names_file_and_key(error):
    def read(start, stop):
        raise error("some\nlines \x1b[31m")

    array = as_lazy(np.zeros(3))
    array.read = read
    with pytest.raises(DatasetError, match=r"^a.hdf5: `rewards` (cannot be read|does not fit in memory)") as found:
        _ = guarded(array, "a.hdf5", "rewards")[:]
    assert str(found.value).isprintable()


def test_fewer_rows_than_promised_are_refused():
    array = as_lazy(np.zeros((3, 2)))
    array.shape = (4, 2)
    with pytest.raises(DatasetError, match=r"a: `b` gives \(1, 2\) for rows 2 to 4 of \(4, 2\)"):
        _ = guarded(array, "a", "b")[2:]


def test_sizes_for_people():
    assert [size(n) for n in (0, 999, 1500, 2**36)] == ["0 bytes", "999 bytes", "1.5 kB", "68.7 GB"]
