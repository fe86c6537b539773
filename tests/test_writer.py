"""Writing episodes: one process a file, and a full disk leaves one line and nothing else."""

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from dreamloom.cli import main
from dreamloom.datasets.recorder import Column, Recorder
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.writer import EpisodeWriter

COLUMNS = {"observations": Column(np.uint8, (4, 4, 3))}


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    first, *rest = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in range(100)]
    first.save(folder / "a.gif", save_all=True, append_images=rest, duration=100)
    return folder


def test_two_recordings_of_one_file_are_refused(tmp_path, clips, capsys):
    out = tmp_path / "out.hdf5"
    with EpisodeWriter(out, COLUMNS, {"fps": 5.0}) as first:
        assert main(["collect", "video", str(clips), "--out", str(out)]) == 2
        assert f"dreamloom: {out}.part: another process is recording this file" in capsys.readouterr().err
        first.append(observations=np.full((4, 4, 3), 7))
        first.end_episode()
    assert open_dataset(out).observations[:].tolist() == np.full((1, 4, 4, 3), 7).tolist()
    assert main(["collect", "video", str(clips), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out.hdf5"]


def test_what_a_killed_recording_left_is_replaced(tmp_path, clips):
    (tmp_path / "out.hdf5.part").write_bytes(b"x" * 10**6)
    assert main(["collect", "video", str(clips), "--size", "8", "--out", str(tmp_path / "out.hdf5")]) == 0
    np.testing.assert_array_equal(open_dataset(tmp_path / "out.hdf5").observations[:, 0, 0, 0], range(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out.hdf5"]


def test_an_unfinished_recording_that_can_resume_is_kept(tmp_path, clips, capsys):
    out = tmp_path / "out.hdf5"
    with pytest.raises(RuntimeError), Recorder(out, COLUMNS, np.array([0, 4, 8]), settings={"seed": 1}, attrs={}):
        raise RuntimeError
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    assert sorted(before) == ["out.hdf5.part", "out.hdf5.part.json"]
    assert main(["collect", "video", str(clips), "--out", str(out)]) == 2
    assert "an unfinished recording of another kind" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.glob("out*")} == before


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room")
@pytest.mark.parametrize("fails", range(5))
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_left(tmp_path, clips, monkeypatch, capsys, fails):
    calls = []
    reserve = os.posix_fallocate

    def fill(*arguments):
        calls.append(arguments)
        if len(calls) > fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", fill)
    (tmp_path / "before.hdf5").write_bytes(b"the last good file")
    out = tmp_path / "out.hdf5"
    assert main(["collect", "video", str(clips), "--size", "64", "--out", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"dreamloom: {out}: No space left on device"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before.hdf5", "clips"]
    assert (tmp_path / "before.hdf5").read_bytes() == b"the last good file"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room")
def test_a_limit_on_the_size_of_files_ends_the_process_cleanly(tmp_path, clips):
    code = (
        "import resource, sys; from dreamloom.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 2**20,) * 2); sys.exit(main(sys.argv[1:]))"
    )
    words = ["collect", "video", str(clips), "--size", "256", "--out", str(tmp_path / "out.hdf5")]  # 20 MB
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == f"dreamloom: {tmp_path / 'out.hdf5'}: File too large"
    assert "Traceback" not in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_room_that_is_not_needed_is_given_back(tmp_path):
    with EpisodeWriter(tmp_path / "a.hdf5", COLUMNS, {"fps": 5.0}) as writer:
        for level in range(200):
            writer.append(observations=np.full((4, 4, 3), level))
        writer.end_episode()
        writer.save_table("files", ["a"] * 1000)
    assert (tmp_path / "a.hdf5").stat().st_size < 200_000
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file["observations"][:, 0, 0, 0].tolist() == list(range(200))
        assert file["files"][:].tolist() == [b"a"] * 1000
