"""Which format a folder has, and what of it is told to be left; and archives that claim what they do not hold."""

import io
import zipfile

import numpy as np
import pytest
from malformed import good

from dreamloom import cli
from dreamloom.datasets import atomic
from dreamloom.datasets.kinds import kind_of
from dreamloom.datasets.store import DatasetError, open_dataset


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "fsync", lambda path: None)


def test_every_kind_is_told_by_what_is_in_it(tmp_path):
    good(tmp_path)
    assert {path.name: kind_of(path) for path in tmp_path.iterdir()} == {
        "d4rl.hdf5": "hdf5",
        "video.hdf5": "hdf5",
        "ours.hdf5": "hdf5",
        "ours.npz": "npz",
        "shards": "shards",
        "flat.hdf5": "vd4rl",
        "dgrl": "dgrl",
        "vd4rl": "vd4rl",
    }


@pytest.mark.parametrize("target", ["shards", "dgrl", "vd4rl"])
def test_of_a_folder_of_several_formats_it_is_said_which_part_is_not_read(tmp_path, target):
    good(tmp_path)
    folder = tmp_path / target
    with open_dataset(folder) as data:
        rows = len(data)
        assert data.passed_over == {}
    suffix = ".npz" if target == "shards" else ".h5"
    (tmp_path / "d4rl.hdf5").rename(folder / f"zzz{suffix}")
    if target == "vd4rl":  # whose folders hold flat files as well, and those come first
        with pytest.raises(DatasetError, match=r"zzz.h5: no array `observation`"):
            open_dataset(folder)
        return
    (folder / "more").mkdir()
    with pytest.warns(UserWarning, match=r"1 \.(h5|npz) file \(zzz\.\w+\) passed over, the folder is read as"):
        data = open_dataset(folder)
    assert len(data) == rows
    assert set(data.passed_over) == {"1 folder (more)", f"1 {suffix} file (zzz{suffix})"}
    assert set(data.passed_over.values()) <= {
        "the folder is read as DGRL's episodes",
        "the folder is read as a folder of shards",
    }


def lying(path, shape, content=b"\0" * 48, method=zipfile.ZIP_DEFLATED):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("observations.npy", head.getvalue() + content)
        archive.writestr("terminals.npy", b"")
    return path


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**33, 3), r"`observations` is float64 \(8589934592, 3\), 206.2 GB, and the archive holds 48 bytes"),
        ((1, 3), r"`observations` is float64 \(1, 3\), 24 bytes, and the archive holds 48 bytes"),
        ((-2, -3), r"`observations` has the shape \(-2, -3\)"),
    ],
)
def test_an_archive_that_claims_another_size_is_refused(tmp_path, shape, words):
    with pytest.raises(DatasetError, match=r"a.npz: " + words):
        open_dataset(lying(tmp_path / "a.npz", shape))


def test_an_archive_that_unpacks_to_more_than_deflate_can_is_refused(tmp_path):
    path = lying(tmp_path / "a.npz", (2**24, 1), bytes(2**27), zipfile.ZIP_BZIP2)
    assert path.stat().st_size < 10_000
    assert cli.main(["data", str(path)]) == 2
    with pytest.raises(DatasetError, match=r"`observations` claims 134.2 MB, and the archive stores .* bytes of it"):
        open_dataset(path)
