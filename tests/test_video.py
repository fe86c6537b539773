import logging
import re
import shutil

import av
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamloom.datasets.recorder import Column
from dreamloom.datasets.resize import square
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.video import collect_video, resample
from dreamloom.datasets.video_file import Shown, VideoError
from dreamloom.datasets.writer import EpisodeWriter

CODECS = {".mp4": ("libx264", "yuv420p"), ".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}


def picture(level, height=48, width=64):
    """Grey of one level with a white left quarter, so that what is cropped or turned shows."""
    image = np.full((height, width, 3), level, np.uint8)
    image[:, : width // 4] = 255
    return image


def make_video(path, levels, fps=20, **options):
    codec, pixels = CODECS[path.suffix]
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for level in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(level))))
        container.mux(stream.encode())
    return path


def make_pictures(folder, levels):
    folder.mkdir()
    for i, level in enumerate(levels):
        Image.fromarray(picture(level)).save(folder / f"frame{i}.png")
    return folder


def levels_of(data, start, end):
    """Grey level of each frame, taken where the picture is plain."""
    return data.observations[start:end, :, 10].mean(axis=(1, 2))


RAMP = list(range(0, 240, 6))  # 40 frames, two seconds


def test_every_kind_becomes_one_episode(tmp_path, capsys):
    folder = tmp_path / "clips"
    (folder / "deep").mkdir(parents=True)
    make_video(folder / "a.mp4", RAMP)
    make_video(folder / "b.webm", RAMP)
    make_video(folder / "c.gif", RAMP)
    make_video(folder / "deep" / "d.mp4", RAMP)
    make_pictures(folder / "e", RAMP[::2])
    collect_video(folder, out=tmp_path / "out.hdf5", size=16, fps=10.0)
    data = open_dataset(tmp_path / "out.hdf5")
    starts, ends = data.episodes
    assert (ends - starts).tolist() == [20] * 5
    assert data.infos["file"][:].tolist() == np.repeat(range(5), 20).tolist()
    assert not data.terminals[:].any()
    assert (data.actions, data.rewards, data.fps) == (None, None, 10.0)
    for start, end in zip(starts, ends, strict=True):
        # every other frame of twenty a second; codecs round a little, a GIF's palette much
        np.testing.assert_allclose(levels_of(data, start, end), RAMP[::2], atol=30)
        assert np.corrcoef(levels_of(data, start, end), RAMP[::2])[0, 1] > 0.99
    np.testing.assert_allclose(levels_of(data, 80, 100), RAMP[::2], atol=2)
    with h5py.File(data.path) as file:
        assert [name.decode() for name in file["files"]] == ["a.mp4", "b.webm", "c.gif", "deep/d.mp4", "e"]
    assert "5 episodes, 100 frames, 16x16 at 10 fps; 0 files skipped" in capsys.readouterr().out


