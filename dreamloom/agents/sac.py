"""What CQL and EDAC take from SAC (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications")."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from dreamloom.agents.networks import MLP


class TanhGaussian(MLP):
    """A Gaussian policy squashed into [-1, 1] by tanh.

    Args:
        seeds: number of seeds.
        observation_size: of an observation.
        action_size: of an action.
        lowest_log_std: bound of the Gaussian's log deviation; the other one is 2.
        settings: of `MLP`.
    """

    def __init__(
        self,
        seeds: int,
        observation_size: int,
        action_size: int,
        *,
        lowest_log_std: float = -20.0,
        **settings: Any,
    ):
        super().__init__((seeds,), observation_size, 2 * action_size, **settings)
        self.lowest_log_std = lowest_log_std

    def sample(
        self, s: Float[Tensor, "s b o"], noise: Float[Tensor, "s *n b a"]
    ) -> tuple[Float[Tensor, "s *n b a"], Float[Tensor, "s *n b"]]:
        """Actions and their log densities; with an axis n in the noise, n actions for each observation."""
        mean, log_std = self(s).chunk(2, -1)
        log_std = log_std.clamp(self.lowest_log_std, 2)
        if noise.ndim == 4:
            mean, log_std = mean[:, None], log_std[:, None]
        u = mean + log_std.exp() * noise
        gaussian = -(0.5 * noise.square() + log_std + 0.5 * math.log(2 * math.pi))
        log_slope = 2 * (math.log(2) - u - softplus(-2 * u))  # log(1 - tanh(u)^2), without the cancellation
        return u.tanh(), (gaussian - log_slope).sum(-1)

    def mode(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b a"]:
        """Greedy actions."""
        return self(s).chunk(2, -1)[0].tanh()


class Temperature(nn.Module):
    """SAC's entropy temperature, one for each seed; it starts at 1."""

    def __init__(self, seeds: int):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(seeds))

    @torch.no_grad()
    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Back to 1."""
        self.log.zero_()

    def value(self) -> Float[Tensor, "s 1"]:
        """The temperature, beside an axis of rows."""
        return self.log.detach().exp()[:, None]

    def loss(self, log_pi: Float[Tensor, "s b"], entropy: float) -> Float[Tensor, "s"]:
        """Its gradient lifts the temperature while the policy's entropy is below the target (equation 18)."""
        return -self.log * (log_pi.detach() + entropy).mean(-1)
