"""Video files as a player shows them: order, times, shape of pixels, turns, fields, transparency."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.video import collect_video
from dreamloom.datasets.video_file import VideoError, decode_video

RISING = [20 + 10 * i for i in range(20)]


def grey(level):
    return np.full((64, 64, 3), level, np.uint8)


def write(path, pictures, *, codec="libx264", options=None, times=None, pixels="yuv420p", setup=lambda stream: None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = pixels, options or {}
        stream.codec_context.time_base = Fraction(1, 10)
        setup(stream)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgba" if picture.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(path):
    return [int(np.round(shown.picture()[30, 30, 0], -1)) for shown in decode_video(path)]


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
@pytest.mark.parametrize("b_frames", ["0", "2", "4"])
def test_frames_come_in_order_each_once(tmp_path, suffix, b_frames):
    path = write(tmp_path / f"a.{suffix}", [grey(level) for level in RISING], options={"bf": b_frames})
    assert levels(path) == RISING
    times = [shown.start for shown in decode_video(path)]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=1e-6)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_gaps_in_an_avi_are_kept(tmp_path, codec):
    options = {"bf": "0"} if codec == "libx264" else {}
    path = write(tmp_path / "a.avi", [grey(level) for level in RISING[:5]], codec=codec, options=options, times=[0, 1, 2, 6, 7])
    assert [round(shown.start, 3) for shown in decode_video(path)] == [0, 0.1, 0.2, 0.6, 0.7]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_first_frame_need_not_be_at_zero(tmp_path, suffix):
    (tmp_path / "p").mkdir()
    write(tmp_path / "p" / f"a.{suffix}", [grey(level) for level in RISING[:6]], times=range(15, 21))
    collect_video(tmp_path / "p", out=tmp_path / "out.hdf5", size=8, fps=10.0)
    np.testing.assert_allclose(open_dataset(tmp_path / "out.hdf5").observations[:, 4, 4, 0], RISING[:6], atol=2)


def test_edit_lists_cut_both_ends(tmp_path):
    path = write(tmp_path / "a.mp4", [grey(level) for level in RISING], options={"bf": "2"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    duration, start = struct.unpack(">II", data[place : place + 8])
    data[place : place + 8] = struct.pack(">II", duration - 1000, start + 5 * 1024)  # of 2000 ms; 1024 units a frame
    path.write_bytes(data)
    assert levels(path) == RISING[5:15]


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4")])
@pytest.mark.parametrize(("aspect", "shape"), [(Fraction(2, 1), (64, 128, 3)), (Fraction(1, 2), (128, 64, 3))])
def test_pixels_become_square(tmp_path, suffix, codec, aspect, shape):
    def squeezed(stream):
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / f"a.{suffix}", [grey(100)] * 3, codec=codec, setup=squeezed)
    assert {shown.picture().shape for shown in decode_video(path)} == {shape}


def test_needles_for_pixels_are_refused(tmp_path):
    def flat(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(40, 1)

    with pytest.raises(VideoError, match="pixels 40 times as wide as high"):
        list(decode_video(write(tmp_path / "a.mp4", [grey(100)] * 3, setup=flat)))


def quarters():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :32], picture[:32, 32:], picture[32:, :32], picture[32:, 32:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return picture


def with_matrix(path, a, b, c, d):
    """The track's display matrix of ISO/IEC 14496-12; (x, y) is shown at (a x + c y, b x + d y)."""
    before, track, after = path.read_bytes().partition(b"tkhd")
    upright = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    assert upright in after
    turned = struct.pack(">9i", *(round(v * 0x10000) for v in (a, b, 0, c, d, 0, 0, 0)), 0x40000000)
    path.write_bytes(before + track + after.replace(upright, turned, 1))
    return path


TURNS = {
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda p: np.rot90(p, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # a quarter turn clockwise
    (0, -1, 1, 0): np.rot90,
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda p: np.rot90(p, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", TURNS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_display_matrices_turn_and_mirror(tmp_path, matrix, interlaced):
    options = {"crf": "1", **({"flags": "+ildct+ilme", "x264opts": "tff=1"} if interlaced else {})}
    path = with_matrix(write(tmp_path / "a.mp4", [quarters()] * 4, options=options), *matrix)
    first = next(decode_video(path)).picture().astype(int)
    inside = np.ix_([16, 48], [16, 48])
    np.testing.assert_allclose(first[inside], TURNS[matrix](quarters())[inside], atol=12)


def test_other_angles_are_refused(tmp_path):
    path = with_matrix(write(tmp_path / "a.mp4", [quarters()] * 3), 0.7, 0.7, -0.7, 0.7)
    with pytest.raises(VideoError, match="display matrix turns by less than a quarter"):
        next(decode_video(path)).picture()


def test_interlaced_fields_are_joined(tmp_path):
    """A bar moves to the right; its two fields were taken at two times, so its edges are combs."""
    pictures = []
    for i in range(8):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[0::2, 4 * i : 4 * i + 24] = 255
        picture[1::2, 4 * i + 2 : 4 * i + 26] = 255
        pictures.append(picture)
    path = write(tmp_path / "a.mp4", pictures, options={"flags": "+ildct+ilme", "x264opts": "tff=1", "crf": "5"})
    shown = list(decode_video(path))
    assert [round(one.start, 3) for one in shown] == [round(i / 10, 3) for i in range(8)]
    combs = [np.abs(np.diff(one.picture()[8:-8, :, 0].astype(int), axis=0)).mean() for one in shown[1:-1]]
    assert np.abs(np.diff(pictures[3][8:-8, :, 0].astype(int), axis=0)).mean() > 15
    assert max(combs) < 3


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p"), ("png.mov", "png", "rgba")]
)
def test_transparency_is_black_in_videos_too(tmp_path, name, codec, pixels):
    def veil(alpha):
        return np.dstack([grey(200), np.full((64, 64), alpha, np.uint8)])

    path = write(tmp_path / name, [veil(0), veil(128), veil(255)], codec=codec, pixels=pixels)
    np.testing.assert_allclose([s.picture()[30, 30, 0] for s in decode_video(path)], [0, 100, 200], atol=2)


def test_play_lists_open_no_other_file(tmp_path):
    write(tmp_path / "other.mp4", [grey(100)] * 3)
    for text in ("ffconcat version 1.0\nfile other.mp4\n", "#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(VideoError, match="broken"):
            list(decode_video(tmp_path / "list.mp4"))


def test_only_frames_that_are_kept_are_converted(tmp_path, monkeypatch):
    from dreamloom.datasets import video_file

    converted = []
    picture = video_file._picture
    monkeypatch.setattr(video_file, "_picture", lambda *args: converted.append(1) or picture(*args))
    (tmp_path / "p").mkdir()
    write(tmp_path / "p" / "a.mp4", [grey(level) for level in RISING])
    collect_video(tmp_path / "p", out=tmp_path / "a.hdf5", size=8, fps=2.0)
    assert len(converted) == 4
    collect_video(tmp_path / "p", out=tmp_path / "b.hdf5", size=8, fps=40.0)
    assert len(converted) == 4 + 20
