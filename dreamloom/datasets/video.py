"""Making a dataset of your own videos: files and folders of pictures, one episode each, unlabelled."""

import logging
import math
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dreamloom import __version__
from dreamloom.datasets.media import find_videos, stills_of
from dreamloom.datasets.pictures import PictureError, decode_animation, decode_picture, is_picture
from dreamloom.datasets.recorder import Column
from dreamloom.datasets.resize import Crop, square
from dreamloom.datasets.video_file import Frames, Shown, VideoError, decode_video
from dreamloom.datasets.writer import EpisodeWriter

log = logging.getLogger(__name__)

_LONGEST = 600.0  # seconds that one frame may be shown; more is a broken time stamp


def collect_video(directory: Path, *, out: Path, size: int = 64, fps: float = 10.0, crop: Crop = "center") -> None:
    """Makes a dataset of the videos in a folder and its sub-folders; every file is an episode (docs/data.md).

    Reads mp4, webm, mkv, mov and avi files, animated gif, webp and png, and folders of numbered png, jpg, webp or bmp
    pictures, which count as taken at --fps. Links are followed. What cannot be read whole is named, left out and
    counted; the rest is kept.

    Args:
        directory: where the videos are.
        out: the file to make.
        size: side of the square frames in pixels.
        fps: frames a second to keep; a video's own time stamps decide which.
        crop: of a picture that is no square, `center` keeps the middle (a portrait clip loses top and bottom), `top`
            the upper end, `pad` all, between black bars, and `stretch` all, out of shape.

    Examples:
        dreamloom collect video my_clips/ --size 64 --fps 10 --out data/mine.hdf5

    Raises:
        ValueError: no such folder, no video that can be read, a size or rate that is not positive, or `out` exists.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: {'not a folder' if directory.exists() else 'no such folder'}")
    if size < 1 or not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"--size {size} --fps {fps}: both must be positive")
    sources, skipped = find_videos(directory)
    kept: list[str] = []
    settings = {"command": "collect video", "dreamloom": __version__, "size": size, "fps": fps, "crop": crop}
    columns = {"observations": Column(np.uint8, (size, size, 3)), "infos/file": Column(np.int32)}
    with EpisodeWriter(out, columns, {"fps": fps, "source": settings}) as writer:
        for path in tqdm(sources, unit=" files", desc=str(out), disable=not sources):
            try:
                for picture in _squares(resample(_read(path, fps), fps), size, crop):
                    writer.append(observations=picture, **{"infos/file": len(kept)})
                writer.end_episode()
                kept.append(str(path.relative_to(directory)))
            except (VideoError, PictureError) as error:
                writer.drop_episode()
                skipped[path] = getattr(error, "reason", str(error))
        for path, reason in skipped.items():
            log.warning("skipped %s: %s", path, reason)
        if not kept:
            raise ValueError(f"{directory}: no video that can be read; {len(skipped)} files skipped")
        writer.save_table("files", kept)
    print(f"{out}: {len(kept)} episodes, {writer.rows} frames, {size}x{size} at {fps:g} fps; {len(skipped)} files skipped")


def resample(frames: Frames, fps: float) -> Frames:
    """The frame that is shown at each multiple of 1 / fps seconds, counted from the first frame.

    Raises:
        VideoError: there is no frame, or the time stamps make no sense.
    """
    first = next(frames, None)
    if first is None:
        raise VideoError("no frame")
    tick, shown = 0, first
    for following in chain(frames, [None]):
        end = following.start if following else shown.start + shown.duration
        if end - shown.start > _LONGEST:
            raise VideoError(f"one frame is shown from {shown.start:.1f} to {end:.1f} s")
        while tick / fps < end - first.start - 1e-6:
            yield shown
            tick += 1
        shown = following or shown


def _squares(frames: Frames, size: int, crop: Crop) -> Iterator[np.ndarray]:
    """One square for each frame; those that are shown for several ticks are made once."""
    last = None
    for shown in frames:
        if shown is not last:
            last, small = shown, square(shown.picture(), size, crop)
        yield small


def _read(path: Path, fps: float) -> Frames:
    if path.is_dir():
        return _read_stills(path, fps)
    return _read_animation(path) if is_picture(path) else decode_video(path)


def _read_stills(folder: Path, fps: float) -> Frames:
    for index, file in enumerate(stills_of(folder)):
        yield Shown(index / fps, 1 / fps, partial(_decode_still, file))


def _decode_still(file: Path) -> np.ndarray:
    try:
        return decode_picture(file)
    except PictureError as error:
        raise VideoError(f"{file.name}: {error.reason}") from error


def _read_animation(path: Path) -> Frames:
    start = 0.0
    for picture, duration in decode_animation(path):
        yield Shown(start, duration, partial(np.asarray, picture))
        start += duration
