"""Frames of a video file as a player shows them: in order, at their times, upright, of square pixels, not interlaced."""

import struct
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamloom.datasets.pictures import MAX_PIXELS, flatten

_MISSING = 0.5  # seconds that a file may lack of the length that it states
_FLATTEST = 16  # a pixel this many times as wide as high, or as high as wide, is a broken header
# Formats of files that hold their own frames. Play lists (HLS, concat) would have FFmpeg open other files and addresses.
_DEMUXERS = "asf,avi,flv,h264,hevc,m4v,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,mpegvideo,ogg"


class VideoError(ValueError):
    """A file that is not a whole video."""


class Shown(NamedTuple):
    """A frame, when it appears and for how long it is meant to stay, in seconds.

    `picture` gives uint8 (h, w, 3). It is a function since most frames of a video are passed over.
    """

    start: float
    duration: float
    picture: Callable[[], np.ndarray]


Frames = Iterator[Shown]


def decode_video(path: Path) -> Frames:
    """Decodes the main video stream of a file.

    Raises:
        VideoError: not a whole video.
    """
    import av

    try:
        with av.open(f"file:{path}", options={"format_whitelist": _DEMUXERS}) as container:
            stream = container.streams.best("video")  # which is no cover picture where there is a film
            if stream is None:
                raise VideoError("no video stream")
            yield from _decode(container, stream)
    except av.FFmpegError as error:
        raise VideoError(f"broken: {error.strerror}") from error


def _decode(container: Any, stream: Any) -> Frames:
    width, height = _square_pixels(stream)
    end = start = 0.0
    for frame in _deinterlaced(_in_order(container, stream)):
        if frame.time < start:
            raise VideoError(f"its time stamps go backwards, from {start:.2f} to {frame.time:.2f} s")
        start = frame.time
        duration = float((frame.duration or 0) * frame.time_base) or 1 / float(stream.average_rate or 25)
        end = start + duration
        yield Shown(start, duration, partial(_picture, frame, width, height))
    stated = _stated_end(container, stream)
    if stated is not None and end < stated - _MISSING:
        raise VideoError(f"cut off at {end:.1f} of {stated:.1f} s")


def _square_pixels(stream: Any) -> tuple[float, float]:
    """How many times as wide, and as high, a frame becomes when its pixels are made square; none is lost."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 1 / _FLATTEST <= aspect <= _FLATTEST:
        raise VideoError(f"pixels {aspect:g} times as wide as high; expected at most {_FLATTEST} times")
    return max(1.0, aspect), max(1.0, 1 / aspect)


def _in_order(container: Any, stream: Any) -> Iterator[Any]:
    """Decoded frames with the times at which they are shown.

    AVI keeps no times: frame i is shown at i / rate. FFmpeg counts packets, which are in another order where there are
    B-frames; decoded frames come in the order of showing, so they take the packets' counts one after the other.
    """
    stream.thread_type = "AUTO"
    decoder = _decoder(stream)
    counts = deque[Any]() if container.format.name == "avi" else None
    last = None
    for packet in container.demux(stream):
        if counts is not None and packet.size:
            counts.append(packet.dts)
        for frame in decoder.decode(packet):
            if counts is not None:
                frame.pts = counts.popleft() if counts else None
            frame.time_base = frame.time_base or stream.time_base
            if frame.is_corrupt or frame.time is None:
                raise VideoError(f"a broken frame after {last or 0.0:.2f} s")
            last = frame.time
            yield frame


def _decoder(stream: Any) -> Any:
    """The stream's own decoder. FFmpeg's for VP8 and VP9 pass over transparency, which libvpx' do not."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return stream.codec_context
    import av

    return av.CodecContext.create(name, "r")


def _deinterlaced(frames: Iterator[Any]) -> Iterator[Any]:
    """Joins the two fields of interlaced frames by FFmpeg's bwdif, from the first such frame on."""
    graph: Any = None
    form: Any = None
    for frame in frames:
        if graph is not None and _form(frame) != form:
            yield from _drain(graph)
            graph = None
        if graph is None:
            if not frame.interlaced_frame:
                yield frame
                continue
            graph, form = _bwdif(frame), _form(frame)
        graph.push(frame)
        yield from _ready(graph)
    if graph is not None:
        yield from _drain(graph)


def _form(frame: Any) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def _bwdif(frame: Any) -> Any:
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")).configure()
    return graph


def _drain(graph: Any) -> Iterator[Any]:
    graph.push(None)
    return _ready(graph)


def _ready(graph: Any) -> Iterator[Any]:
    """Frames that the filter has finished; it looks one ahead."""
    import av

    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _picture(frame: Any, width: float, height: float) -> np.ndarray:
    sides = round(frame.width * width), round(frame.height * height)
    if sides[0] * sides[1] > MAX_PIXELS:
        raise VideoError(f"frames of {sides[0]} x {sides[1]} pixels; at most {MAX_PIXELS:,} are allowed")
    transparent = any(component.is_alpha for component in frame.format.components)
    rgb = frame.reformat(width=sides[0], height=sides[1], format="rgba" if transparent else "rgb24").to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return _turned(flatten(rgb) if transparent else rgb, bytes(matrix) if matrix is not None else b"")


def _turned(picture: np.ndarray, matrix: bytes) -> np.ndarray:
    """Applies a display matrix (ISO/IEC 14496-12, 8.3.2): quarter turns, mirrored or not; phones store how they were held.

    Raises:
        VideoError: the matrix turns by another angle.
    """
    if not any(matrix):
        return picture
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]  # (x, y) is shown at (a x + c y, b x + d y)
    if max(abs(b), abs(c)) * 100 <= min(abs(a), abs(d)):
        right, down = a, d
    elif max(abs(a), abs(d)) * 100 <= min(abs(b), abs(c)):
        picture, right, down = picture.transpose(1, 0, 2), c, b
    else:
        raise VideoError("its display matrix turns by less than a quarter; expected quarter turns and mirrors")
    return picture[:: 1 if down > 0 else -1, :: 1 if right > 0 else -1]


def _stated_end(container: Any, stream: Any) -> float | None:
    """Where the file says that its video ends, in seconds; None where it says so only for the sound as well."""
    if stream.duration is not None:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6  # of Matroska's writers some count from the first frame, some from zero
    return None
