"""Making a dataset of your own videos: files and folders of pictures, one episode each, unlabelled."""

import logging
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from dreamloom import __version__
from dreamloom.datasets.recorder import Column
from dreamloom.datasets.resize import Crop, square
from dreamloom.datasets.writer import EpisodeWriter

log = logging.getLogger(__name__)

VIDEOS = {".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}
_MISSING = 0.5  # seconds that a file may lack of the length that it states
_LONGEST = 600.0  # seconds that one frame may be shown; more is a broken time stamp


class Shown(NamedTuple):
    """A frame, when it appears and for how long it is meant to stay, in seconds; the picture is uint8 (h, w, 3)."""

    start: float
    duration: float
    picture: np.ndarray


Frames = Iterator[Shown]


class VideoError(ValueError):
    """A file that is not a whole video."""


def collect_video(directory: Path, *, out: Path, size: int = 64, fps: float = 10.0, crop: Crop = "center") -> None:
    """Makes a dataset of the videos in a folder and its sub-folders; every file is an episode (docs/data.md).

    Reads mp4, webm, gif, mkv, mov and avi files, and folders of numbered png or jpg pictures, which count as taken at
    --fps. What cannot be read whole is named, left out and counted; the rest is kept.

    Args:
        directory: where the videos are.
        out: the file to make.
        size: side of the square frames in pixels.
        fps: frames a second to keep; a video's own time stamps decide which.
        crop: keep the middle square of a wider picture, stretch it, or pad it with black bars.

    Examples:
        dreamloom collect video my_clips/ --size 64 --fps 10 --out data/mine.hdf5

    Raises:
        ValueError: no such folder, no video that can be read, a size or rate that is not positive, or `out` exists.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder")
    if size < 1 or not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"--size {size} --fps {fps}: both must be positive")
    sources, foreign = find_videos(directory)
    kept: list[str] = []
    skipped = {path: "not a video or a picture" for path in foreign}
    settings = {"command": "collect video", "dreamloom": __version__, "size": size, "fps": fps, "crop": crop}
    columns = {"observations": Column(np.uint8, (size, size, 3)), "infos/file": Column(np.int32)}
    with EpisodeWriter(out, columns, {"fps": fps, "source": settings}) as writer:
        for path in tqdm(sources, unit=" files", desc=str(out), disable=not sources):
            try:
                for picture in resample(_read(path, fps), fps):
                    writer.append(observations=square(picture, size, crop), **{"infos/file": len(kept)})
                writer.end_episode()
                kept.append(str(path.relative_to(directory)))
            except (VideoError, OSError) as error:
                writer.drop_episode()
                skipped[path] = str(error)
        for path, reason in skipped.items():
            log.warning("skipped %s: %s", path, reason)
        if not kept:
            raise ValueError(f"{directory}: no video that can be read; {len(skipped)} files skipped")
        writer.save_table("files", kept)
    print(f"{out}: {len(kept)} episodes, {writer.rows} frames, {size}x{size} at {fps:g} fps; {len(skipped)} files skipped")


def find_videos(directory: Path) -> tuple[list[Path], list[Path]]:
    """What can be read below a folder (video files, and folders that hold pictures), and the files that cannot."""
    files = [p for p in directory.rglob("*") if p.is_file() and not _hidden(p.relative_to(directory))]
    videos = {p for p in files if p.suffix.lower() in VIDEOS}
    pictures = {p for p in files if p.suffix.lower() in PICTURES}
    return sorted(videos | {p.parent for p in pictures}), sorted(set(files) - videos - pictures)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def resample(frames: Frames, fps: float) -> Iterator[np.ndarray]:
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
            yield shown.picture
            tick += 1
        shown = following or shown


def _read(path: Path, fps: float) -> Frames:
    return _read_pictures(path, fps) if path.is_dir() else _read_file(path)


def _read_pictures(folder: Path, fps: float) -> Frames:
    files = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not _hidden(Path(p.name))]
    for index, file in enumerate(sorted(files, key=_by_number)):
        try:
            with Image.open(file) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:  # the latter is Pillow's word for a broken PNG
            raise VideoError(f"{file.name}: {error}") from error
        yield Shown(index / fps, 1 / fps, picture)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """frame10 comes after frame9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _read_file(path: Path) -> Frames:
    import av

    if path.suffix.lower() == ".gif" and not _ends_as_gif(path):
        raise VideoError("cut off before the end of the GIF")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError("no video stream")
            yield from _decode(container, container.streams.video[0])
    except av.FFmpegError as error:
        raise VideoError(f"broken: {error.strerror}") from error


def _ends_as_gif(path: Path) -> bool:
    """A GIF has no length to check; it ends in a semicolon, which some writers follow by zeros."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return file.read().rstrip(b"\0").endswith(b";")


def _decode(container: Any, stream: Any) -> Frames:
    stream.thread_type = "AUTO"
    end = 0.0
    for frame in container.decode(stream):
        if frame.is_corrupt or frame.time is None:
            raise VideoError(f"a broken frame after {end:.2f} s")
        duration = float((frame.duration or 0) * frame.time_base) or 1 / float(stream.average_rate or 25)
        end = frame.time + duration
        turns = round(frame.rotation / 90)  # phones store which way they were held
        yield Shown(frame.time, duration, np.rot90(frame.to_ndarray(format="rgb24"), turns))
    stated = _stated_end(container, stream)
    if stated is not None and end < stated - _MISSING:
        raise VideoError(f"cut off at {end:.1f} of {stated:.1f} s")


def _stated_end(container: Any, stream: Any) -> float | None:
    """Where the file says that its video ends, in seconds; None where it says so only for the sound as well."""
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return (container.duration + (container.start_time or 0)) / 1e6
    return None
