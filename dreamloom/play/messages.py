"""What crosses the socket. JSON asks and tells; pictures travel as a 20-byte header and raw RGB rows.

Everything that comes from a client is checked here, before anything else of the program sees it.
"""

import io
import struct
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dreamloom.datasets.pictures import FORMATS, PictureError, TooManyPixelsError, decode_picture
from dreamloom.play.gauge import UNKNOWN

FRAME, THUMBNAIL, PROMPT = 1, 2, 3
HEADER = struct.Struct("<BBHHHIIf")  # kind, doubt, index, width, height, sequence number, input id, model milliseconds

Id = Annotated[int, Field(ge=0, lt=2**32)]


class Message(BaseModel):
    """A client's message: exactly these keys, exactly these types, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Hold(Message):
    """A key went down; its action is repeated every frame until `release`. `id` comes back with the first frame of it."""

    type: Literal["hold"]
    action: int
    id: Id


class Release(Message):
    """No key is held any more."""

    type: Literal["release"]


class Step(Message):
    """One single frame; without an action the idle one, else the last one taken."""

    type: Literal["step"]
    action: int | None = None
    id: Id


class Pause(Message):
    """Stop or go on. While paused every key press is one frame."""

    type: Literal["pause"]
    on: bool


class Reset(Message):
    """Start again from the same picture."""

    type: Literal["reset"]


class Start(Message):
    """Start from a picture of the gallery."""

    type: Literal["start"]
    prompt: int


class Settings(Message):
    """How frames are drawn; None is the world's own default. The seed counts from the next reset on.

    `idle`: whether the world goes on by its idle action while no key is held.
    """

    type: Literal["settings"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    fps: Annotated[float, Field(ge=1, le=60)]
    steps: Annotated[int, Field(ge=1, le=32)] | None = None
    temperature: Annotated[float, Field(ge=0, le=4)] | None = None
    idle: bool | None = None


class Mode(Message):
    """Real game or dream. A dream that follows the real game goes on from what was last seen there."""

    type: Literal["mode"]
    real: bool


class Record(Message):
    """Start a new recording, or end it."""

    type: Literal["record"]
    on: bool


Any_ = Annotated[Hold | Release | Step | Pause | Reset | Start | Settings | Mode | Record, Field(discriminator="type")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Any_)


def read_message(text: str) -> Message:
    """Reads a client's JSON.

    Raises:
        ValueError: it is not one of the messages above; says which key and why.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "message"
        raise ValueError(f"{where}: {first['msg'][:200]}") from None


def read_picture(data: bytes, *, width: int, height: int, max_pixels: int) -> np.ndarray:
    """Reads a client's picture, cut from its centre to the world's shape and resized.

    The size is checked in the picture's header, before its pixels are unpacked.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: it is no picture of a known format, is damaged, or has more than `max_pixels` pixels.
    """
    try:
        rgb = decode_picture(io.BytesIO(data), max_pixels=max_pixels, at_least=max(width, height))
    except TooManyPixelsError as error:
        raise ValueError(f"the picture has {error.reason}") from None
    except PictureError:
        raise ValueError(f"that is no readable picture; send one of {', '.join(FORMATS)}") from None
    return np.array(ImageOps.fit(Image.fromarray(rgb), (width, height), Image.Resampling.LANCZOS))


def pack_picture(
    kind: int,
    rgb: np.ndarray,
    *,
    index: int = 0,
    doubt: int = UNKNOWN,
    sequence: int = 0,
    stamp: int = 0,
    model_ms: float = 0.0,
) -> bytes:
    """One binary message: header and the (h, w, 3) uint8 rows."""
    height, width, _ = rgb.shape
    return HEADER.pack(kind, doubt, index, width, height, sequence, stamp, model_ms) + rgb.tobytes()


def unpack_picture(data: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The inverse of `pack_picture`, for clients in Python: (header fields, (h, w, 3) uint8)."""
    names = ("kind", "doubt", "index", "width", "height", "sequence", "stamp", "model_ms")
    header = dict(zip(names, HEADER.unpack_from(data), strict=True))
    height, width = header.pop("height"), header.pop("width")
    return header, np.frombuffer(data, np.uint8, offset=HEADER.size).reshape(height, width, 3)
