"""Finding clips below a folder: links, loops, what is no file; nothing is passed over without a word."""

import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dreamloom.datasets.media import find_pictures, find_videos
from dreamloom.datasets.pictures import PictureError
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.video import collect_video


def clip(path, level=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(np.full((16, 16, 3), level + i, np.uint8)) for i in range(2)]
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


def test_linked_files_and_folders_are_read(tmp_path):
    real = clip(tmp_path / "elsewhere" / "v.gif")
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "here.gif").symlink_to(real)
    (folder / "linked").symlink_to(real.parent)
    assert find_videos(folder) == ([folder / "here.gif", folder / "linked" / "v.gif"], {})
    collect_video(folder, out=tmp_path / "out.hdf5", size=8)
    assert len(open_dataset(tmp_path / "out.hdf5").episodes[0]) == 2


def test_loops_of_links_end_and_every_folder_is_read_once(tmp_path):
    clip(tmp_path / "z" / "real" / "v.gif")
    (tmp_path / "a").symlink_to(tmp_path / "z" / "real")  # sorts before what it leads to
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "z" / "real" / "self").symlink_to(".")
    found, skipped = find_videos(tmp_path)
    assert found == [tmp_path / "z" / "real" / "v.gif"]
    assert skipped == {
        tmp_path / "a": f"a link to a folder that is read as {tmp_path / 'z' / 'real'}",
        tmp_path / "z" / "up": f"a link to a folder that is read as {tmp_path}",
        tmp_path / "z" / "real" / "self": f"a link to a folder that is read as {tmp_path / 'z' / 'real'}",
    }


def test_what_cannot_be_read_is_named_and_counted(tmp_path, caplog, capsys):
    folder = tmp_path / "clips"
    clip(folder / "good.gif")
    (folder / "gone.mp4").symlink_to(tmp_path / "nothing")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "notes.txt").touch()
    (folder / ".hidden").mkdir()
    with caplog.at_level(logging.WARNING):
        collect_video(folder, out=tmp_path / "out.hdf5", size=8)
    assert sorted(record.getMessage().removeprefix(f"skipped {folder}/") for record in caplog.records) == [
        "device.mp4: is a character device, expected a file",
        "gone.mp4: a link to nothing",
        "loop.mp4: a link that leads to itself",
        "notes.txt: not a video or a picture",
        "pipe.mp4: is a named pipe, expected a file",
    ]
    assert "1 episodes, 2 frames, 8x8 at 10 fps; 5 files skipped" in capsys.readouterr().out


def test_a_dangling_link_among_stills_leaves_the_folder_out(tmp_path, caplog):
    folder = tmp_path / "stills"
    folder.mkdir()
    for i in (1, 3):
        Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(folder / f"frame{i}.png")
    (folder / "frame2.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no video that can be read; 2 files skipped"):
        collect_video(folder, out=tmp_path / "out.hdf5", size=8)
    told = [record.getMessage() for record in caplog.records]
    assert f"skipped {folder / 'frame2.png'}: a link to nothing" in told
    assert f"skipped {folder}: frame2.png: No such file or directory" in told


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    clip(tmp_path / "good.gif")
    (tmp_path / "locked").mkdir()
    listed = type(tmp_path).iterdir

    def iterdir(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(type(tmp_path), "iterdir", iterdir)
    assert find_videos(tmp_path) == ([tmp_path / "good.gif"], {tmp_path / "locked": "cannot be opened: Permission denied"})


def test_hidden_files_are_passed_over(tmp_path):
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.mp4").touch()
    assert find_videos(tmp_path) == ([], {})


def test_backgrounds_come_from_linked_folders_too(tmp_path, caplog):
    (tmp_path / "real").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "real" / "a.png")
    folder = tmp_path / "backgrounds"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "real")
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    assert find_pictures(folder) == [folder / "linked" / "a.png"]
    assert "gone.png: a link to nothing" in caplog.text


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_what_is_given_must_be_a_folder(tmp_path, kind):
    path = tmp_path / "a.mp4"
    path.touch() if kind == "file" else os.mkfifo(path)
    with pytest.raises(ValueError, match=r"a\.mp4: not a folder"):
        collect_video(path, out=tmp_path / "out.hdf5")


def test_a_damaged_background_is_one_error_that_names_it(tmp_path):
    from dreamloom.datasets.augment_colour import Overlay

    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(PictureError, match=r"a\.png: "):
        Overlay(path=str(tmp_path))._pictures((8, 8), torch.device("cpu"))
