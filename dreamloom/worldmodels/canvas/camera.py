"""Where the camera goes next: a small network that looks at the last frames, at its last moves and at the actions."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

Logits = tuple[Float[Tensor, "b m"], Float[Tensor, "b m"]]


class Camera(nn.Module):
    """Classifies the next shift (down, right), each from -reach to reach pixels.

    Args:
        channels: of the frames it sees, all in one.
        size: side of the frames, pixels.
        condition: size of the embedding of moves and actions.
        reach: largest shift, pixels.
        width: channels of the first level.
        patch: side of the patches of pixels that it sees as one.
    """

    def __init__(self, channels: int, *, size: int, condition: int, reach: int, width: int = 32, patch: int = 4):
        super().__init__()
        self.reach, self.patch = reach, patch
        side, levels = size // patch, []
        for i in range(3):
            levels += [nn.Conv2d(width * (i + 1), width * (i + 2), 3, stride=2, padding=1), nn.SiLU()]
            side = -(-side // 2)
        self.first = nn.Conv2d(channels * patch**2, width, 1)
        self.levels = nn.Sequential(*levels)
        self.mix = nn.Sequential(nn.Linear(4 * width * side**2 + condition, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU())
        self.out = nn.Linear(256, 2 * (2 * reach + 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, seen: Float[Tensor, "b c h w"], condition: Float[Tensor, "b k"]) -> Logits:
        """Logits of the shift down and of the shift right."""
        x = F.pixel_unshuffle(seen, self.patch).contiguous(memory_format=torch.channels_last)
        x = self.levels(F.silu(self.first(x)))
        down, right = self.out(self.mix(torch.cat([x.flatten(1), condition], 1))).chunk(2, 1)
        return down, right

    def loss(self, logits: Logits, shifts: Int[Tensor, "b 2"]) -> Float[Tensor, ""]:
        """Cross-entropy, in nats."""
        targets = shifts.clamp(-self.reach, self.reach) + self.reach
        return torch.stack([F.cross_entropy(one.float(), targets[:, i]) for i, one in enumerate(logits)]).sum()

    def choose(self, logits: Logits, carried: Float[Tensor, "b 2"]) -> tuple[Int[Tensor, "b 2"], Float[Tensor, "b 2"]]:
        """The likeliest shift, to a fraction of a pixel: the mean around it. Whole pixels are taken, the rest is carried on."""
        chosen = torch.stack([self._around_mode(one.float()) for one in logits], 1) + carried
        whole = chosen.round()
        return whole.long(), chosen - whole

    def _around_mode(self, logits: Float[Tensor, "b m"]) -> Float[Tensor, "b"]:
        offsets = torch.arange(-self.reach, self.reach + 1, device=logits.device)
        near = (offsets - offsets[logits.argmax(1)][:, None]).abs() <= 1
        shares = logits.masked_fill(~near, -torch.inf).softmax(1)
        return (shares * rearrange(offsets, "m -> 1 m")).sum(1)
