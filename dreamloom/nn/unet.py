"""A U-Net whose blocks follow a condition by adaptive group norm, in the shape of DIAMOND's (Alonso et al. 2024, appendix D).

Attention is in the middle only, as there. With `fold` the network works on patches of pixels, which halves its sides.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dreamloom.nn.attention import Attention
from dreamloom.nn.build import Buildable

_HEAD = 8  # channels of an attention head


def _groups(channels: int) -> int:
    """Groups of a norm: of at least 32 channels each, where there are so many."""
    return max(n for n in range(1, max(1, channels // 32) + 1) if channels % n == 0)


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift are read from a condition."""

    def __init__(self, channels: int, condition: int):
        super().__init__()
        self.norm = nn.GroupNorm(_groups(channels), channels, affine=False)
        self.modulation = nn.Linear(condition, 2 * channels)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b c h w"]:
        """One norm."""
        scale, shift = rearrange(self.modulation(condition), "b (two c) -> two b c 1 1", two=2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class ResidualBlock(nn.Module):
    """x + two times (norm, SiLU, 3 x 3 convolution), then attention where it is asked for; new convolutions add nothing."""

    def __init__(self, before: int, after: int, condition: int, *, attention: bool = False):
        super().__init__()
        self.norms = nn.ModuleList([AdaptiveNorm(before, condition), AdaptiveNorm(after, condition)])
        self.convolutions = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1), nn.Conv2d(after, after, 3, padding=1)])
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)
        self.attention = Attention(after, max(1, after // _HEAD)) if attention else None
        for parameter in self.convolutions[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b d h w"]:
        """One block."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(F.silu(norm(h, condition)))
        x = self.skip(x) + h
        if self.attention is None:
            return x
        tokens = rearrange(x, "b c h w -> b (h w) c")
        mixed = self.attention(F.layer_norm(tokens, tokens.shape[-1:]))
        return x + rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2])


class UNet(nn.Module, Buildable):
    """Down, through the middle, and up again, each block of the way up joined by one of the way down.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        condition: size of a condition.
        widths: channels of each level; every level but the first has half the sides of the one before.
        depth: blocks a level on the way down; one more on the way up.
        fold: side of the patches of pixels that are put into the channels of one.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        condition: int = 256,
        widths: Sequence[int] = (64, 64, 64, 64),
        depth: int = 2,
        fold: int = 1,
    ):
        super().__init__()
        self.fold, self.shrinks = fold, fold * 2 ** (len(widths) - 1)
        self.first = nn.Conv2d(inputs * fold**2, widths[0], 3, padding=1)
        self.down, self.up, self.halves, self.doubles = (nn.ModuleList() for _ in range(4))
        for i, width in enumerate(widths):
            outer = widths[max(0, i - 1)]
            joined = [width] * depth + [outer]  # what the blocks of the way up are joined by
            self.down.append(nn.ModuleList([ResidualBlock(a, width, condition) for a in [outer, *[width] * (depth - 1)]]))
            self.up.append(
                nn.ModuleList(
                    [ResidualBlock(width + a, width if j < depth else outer, condition) for j, a in enumerate(joined)]
                )
            )
            if i:
                self.halves.append(nn.Conv2d(outer, outer, 3, stride=2, padding=1))
                self.doubles.append(nn.Conv2d(outer, outer, 3, padding=1))
        middle = widths[-1]
        self.middle = nn.ModuleList([ResidualBlock(middle, middle, condition, attention=True) for _ in range(2)])
        self.norm = nn.GroupNorm(_groups(widths[0]), widths[0])
        self.last = nn.Conv2d(widths[0], outputs * fold**2, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"]) -> Float[Tensor, "b d h w"]:
        """Height and width must be multiples of `shrinks`."""
        x = F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last)
        x, condition, kept = self.first(x), F.silu(condition), []
        for i, blocks in enumerate(self.down):
            x = self.halves[i - 1](x) if i else x
            kept.append(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
                kept.append(x)
        for block in self.middle:
            x = block(x, condition)
        for i, blocks in reversed(list(enumerate(self.up))):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(torch.cat([x, kept.pop()], 1), condition)
            x = self.doubles[i - 1](F.interpolate(x, scale_factor=2.0)) if i else x
        return F.pixel_shuffle(self.last(F.silu(self.norm(x))), self.fold)
