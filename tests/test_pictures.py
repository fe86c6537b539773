"""Pictures as people see them: orientation, depth, transparency, colour, animation; and what is refused."""

import io
import os
import re
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dreamloom.datasets.augment_colour import Overlay
from dreamloom.datasets.pictures import PictureError, decode_animation, decode_picture, is_animated, is_picture
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.video import collect_video
from dreamloom.play.messages import read_picture

LOSSLESS = {"png": {}, "webp": {"lossless": True}, "bmp": {}, "jpg": {"quality": 100, "subsampling": 0}}


def quarters(side=32):
    """Red, green / blue, white: no two of its eight turns and mirrors are alike."""
    picture = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    picture[:half, :half], picture[:half, half:] = (255, 0, 0), (0, 255, 0)
    picture[half:, :half], picture[half:, half:] = (0, 0, 255), (255, 255, 255)
    return picture


def shown_everywhere(path):
    """What a recording, a picture dropped on the player and an overlay's folder make of one file."""
    collect_video(path.parent, out=path.parent.parent / f"{path.name}.hdf5", size=32)
    recorded = open_dataset(path.parent.parent / f"{path.name}.hdf5").observations[0]
    dropped = read_picture(path.read_bytes(), width=32, height=32, max_pixels=10**6)
    overlay = Overlay(path=str(path.parent))._pictures((32, 32), torch.device("cpu"))[0].permute(1, 2, 0).numpy()
    return {"decode_picture": decode_picture(path), "recorded": recorded, "dropped": dropped, "overlay": overlay}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_every_picture_upright(tmp_path, suffix, orientation):
    (tmp_path / "p").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p" / f"frame1.{suffix}"
    Image.fromarray(quarters()).save(path, exif=exif.tobytes(), **LOSSLESS[suffix])
    turn = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.transpose(1, 0, 2)}
    turn |= {6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2), 8: np.rot90}
    for where, got in shown_everywhere(path).items():
        np.testing.assert_allclose(got.astype(int), turn[orientation](quarters()), atol=6, err_msg=where)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("key", [None, 30_000])
def test_16_bits_of_grey_are_scaled_to_8(tmp_path, orientation, key):
    (tmp_path / "p").mkdir()
    ramp = (np.arange(32 * 32, dtype=np.uint16) * 60).reshape(32, 32)  # 30,000 is among them
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "p" / "f1.png"
    Image.fromarray(ramp).save(path, exif=exif.tobytes(), **({} if key is None else {"transparency": key}))
    want = np.where(ramp == key, 0, ramp >> 8)
    want = np.rot90(want, -1) if orientation == 6 else want
    for where, got in shown_everywhere(path).items():
        np.testing.assert_array_equal(got, np.repeat(want[..., None], 3, axis=2), err_msg=where)


def transparent(mode):
    """Pictures whose left half is 200 everywhere and opaque, whose right half is transparent."""
    alpha = np.zeros((32, 32), np.uint8)
    alpha[:, :16] = 255
    image = Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    if mode == "P":
        image = Image.fromarray((alpha == 0).astype(np.uint8), "P")
        image.putpalette([200] * 3 + [90] * 3)
        image.info["transparency"] = 1
        return image
    if mode in ("L", "RGB"):  # one colour counts as transparent
        image = Image.fromarray(np.where(alpha == 0, 90, 200).astype(np.uint8)).convert(mode)
        image.info["transparency"] = 90 if mode == "L" else (90, 90, 90)
        return image
    return image.convert(mode)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "RGBA"), ("png", "LA"), ("png", "P"), ("png", "L"), ("png", "RGB"), ("webp", "RGBA"), ("gif", "P")],
)
def test_transparency_is_black_everywhere(tmp_path, suffix, mode):
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / f"f1.{suffix}"
    image = transparent(mode)
    kept = {} if "transparency" not in image.info else {"transparency": image.info["transparency"]}
    image.save(path, **LOSSLESS.get(suffix, {}), **kept)
    want = np.zeros((32, 32, 3), np.uint8)
    want[:, :16] = 200
    for where, got in shown_everywhere(path).items() if suffix != "gif" else {"decoded": decode_picture(path)}.items():
        np.testing.assert_array_equal(got, want, err_msg=where)


def test_half_transparent_is_half_as_bright(tmp_path):
    Image.fromarray(np.full((4, 4, 4), (200, 100, 50, 128), np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_allclose(decode_picture(tmp_path / "a.png"), np.full((4, 4, 3), (100, 50, 25)), atol=1)


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "P", "YCbCr"])
def test_other_colours_become_rgb(tmp_path, mode):
    original = Image.fromarray(quarters()).convert(mode)
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    original.save(tmp_path / f"a.{suffix}", **LOSSLESS[suffix])
    want = np.asarray(original.convert("RGB")).astype(int)
    np.testing.assert_allclose(decode_picture(tmp_path / f"a.{suffix}").astype(int), want, atol=6)


