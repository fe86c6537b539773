"""The network under a transition diffusion: SynthER's residual MLP (Lu et al. 2023, appendix), with an input for conditions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dreamloom.nn.build import Buildable


class ResidualBlock(nn.Module):
    """x + Linear(relu(x))."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """One block."""
        return x + self.linear(functional.relu(x))


class NoiseEmbedding(nn.Module):
    """Random Fourier features of the noise label, which is also kept as it is, then Linear, SiLU, Linear."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 16):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(features // 2))
        self.mlp = nn.Sequential(nn.Linear(features + 1, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, label: Float[Tensor, "*b"]) -> Float[Tensor, "*b d"]:
        """Embeds labels; a scalar gives one vector for all rows."""
        phase = 2 * math.pi * label[..., None] * self.frequencies
        return self.mlp(torch.cat([label[..., None], phase.sin(), phase.cos()], -1))


class ResidualMLP(nn.Module, Buildable):
    """The input projected to the embedding's width, plus the embedding of the noise label, through residual blocks.

    Args:
        size: columns of a row.
        condition: features of a condition; 0 for none.
        width: of the blocks (SynthER: 2048, or 1024).
        depth: number of blocks.
        embedding: width of the noise embedding and of the projected input.
    """

    def __init__(self, size: int, *, condition: int = 0, width: int = 1024, depth: int = 6, embedding: int = 128):
        super().__init__()
        self.project = nn.Linear(size, embedding)
        self.condition = nn.Linear(condition, embedding, bias=False) if condition else None
        self.noise = NoiseEmbedding(embedding)
        self.blocks = nn.Sequential(nn.Linear(embedding, width), *(ResidualBlock(width) for _ in range(depth)), nn.ReLU())
        self.head = nn.Linear(width, size)

    def forward(
        self, x: Float[Tensor, "b d"], label: Float[Tensor, "*b"], condition: Float[Tensor, "b c"] | None = None
    ) -> Float[Tensor, "b d"]:
        """F(x; label) of equation 7 in Karras et al. 2022; `label` is c_noise, (b,) or a scalar."""
        hidden = self.project(x) + self.noise(label)
        if self.condition is not None:
            assert condition is not None, "this network was built with a condition"
            hidden = hidden + self.condition(condition)
        return self.head(self.blocks(hidden))
