"""A small U-Net for frames on a CPU: patches of pixels in and out, one block a level and way, skips that are added."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.nn.unet import ResidualBlock


class PatchUNet(nn.Module):
    """Down and up again over patches; every place of the finest level has a learned embedding, so that places differ.

    Beside `UNet` it costs a third: the first convolution sees one patch only, skips are added, a level has one block each way.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        size: side of the frames, pixels.
        condition: size of a condition.
        widths: channels of each level; every level but the first has half the sides of the one before.
        patch: side of a patch, pixels.

    Raises:
        ValueError: the frames cannot be cut into patches and halved that often.
    """

    def __init__(self, inputs: int, outputs: int, *, size: int, condition: int, widths: Sequence[int], patch: int):
        super().__init__()
        self.patch, shrinks = patch, patch * 2 ** (len(widths) - 1)
        if size % shrinks:
            raise ValueError(f"size must be a multiple of {shrinks} (patch and levels), got {size}")
        self.first = nn.Conv2d(inputs * patch**2, widths[0], 1)
        self.place = nn.Parameter(torch.zeros(1, widths[0], size // patch, size // patch))
        self.down = nn.ModuleList([ResidualBlock(w, w, condition) for w in widths])
        self.up = nn.ModuleList([ResidualBlock(w, w, condition) for w in widths])
        self.middle = ResidualBlock(widths[-1], widths[-1], condition, attention=True)
        steps = list(pairwise(widths))
        self.halves = nn.ModuleList([nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in steps])
        self.doubles = nn.ModuleList([nn.Conv2d(b, a, 1) for a, b in steps])
        self.norm = nn.GroupNorm(1, widths[0])
        self.last = nn.Conv2d(widths[0], outputs * patch**2, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b d h w"]:
        """One pass."""
        x = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        x, condition, kept = self.first(x) + self.place, F.silu(condition), []
        for i, block in enumerate(self.down):
            x = block(self.halves[i - 1](x) if i else x, condition)
            kept.append(x)
        x = self.middle(x, condition)
        for i, block in reversed(list(enumerate(self.up))):
            x = block(x + kept.pop(), condition)
            x = F.interpolate(self.doubles[i - 1](x), scale_factor=2.0) if i else x
        return F.pixel_shuffle(self.last(F.silu(self.norm(x))), self.patch)
