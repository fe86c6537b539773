"""Augmentations that change colours and leave things where they are: greyscale, jitter, random convolution, overlay."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad
from torchvision.transforms.v2.functional import rgb_to_grayscale

from dreamloom.datasets.augment_base import Augmentation, Drawn, as_pictures, uniform, whole
from dreamloom.datasets.media import PICTURES, find_pictures
from dreamloom.datasets.pictures import decode_picture


class Greyscale(Augmentation):
    """Takes the colours away.

    Args:
        p: chance of a picture.
    """

    def __init__(self, p: float = 1.0):
        super().__init__()
        self.p = p

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        return {"grey": uniform((batch,), 0.0, 1.0, generator, device) < self.p}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        pictures, _ = as_pictures(frames)
        grey = rgb_to_grayscale(pictures, num_output_channels=3)
        return torch.where(drawn["grey"].view(-1, 1, 1, 1), grey.reshape(frames.shape), frames)


class ColourJitter(Augmentation):
    """Brightness, contrast, saturation and hue (Laskin et al. 2020), each picture by factors of its own.

    torchvision's functions take one factor for a whole batch, so these are written out.

    Args:
        brightness: the factor is drawn from 1 - brightness to 1 + brightness.
        contrast: likewise.
        saturation: likewise.
        hue: greatest turn of the hue to either side, where 1 is once round.
    """

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.5):
        super().__init__()
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": 2 * hue}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is out of range: brightness, contrast and saturation are 0 to 1, hue is 0 to 0.5")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        spread = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}
        drawn = {name: uniform((batch,), 1 - value, 1 + value, generator, device) for name, value in spread.items()}
        return {**drawn, "hue": uniform((batch,), -self.hue, self.hue, generator, device)}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        x, _ = as_pictures(frames.contiguous())  # a colour in one piece: frames are kept pixel by pixel
        factor = {name: value.view(-1, 1, 1, 1, 1).to(x.dtype) for name, value in drawn.items()}
        x = (x * factor["brightness"]).clamp_(0, 1)
        mean = rgb_to_grayscale(x).mean(dim=(-3, -2, -1), keepdim=True)
        x = (x - mean).mul_(factor["contrast"]).add_(mean).clamp_(0, 1)
        grey = rgb_to_grayscale(x)
        x = (x - grey).mul_(factor["saturation"]).add_(grey).clamp_(0, 1)
        return _turned(x, factor["hue"].squeeze(2)).reshape(frames.shape)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue of RGB pictures (b k 3 h w) by a share of a whole turn."""
    r, g, b = x.unbind(2)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    # Masks as numbers: products are many times as fast as `where` on a CPU.
    red = (high == r).to(x.dtype)
    green = (high == g).to(x.dtype) * (1 - red)
    blue = 1 - red - green
    apart = red * (g - b) + green * (b - r) + blue * (r - g)
    sixth = apart / chroma.clamp(min=1e-12) + (2 * green + 4 * blue + 6 * turn)  # where all are equal, chroma hides it
    out = torch.empty_like(x)
    # The three channels of a hue are one trapezoid, at offsets 5, 3 and 1 (in sixths of a turn); frac wants what is positive.
    for channel, offset in zip(out.unbind(2), (5, 3, 1), strict=True):
        k = ((sixth + (offset + 6)) / 6).frac_().mul_(6)
        torch.sub(high, torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma), out=channel)
    return out


class RandomConvolution(Augmentation):
    """A random 3 x 3 convolution of the colours, a new one for each picture (Lee et al. 2020).

    A sigmoid brings its values back into [0, 1], as in the DMControl generalisation benchmark (Hansen and Wang 2021).
    """

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        std = (2 / (27 + 27)) ** 0.5  # Glorot's, for 3 x 3 x 3 numbers in and out
        kernel = torch.randn(batch, 3, 3, 3, 3, generator=generator, device=generator.device)
        return {"kernel": std * kernel.to(device)}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        b, c = frames.shape[:2]
        _, stack = as_pictures(frames)
        kernel = drawn["kernel"].repeat_interleave(stack, dim=0).flatten(0, 1).to(frames.dtype)
        padded = pad(frames, (1, 1, 1, 1), mode="replicate")
        out = conv2d(rearrange(padded, "b c h w -> 1 (b c) h w"), kernel, groups=b * stack)
        return torch.sigmoid(rearrange(out, "1 (b c) h w -> b c h w", b=b, c=c))


class Overlay(Augmentation):
    """Lays another picture over the frame (Hansen and Wang 2021): one of a folder's, or a random cloud of colours.

    Args:
        strength: share of the other picture, drawn from 0 to this.
        path: a folder of pictures; None for clouds.
        cells: along each side of a cloud; fewer are smoother.

    Raises:
        ValueError: the folder holds no picture.
    """

    def __init__(self, strength: float = 0.5, path: str | None = None, cells: int = 6):
        super().__init__()
        if not 0 <= strength <= 1 or cells < 1:
            raise ValueError(f"expected a strength of 0 to 1 and at least 1 cell, got {strength} and {cells}")
        self.strength, self.cells = strength, cells
        self.files = find_pictures(Path(path)) if path else []
        if path and not self.files:
            raise ValueError(f"{path}: no picture is in it ({', '.join(sorted(PICTURES))})")
        self._loaded: dict[tuple[int, int], Tensor] = {}

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        drawn = {"share": uniform((batch,), 0.0, self.strength, generator, device)}
        if self.files:
            return {**drawn, "picture": whole((batch,), 0, len(self.files), generator, device)}
        return {**drawn, "cloud": uniform((batch, 3, self.cells, self.cells), 0.0, 1.0, generator, device)}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        size = (frames.shape[2], frames.shape[3])
        if "picture" in drawn:
            other = self._pictures(size, frames.device)[drawn["picture"]].to(frames.dtype) / 255
        else:
            other = interpolate(drawn["cloud"].to(frames.dtype), size, mode="bicubic", align_corners=False).clamp(0, 1)
        other = other.repeat(1, frames.shape[1] // 3, 1, 1)
        return torch.lerp(frames, other, drawn["share"].view(-1, 1, 1, 1).to(frames.dtype))

    def _pictures(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """All pictures (n 3 h w) uint8 at this size, kept on the device of their last use."""
        if size not in self._loaded:
            arrays = [np.asarray(Image.fromarray(decode_picture(file)).resize(size[::-1])) for file in self.files]
            self._loaded[size] = rearrange(torch.from_numpy(np.stack(arrays)), "n h w c -> n c h w")
        self._loaded[size] = self._loaded[size].to(device)
        return self._loaded[size]
