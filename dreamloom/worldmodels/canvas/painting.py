"""A canvas larger than a frame, on which everything stays that the camera has seen."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Int, UInt8
from torch import Tensor

Frames = UInt8[Tensor, "b c h w"]


@dataclass(frozen=True)
class Canvas:
    """What b worlds have shown so far, and where their cameras are.

    Attributes:
        pixels: (b, s, s, c + 1) uint8, colours and a mark, which is 0 where nothing has been painted.
        corner: (b, 2) the first row and column of the camera's view.
    """

    pixels: UInt8[Tensor, "b s s d"]
    corner: Int[Tensor, "b 2"]

    @classmethod
    def blank(cls, b: int, channels: int, frame: int, side: int, device: torch.device) -> "Canvas":
        """An empty canvas of `side` pixels, the camera with its square view of `frame` pixels in the middle."""
        pixels = torch.zeros(b, side, side, channels + 1, dtype=torch.uint8, device=device)
        return cls(pixels, torch.full((b, 2), (side - frame) // 2, device=device))

    def moved(self, shifts: Int[Tensor, "b 2"], frame: int) -> "Canvas":
        """The camera goes on by `shifts`; where it would leave the canvas, the canvas goes along and forgets its far edge."""
        corner = self.corner + shifts
        beyond = corner - corner.clamp(0, self.pixels.shape[1] - frame)
        if not beyond.any():
            return Canvas(self.pixels, corner)
        pixels = torch.stack([_rolled(one, *by) for one, by in zip(self.pixels, beyond.tolist(), strict=True)])
        return Canvas(pixels, corner - beyond)

    def view(self, frame: int) -> tuple[Frames, UInt8[Tensor, "b 1 h w"]]:
        """What the canvas has where the camera is: colours and marks."""
        places = zip(self.pixels, self.corner.tolist(), strict=True)
        seen = rearrange(torch.stack([one[y : y + frame, x : x + frame] for one, (y, x) in places]), "b h w d -> b d h w")
        return seen[:, :-1], seen[:, -1:]

    def painted(self, frames: Frames, marks: UInt8[Tensor, "b 1 h w"] | None = None) -> "Canvas":
        """The canvas with frames painted where the cameras are, and marks with them, 255 by default."""
        pixels, size = self.pixels.clone(), frames.shape[-1]
        marks = torch.full_like(frames[:, :1], 255) if marks is None else marks
        painted = rearrange(torch.cat([frames, marks], 1), "b d h w -> b h w d")
        for one, new, (y, x) in zip(pixels, painted, self.corner.tolist(), strict=True):
            one[y : y + size, x : x + size] = new
        return Canvas(pixels, self.corner)


def _rolled(pixels: Tensor, down: int, right: int) -> Tensor:
    """What a canvas holds after it went along with the camera: nothing where it has not been."""
    out, side = torch.zeros_like(pixels), pixels.shape[0]
    to_rows, of_rows = _overlap(down, side)
    to_columns, of_columns = _overlap(right, side)
    out[to_rows, to_columns] = pixels[of_rows, of_columns]
    return out


def _overlap(by: int, side: int) -> tuple[slice, slice]:
    return slice(max(0, -by), min(side, side - by)), slice(max(0, by), min(side, side + by))
