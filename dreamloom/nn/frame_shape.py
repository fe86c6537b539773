"""Frames must have the size that a model was made for: every model that sees frames says which in `frame_shape`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

Shape = tuple[int, int, int]  # c, h, w


def require_frames(frames: Tensor, model: Any) -> None:
    """Frames (..., c, h, w) are of a model's size.

    Raises:
        ValueError: they are not.
    """
    require_shape(frames.shape[-3:], model)


def require_shape(seen: Sequence[int], model: Any, where: str = "") -> None:
    """The shape of frames, (c, h, w), is that of a model.

    Args:
        seen: of the frames.
        model: what has a `frame_shape`.
        where: the frames come from, for the message.

    Raises:
        ValueError: it is not.
    """
    wanted = model.frame_shape
    if tuple(seen) != tuple(wanted):
        told = f"{where}: frames" if where else "frames"
        remedy = "collect or resize the data at that size, or set the model's size"
        raise ValueError(f"{told} are {_text(seen)}, the {type(model).__name__} takes {_text(wanted)}; {remedy}")


def require_shape_of_parts(seen: Sequence[int], module: nn.Module, where: str) -> None:
    """Like `require_shape`, for all parts of a module that see frames."""
    for part in module.modules():
        if getattr(part, "frame_shape", None) is not None:
            require_shape(seen, part, where)


def _text(shape: Sequence[int]) -> str:
    """Height, width and, where there are not three, channels."""
    c, h, w = shape
    return f"{h}x{w}" if c == 3 else f"{h}x{w} of {c} channels"
