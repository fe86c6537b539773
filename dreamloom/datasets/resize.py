"""Pictures of any shape to small squares."""

from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

Crop = Literal["center", "top", "stretch", "pad"]
_FILTER = Image.Resampling.BILINEAR  # Pillow widens it when it shrinks, so nothing aliases; it does not ring


def square(picture: UInt8[np.ndarray, "h w 3"], size: int, crop: Crop) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales an RGB picture to size x size.

    Args:
        picture: any height and width.
        size: side of the result in pixels.
        crop: what happens to a picture that is no square: its middle is kept, or its upper end (where it is wider than
            high, the middle), it is stretched, or it gets black bars.

    Raises:
        ValueError: an unknown crop.
    """
    if crop not in get_args(Crop):
        raise ValueError(f"unknown crop {crop!r}: choose from {', '.join(get_args(Crop))}")
    height, width = picture.shape[:2]
    side, sides = min(height, width), (size, size)
    top, left = (height - side) // 2 if crop == "center" else 0, (width - side) // 2
    if crop in ("center", "top"):
        picture = picture[top : top + side, left : left + side]
    image = Image.fromarray(picture)
    return np.asarray(ImageOps.pad(image, sides, _FILTER) if crop == "pad" else image.resize(sides, _FILTER))
