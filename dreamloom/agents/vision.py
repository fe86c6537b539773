"""What agents look at frames with: an encoder for each seed that learns with its agent, or frozen latents of one that has."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dreamloom.nn.build import Buildable
from dreamloom.nn.encoders import Encoder, reset_layers

if TYPE_CHECKING:
    from dreamloom.agents.agent import Agent

Combination = Literal["sum", "concatenation"]
_CHUNK = 1024  # frames that are encoded at once where no gradient is asked for


def to_unit(frames: Tensor) -> Float[Tensor, "..."]:
    """uint8 frames as floats in [0, 1]; floats as they are."""
    return frames.float() / 255 if frames.dtype == torch.uint8 else frames


class Vision(nn.Module, Buildable):
    """Encoders that learn with their agents, one for each seed.

    The features go through a trunk of their own in every network that reads them. The critics' loss trains the encoder, the
    actor's does not, as in DrQ-v2; where there are no critics (BC) the actor's does. What follows is encoded by the same
    encoder, not by a slower copy: trunk and head of the targets are slow.

    Args:
        encoder: of the first seed; the others' are like it.
        drac: weight of DrAC's regulariser (Raileanu et al. 2021, equations 3 to 5): what networks say of augmented frames is
            kept near what they say of the plain ones, policies by KL, values by squares. 0 for none.
    """

    def __init__(self, encoder: Encoder, *, drac: float = 0.0):
        super().__init__()
        self.shape, self.latent_size, self.drac = encoder.shape, encoder.latent_size, drac
        self.encoders = nn.ModuleList([encoder])

    def grow(self, seeds: int) -> None:
        """Makes encoders for so many seeds."""
        self.encoders = nn.ModuleList([self.encoders[0], *(copy.deepcopy(self.encoders[0]) for _ in range(seeds - 1))])

    def trunks(self) -> "Trunks":
        """New trunks, one for each seed."""
        return Trunks([encoder.trunk() for encoder in self.encoders])  # type: ignore[operator]

    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Fresh weights, from one generator a seed."""
        for encoder, generator in zip(self.encoders, generators, strict=True):
            encoder.reset(generator)  # type: ignore[operator]

    def forward(self, frames: Float[Tensor, "s n c h w"]) -> Float[Tensor, "s n f"]:
        """Features of frames in [0, 1], each seed's own."""
        return torch.stack([encoder(part) for encoder, part in zip(self.encoders, frames, strict=True)])


class Trunks(nn.Module):
    """Trunks of an encoder, one for each seed."""

    def __init__(self, trunks: Sequence[nn.Module]):
        super().__init__()
        self.each = nn.ModuleList(trunks)

    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Fresh weights, from one generator a seed."""
        for trunk, generator in zip(self.each, generators, strict=True):
            reset_layers(trunk, generator)

    def forward(self, features: Float[Tensor, "s b f"]) -> Float[Tensor, "s b o"]:
        """Latents, each seed's own."""
        return torch.stack([trunk(part) for trunk, part in zip(self.each, features, strict=True)])


class Latents(nn.Module, Buildable):
    """Frozen latents of a trained learner: z = z_pi + z_Q, outputs of the linear layers on which its networks stand.

    After Guzel, Bogunovic and Parker-Holder (2025): transitions of z are diffused, and policy and value networks trained on
    them. A ReLU that ends a trunk (Impala's) is left out: it would set half of all numbers to exactly 0, which no
    diffusion can draw. A learner of one network (BC, discrete CQL) has the one z.

    Args:
        encoder: of the learner.
        trunks: how many networks of the learner look at its features.
        combine: the sum as published, or side by side.
    """

    drac = 0.0

    def __init__(self, encoder: Encoder, *, trunks: int, combine: Combination = "sum"):
        super().__init__()
        self.shape, self.combine = encoder.shape, combine
        self.latent_size = encoder.latent_size * (trunks if combine == "concatenation" else 1)
        self.encoder = encoder
        self.linear = nn.ModuleList([_without_relu(encoder.trunk()) for _ in range(trunks)])
        self.requires_grad_(False)

    @classmethod
    def of(cls, agent: "Agent", *, seed: int = 0, combine: Combination = "sum") -> "Latents":
        """Those of a learner from pixels.

        Args:
            agent: trained, with `Vision`.
            seed: which of its seeds, counted from 0.
            combine: the sum as published, or side by side.

        Raises:
            ValueError: the agent does not look at frames with an encoder of its own, or has fewer seeds.
        """
        if not isinstance(agent.vision, Vision):
            raise ValueError(f"latents need a learner from pixels, got {type(agent).__name__} of vectors")
        if not 0 <= seed < agent.seeds:
            raise ValueError(f"the learner has seeds 0 to {agent.seeds - 1}, got {seed}")
        networks = [getattr(agent, name) for name in ("actor", "critics") if hasattr(agent, name)]
        latents = cls(copy.deepcopy(agent.vision.encoders[seed]), trunks=len(networks), combine=combine)  # type: ignore[arg-type]
        for linear, network in zip(latents.linear, networks, strict=True):
            linear.load_state_dict(network.trunk.each[seed].state_dict())
        return latents.eval()

    def grow(self, seeds: int) -> None:
        """Nothing: all seeds look through the same."""

    def trunks(self) -> None:
        """None: latents are what networks take."""

    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Nothing: frozen."""

    @torch.no_grad()
    def forward(self, frames: Float[Tensor, "s n c h w"]) -> Float[Tensor, "s n d"]:
        """Latents of frames in [0, 1]."""
        return torch.cat([self.encode(part) for part in frames.flatten(0, 1).split(_CHUNK)]).unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Latents of frames, uint8 or in [0, 1]."""
        features = self.encoder(to_unit(frames))
        z = torch.stack([linear(features) for linear in self.linear])
        return z.sum(0) if self.combine == "sum" else torch.cat(list(z), -1)


def _without_relu(trunk: nn.Sequential) -> nn.Sequential:
    return trunk[:-1] if isinstance(trunk[-1], nn.ReLU) else trunk