def broken_files(folder):
    """Files that cannot be read whole, each with a word of the reason that must be given."""
    source = folder.parent / "whole"
    source.mkdir()
    for name in ("v.mp4", "w.webm", "x.gif"):
        make_video(source / name, RAMP)
        whole = (source / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(whole[: len(whole) * 6 // 10])
    late = make_video(source / "late.mp4", np.random.default_rng(0).integers(0, 256, 400).tolist(), movflags="faststart")
    (folder / "cut_late.mp4").write_bytes(late.read_bytes()[: late.stat().st_size // 2])
    (folder / "text.mp4").write_text("I am no video")
    (folder / "empty.webm").touch()
    (folder / "notes.txt").write_text("shopping list")
    make_pictures(folder / "pictures", RAMP[:5])
    (folder / "pictures" / "frame3.png").write_bytes((folder / "pictures" / "frame3.png").read_bytes()[:60])
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return {
        "cut_v.mp4": "broken",
        "cut_w.webm": "cut off at",
        "cut_x.gif": "cut off",
        "cut_late.mp4": "broken|cut off at",
        "text.mp4": "broken",
        "empty.webm": "broken",
        "notes.txt": "not a video",
        "pictures": "frame3.png",
        "sound.mp4": "no video stream",
    }


def test_what_is_broken_is_named_left_out_and_counted(tmp_path, capsys, caplog):
    folder = tmp_path / "clips"
    folder.mkdir()
    make_video(folder / "good.mp4", RAMP)
    make_video(folder / "zz.mp4", RAMP[:10])
    broken = broken_files(folder)
    with caplog.at_level(logging.WARNING):
        collect_video(folder, out=tmp_path / "out.hdf5", size=16, fps=20.0)
    starts, ends = open_dataset(tmp_path / "out.hdf5").episodes
    assert (ends - starts).tolist() == [40, 10]
    for name, reason in broken.items():
        (told,) = [r.getMessage() for r in caplog.records if f"{folder / name}:" in r.getMessage()]
        assert re.search(reason, told)
    assert len(caplog.records) == len(broken)
    assert f"2 episodes, 50 frames, 16x16 at 20 fps; {len(broken)} files skipped" in capsys.readouterr().out


def test_nothing_is_written_when_nothing_can_be_read(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "text.mp4").write_text("I am no video")
    (folder / "notes.txt").write_text("shopping list")
    with pytest.raises(ValueError, match="no video that can be read; 2 files skipped"):
        collect_video(folder, out=tmp_path / "out" / "a.hdf5")
    assert not list((tmp_path / "out").iterdir())


def test_crops():
    wide = picture(100, 40, 80)
    assert square(wide, 20, "center").min() == 100
    assert square(wide, 20, "center").max() == 100  # the white left quarter is outside the middle square
    stretched = square(wide, 20, "stretch")
    assert stretched[:, :4].min() == 255
    assert stretched[:, 7:].max() == 100
    padded = square(wide, 20, "pad")
    assert padded[:4].max() == padded[-4:].max() == 0
    assert padded[7:13, 8:].min() == 100
    portrait = np.rot90(wide, -1)  # its white part is on top
    assert square(portrait, 20, "top")[:9].min() == 255
    assert square(portrait, 20, "top")[11:].max() == 100
    assert square(portrait, 20, "center").max() == 100
    np.testing.assert_array_equal(square(wide, 20, "top"), square(wide, 20, "center"))


def test_pictures_are_ordered_by_number(tmp_path):
    make_pictures(tmp_path / "p", range(0, 240, 20))  # frame10.png comes after frame9.png
    collect_video(tmp_path, out=tmp_path / "out.hdf5", size=16)
    np.testing.assert_array_equal(levels_of(open_dataset(tmp_path / "out.hdf5"), 0, 12), range(0, 240, 20))


@given(
    st.lists(st.floats(0.01, 0.9), min_size=1, max_size=40),
    st.floats(0.5, 60),
    st.floats(0, 1000),
)
def test_resampling_shows_at_each_tick_what_the_video_shows_then(durations, fps, start):
    starts = np.cumsum([start, *durations[:-1]])
    frames = (Shown(t, d, lambda i=i: i) for i, (t, d) in enumerate(zip(starts, durations, strict=True)))
    shown = [frame.picture() for frame in resample(frames, fps)]
    ticks = start + np.arange(len(shown)) / fps
    assert abs(len(shown) - sum(durations) * fps) <= 1
    for tick, index in zip(ticks, shown, strict=True):
        assert starts[index] - 1e-5 <= tick <= starts[index] + durations[index] + 1e-5


def test_mad_time_stamps_do_not_fill_the_disk():
    frames = [Shown(0.0, 0.1, lambda: None), Shown(1e6, 0.1, lambda: None)]
    with pytest.raises(VideoError, match=r"shown from 0\.0 to 1000000\.0 s"):
        list(resample(iter(frames), 10.0))


@pytest.mark.parametrize("options", [{"size": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"fps": float("inf")}])
def test_sizes_and_rates_must_be_positive(tmp_path, options):
    with pytest.raises(ValueError, match="must be positive"):
        collect_video(tmp_path, out=tmp_path / "a.hdf5", **options)


def test_a_missing_folder_and_an_existing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="none: no such folder"):
        collect_video(tmp_path / "none", out=tmp_path / "a.hdf5")
    make_pictures(tmp_path / "p", [1, 2])
    shutil.copy(tmp_path / "p" / "frame0.png", tmp_path / "a.hdf5")
    with pytest.raises(ValueError, match="exists already"):
        collect_video(tmp_path / "p", out=tmp_path / "a.hdf5")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 90), st.booleans()), max_size=6))
def test_dropped_episodes_leave_no_row(tmp_path_factory, episodes):
    path = tmp_path_factory.mktemp("writer") / "a.hdf5"
    kept = []
    columns = {"observations": Column(np.uint8, (1, 1, 3)), "actions": Column(np.int64)}
    with EpisodeWriter(path, columns, {"fps": 5.0}) as writer:
        for number, (length, keep) in enumerate(episodes):
            for _ in range(length):
                writer.append(observations=np.full((1, 1, 3), number), actions=number)
            if keep:
                writer.end_episode()
                kept += [number] * length
            else:
                writer.drop_episode()
        writer.append(observations=np.zeros((1, 1, 3)), actions=99)  # an unfinished one is left out too
    data = open_dataset(path)
    assert data.actions[:].tolist() == data.observations[:, 0, 0, 0].tolist() == kept
    starts, ends = data.episodes
    assert (ends - starts).tolist() == [n for n, keep in episodes if keep]
