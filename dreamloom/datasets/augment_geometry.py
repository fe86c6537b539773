"""Augmentations that move or hide parts of a picture: crop, shift, flip, rotation, cutout."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample
from torchvision.transforms.v2.functional import horizontal_flip

from dreamloom.datasets.augment_base import Augmentation, Drawn, Moved, Names, uniform, whole

_KEEPS_DIRECTION = 22.5  # degrees; beyond them a direction lies nearer to a neighbour among the eight


class Shift(Augmentation):
    """Random shift (DrQ; Kostrikov et al. 2021): pad by repeating the border, then crop to the old size.

    Args:
        pad: pixels on each side.
    """

    def __init__(self, pad: int = 4):
        super().__init__()
        if pad < 0:
            raise ValueError(f"pad must not be negative, got {pad}")
        self.pad = pad

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        return {"shift": whole((batch, 2), -self.pad, self.pad + 1, generator, device)}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        # With its columns padded, each row of the result is one run of numbers in memory; channels last, as frames are kept.
        b, c, h, w = frames.shape
        pixels = frames.permute(0, 2, 3, 1)
        edges = (pixels[:, :, :1].expand(b, h, self.pad, c), pixels[:, :, -1:].expand(b, h, self.pad, c))
        padded = torch.cat([edges[0], pixels, edges[1]], 2)
        rows = (torch.arange(h, device=frames.device) + drawn["shift"][:, :1]).clamp(0, h - 1)
        rows = rows + h * torch.arange(b, device=frames.device)[:, None]
        starts = (rows * (w + 2 * self.pad) + self.pad + drawn["shift"][:, 1:]) * c
        runs = padded.as_strided((padded.numel() - w * c + 1, w * c), (1, 1))
        return runs.index_select(0, starts.flatten()).view(b, h, w, c).permute(0, 3, 1, 2)


class Crop(Shift):
    """UCB-DrAC's crop (Raileanu et al. 2021): a shift by up to 12 of 64 pixels."""

    def __init__(self, pad: int = 12):
        super().__init__(pad)


class Flip(Moved):
    """Mirrors left and right.

    Args:
        p: chance of a picture.
        action_names: see `Moved`; left and right change places.
    """

    def __init__(self, p: float = 0.5, action_names: Names = None):
        super().__init__(action_names)
        self.p = p

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        return {"flip": uniform((batch,), 0.0, 1.0, generator, device) < self.p}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        return torch.where(drawn["flip"].view(-1, 1, 1, 1), horizontal_flip(frames), frames)

    def actions(self, actions: Tensor, drawn: Drawn) -> Tensor:
        return self._renamed(actions, drawn["flip"].long(), [lambda x, y: (x, y), lambda x, y: (-x, y)])


class Rotation(Moved):
    """Turns the picture: by quarter turns (UCB-DrAC), or by any angle up to some degrees.

    Up to 22.5 degrees every action keeps its meaning. Quarter turns rename the directions; that is the truth on a picture seen
    from above, and not where something falls down.

    Args:
        degrees: greatest angle to either side; None for quarter turns of square pictures.
        action_names: see `Moved`.

    Raises:
        ValueError: an angle for which there is no rule.
    """

    def __init__(self, degrees: float | None = None, action_names: Names = None):
        super().__init__(action_names)
        if degrees is not None and not 0 <= degrees <= _KEEPS_DIRECTION:
            raise ValueError(f"degrees must be 0 to {_KEEPS_DIRECTION}, or None for quarter turns, got {degrees}")
        self.degrees = degrees

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        if self.degrees is not None:
            return {"angle": uniform((batch,), -self.degrees, self.degrees, generator, device)}
        if size[0] != size[1]:
            raise ValueError(f"Rotation by quarter turns needs square pictures, these are {size[0]} x {size[1]}")
        return {"turns": whole((batch,), 0, 4, generator, device)}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        if "turns" in drawn:
            turns = drawn["turns"].view(-1, 1, 1, 1)
            frames = torch.where(turns % 2 == 1, frames.rot90(1, (2, 3)), frames)  # counter-clockwise
            return torch.where(turns >= 2, frames.flip(2, 3), frames)
        angle = torch.deg2rad(drawn["angle"])
        zero, ratio = torch.zeros_like(angle), frames.shape[2] / frames.shape[3]
        rows = [torch.cos(angle), -torch.sin(angle) * ratio, zero, torch.sin(angle) / ratio, torch.cos(angle), zero]
        grid = affine_grid(rearrange(torch.stack(rows, 1), "b (i j) -> b i j", i=2), list(frames.shape), align_corners=False)
        return grid_sample(frames, grid.to(frames.dtype), padding_mode="border", align_corners=False).clamp(0, 1)

    def actions(self, actions: Tensor, drawn: Drawn) -> Tensor:
        if "turns" not in drawn:
            return actions
        turns = [lambda x, y: (x, y), lambda x, y: (-y, x), lambda x, y: (-x, -y), lambda x, y: (y, -x)]
        return self._renamed(actions, drawn["turns"], turns)


class Cutout(Augmentation):
    """A black box at a random place (Cobbe et al. 2019).

    Args:
        smallest: side of the box, as a share of the picture's.
        largest: likewise.
    """

    def __init__(self, smallest: float = 0.11, largest: float = 0.34):
        super().__init__()
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"expected 0 < smallest <= largest <= 1, got {smallest} and {largest}")
        self.smallest, self.largest = smallest, largest

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        share = uniform((batch, 2), self.smallest, self.largest, generator, device)
        place = uniform((batch, 2), 0.0, 1.0, generator, device) * (1 - share)
        box, corner = (torch.stack([side[:, 0] * size[0], side[:, 1] * size[1]], 1) for side in (share, place))
        return {"corner": corner, "box": box}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        return torch.where(_inside(frames, drawn), self._filling(frames, drawn), frames)

    def _filling(self, frames: Tensor, drawn: Drawn) -> Tensor:
        return frames.new_zeros(())


class ColourCutout(Cutout):
    """A box of one random colour at a random place (Raileanu et al. 2021)."""

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        box = super().draw(batch, generator, device=device, size=size)
        return {**box, "colour": uniform((batch, 3), 0.0, 1.0, generator, device)}

    def _filling(self, frames: Tensor, drawn: Drawn) -> Tensor:
        return drawn["colour"].repeat(1, frames.shape[1] // 3)[:, :, None, None].to(frames.dtype)


def _inside(frames: Tensor, drawn: Drawn) -> Tensor:
    """(b, 1, h, w): which pixels are in the box."""
    low, high = drawn["corner"], drawn["corner"] + drawn["box"]

    def within(axis: int) -> Tensor:
        places = torch.arange(frames.shape[2 + axis], device=frames.device) + 0.5
        return (places >= low[:, axis, None]) & (places < high[:, axis, None])

    return within(0)[:, None, :, None] & within(1)[:, None, None, :]