ANIMATED = {"gif": {}, "png": {}, "webp": {"lossless": True}}


def animate(path, levels, **options):
    first, *rest = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in levels]
    suffix = path.suffix[1:]
    first.save(path, save_all=True, append_images=rest, **{"duration": 100, **ANIMATED[suffix], **options})
    return path


@pytest.mark.parametrize("suffix", ANIMATED)
def test_animations_are_clips_and_keep_their_times(tmp_path, suffix):
    folder = tmp_path / "clips"
    folder.mkdir()
    animate(folder / f"a.{suffix}", [10, 60, 110, 160], duration=[100, 300, 100, 200])
    collect_video(folder, out=tmp_path / "out.hdf5", size=8, fps=10.0)
    seen = open_dataset(tmp_path / "out.hdf5").observations[:, 4, 4, 0]
    assert seen.tolist() == [10, 60, 60, 60, 110, 160, 160]


def test_an_animation_beside_stills_is_a_clip_of_its_own(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    animate(folder / "moving.webp", [10, 60, 110])
    for i in range(2):
        Image.fromarray(np.full((16, 16, 3), 200 + i, np.uint8)).save(folder / f"still{i}.png")
    collect_video(folder, out=tmp_path / "out.hdf5", size=8, fps=10.0)
    data = open_dataset(tmp_path / "out.hdf5")
    assert [data.observations[a:b, 0, 0, 0].tolist() for a, b in zip(*data.episodes, strict=True)] == [
        [200, 201],
        [10, 60, 110],
    ]


def test_a_still_that_precedes_an_animated_png_is_no_frame_of_it(tmp_path):
    animate(tmp_path / "a.png", [250, 10, 60], default_image=True)
    assert [frame[0, 0, 0] for frame, _ in decode_animation(tmp_path / "a.png")] == [10, 60]


def test_frames_without_a_duration_last_a_tenth_of_a_second(tmp_path):
    animate(tmp_path / "a.gif", [10, 60, 110], duration=[0, 10, 20])
    assert [seconds for _, seconds in decode_animation(tmp_path / "a.gif")] == [0.1, 0.1, 0.02]


@pytest.mark.parametrize("suffix", ANIMATED)
def test_a_cut_animation_is_refused(tmp_path, suffix):
    whole = animate(tmp_path / f"a.{suffix}", [10, 60, 110, 160]).read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) * 7 // 10])
    with pytest.raises(PictureError, match=rf"cut\.{suffix}: "):
        list(decode_animation(tmp_path / f"cut.{suffix}"))


def test_the_content_decides_and_not_the_name(tmp_path):
    animate(tmp_path / "a.gif", [10, 60]).rename(tmp_path / "a.png")
    assert is_animated(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert not is_picture(tmp_path / "b.png")


def bomb(side=60_000):
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_among_stills_leaves_its_folder_out(tmp_path, caplog, recwarn, side):
    clips = tmp_path / "clips"
    for name in ("bombed", "good"):
        (clips / name).mkdir(parents=True)
        Image.fromarray(quarters()).save(clips / name / "f1.png")
    (clips / "bombed" / "f2.png").write_bytes(bomb(side))
    collect_video(clips, out=tmp_path / "out.hdf5", size=16)
    assert len(open_dataset(tmp_path / "out.hdf5")) == 1
    (told,) = [record.getMessage() for record in caplog.records]
    assert re.search(rf"clips/bombed: f2\.png: .*{side * side:,}|{side * side} pixels", told)
    assert not recwarn.list
    with pytest.raises(ValueError, match="pixels"):
        read_picture(bomb(10_000), width=16, height=16, max_pixels=10**6)


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a\.png: is a named pipe, expected a file"):
        decode_picture(tmp_path / "a.png")
    with pytest.raises(PictureError, match="null: is a character device, expected a file"):
        decode_picture(os.devnull)
    with pytest.raises(PictureError, match=r"b\.png: No such file or directory"):
        decode_picture(tmp_path / "b.png")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["png", "gif", "webp", "jpg", "bmp"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=9))
def test_damage_of_any_kind_is_a_picture_error(suffix, where, new):
    buffer = io.BytesIO()
    Image.fromarray(quarters()).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    data = bytearray(buffer.getvalue())
    where %= len(data)
    data[where : where + len(new)] = new
    for decode in (decode_picture, lambda source: list(decode_animation(source))):
        with suppress(PictureError):
            decode(io.BytesIO(bytes(data)), max_pixels=10**6) if decode is decode_picture else decode(io.BytesIO(bytes(data)))


def test_a_jpeg_may_be_unpacked_smaller():
    buffer = io.BytesIO()
    large = Image.fromarray(quarters(512))
    large.save(buffer, "JPEG")
    small = decode_picture(buffer, at_least=64)
    assert small.shape == (64, 64, 3)
    np.testing.assert_allclose(small.astype(int), np.asarray(ImageOps.scale(large, 1 / 8)).astype(int), atol=90)
