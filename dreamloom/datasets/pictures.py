"""Pictures as people see them: every still and every animation that comes from outside is decoded here.

Turned upright (EXIF), 16 bits a value scaled to 8, transparency laid on black, CMYK and grey converted to RGB.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from dreamloom.datasets.reading import special

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a gibibyte of RGB
_BLACK = (0, 0, 0, 255)  # under what is transparent; video players and the bars of --crop pad have the same
_SHORTEST = 0.01  # seconds that a frame may ask for; browsers show such a frame, and one that asks for less, for .1 s

Source = str | Path | BufferedReader | BytesIO


class PictureError(ValueError):
    """A file that is no picture of a known format, or a damaged one.

    Args:
        name: of the file.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


class TooManyPixelsError(PictureError):
    """A picture whose header promises more pixels than are allowed."""


def decode_picture(source: Source, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one picture; of an animation its first frame.

    Args:
        source: a file (regular, or a link to one), or its bytes as a binary stream.
        max_pixels: more are refused by the header, before anything is unpacked.
        at_least: a JPEG may be unpacked at an eighth of its size or more, as long as both sides keep this many pixels.

    Raises:
        PictureError: not a picture of a known format, damaged, too large, or a file that cannot be opened or is
            not regular; the file is named.
    """
    with _opened(source, max_pixels) as image:
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        return _as_seen(image)


def decode_animation(source: Source, *, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[np.ndarray, float]]:
    """Every frame of a GIF, WebP or PNG, each with the seconds that it is shown.

    Raises:
        PictureError: as `decode_picture`, or cut off.
    """
    with _opened(source, max_pixels) as image:
        if image.format == "GIF":
            _require_end_of_gif(image.fp, str(source))  # type: ignore[attr-defined]  # every file of Pillow's has it
        # The picture of an animated PNG for programs that know no animation need not be part of it.
        first = int(getattr(image, "default_image", False))
        for index in range(first, getattr(image, "n_frames", 1)):
            image.seek(index)
            picture = _as_seen(image)  # which loads it; a WebP tells the duration only then
            seconds = image.info.get("duration", 0) / 1000
            yield picture, seconds if seconds > _SHORTEST else 0.1


def is_picture(path: Path) -> bool:
    """Whether a file's content is one of the known formats, whatever its name."""
    return _frames(path) > 0


def is_animated(path: Path) -> bool:
    """Whether a file holds several frames of one scene: GIF, animated WebP or PNG, whatever its name."""
    return _frames(path) > 1


def flatten(picture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a picture with transparency on black."""
    return np.asarray(_on_black(Image.fromarray(picture, "RGBA")))


def _frames(path: Path) -> int:
    try:
        with _opened(path, MAX_PIXELS) as image:
            # A camera's JPEG may hold previews or a second eye's view as further "frames".
            return getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP") else 1
    except TooManyPixelsError:
        return 1
    except PictureError:
        return 0


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[Image.Image]:
    """An opened picture. Whatever the damage leads to, here or in the body, becomes a `PictureError`."""
    path = source if isinstance(source, str | Path) else None
    name = "the picture" if path is None else str(path)
    try:
        mode = os.stat(path).st_mode if path is not None else stat.S_IFREG
        if not stat.S_ISREG(mode):  # a pipe would block
            raise PictureError(name, f"is {special(mode)}, expected a file")
        with _open_header(source) as image:
            pixels = image.width * image.height
            if not 0 < pixels <= max_pixels:
                raise TooManyPixelsError(name, f"{pixels:,} pixels; at most {max_pixels:,} are allowed")
            yield image
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(name, str(error)) from error
    # Pillow's decoders raise SyntaxError, struct.error, zlib.error, EOFError, ... besides OSError.
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # the system's, not a decoder's
            raise PictureError(name, error.strerror or str(error)) from error
        unknown = isinstance(error, Image.UnidentifiedImageError)
        what = "not a picture" if unknown else f"damaged ({str(error) or type(error).__name__})"
        raise PictureError(name, f"{what}; expected one of {', '.join(FORMATS)}") from error


def _open_header(source: Source) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we refuse where Pillow only warns
        return Image.open(source, formats=FORMATS)


def _require_end_of_gif(file: BufferedReader | BytesIO, name: str) -> None:
    """A GIF has no length to check; it ends in a semicolon, which some writers follow by zeros."""
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    if not file.read().rstrip(b"\0").endswith(b";"):
        raise PictureError(name, "cut off before the end of the GIF")
    file.seek(place)


def _as_seen(image: Image.Image) -> np.ndarray:
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image
    if upright.mode.startswith("I"):  # a PNG's 16 bits of grey: "I;16", and "I" in older Pillows
        return _from_16_bits(np.asarray(upright), upright.info.get("transparency"))
    if upright.has_transparency_data:
        return np.asarray(_on_black(upright))
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _from_16_bits(grey: np.ndarray, transparent: int | None) -> np.ndarray:
    high = np.where(grey == transparent, 0, grey >> 8) if transparent is not None else grey >> 8
    return np.repeat(high.astype(np.uint8)[..., None], 3, axis=2)


def _on_black(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, _BLACK)
    ground.alpha_composite(image.convert("RGBA"))
    return ground.convert("RGB")
