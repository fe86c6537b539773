"""What a network learns: EDM's denoising or flow matching, behind one interface.

Both give a denoiser D(x; sigma) = E[clean row | row + sigma * noise] in EDM's variance-exploding coordinates, so every solver
works with either. Rows are (b, d) float32 of about unit variance.
"""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from dreamloom.diffusion.noise import lognormal_sigma
from dreamloom.diffusion.preconditioning import loss_weight, precondition
from dreamloom.nn.build import Buildable

# (rows, noise label, condition) -> rows; a noise label is (b,), or a scalar where all rows share it.
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Objective(Buildable):
    """Loss of a network, and the denoiser that the network then is."""

    def loss(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        condition: Float[Tensor, "b c"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss on clean rows, and metrics; `generator` draws noise and its levels."""
        raise NotImplementedError

    def denoise(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        sigma: Float[Tensor, "*b"],
        condition: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """D(x; sigma) for x = row + sigma * noise; sigma is (b,) or a scalar."""
        raise NotImplementedError


class EDM(Objective):
    """Denoising score matching as in Karras et al. 2022 (equations 2, 7 and 8), with SynthER's sigma_data.

    Args:
        sigma_data: standard deviation of the rows.
        P_mean: mean of ln sigma while training.
        P_std: standard deviation of ln sigma while training.
    """

    def __init__(self, *, sigma_data: float = 1.0, P_mean: float = -1.2, P_std: float = 1.2):
        self.sigma_data, self.P_mean, self.P_std = sigma_data, P_mean, P_std

    def loss(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        condition: Float[Tensor, "b c"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        sigma = lognormal_sigma(len(x), self.P_mean, self.P_std, generator=generator, device=x.device)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        denoised = self.denoise(network, x + column(sigma) * noise, sigma, condition)
        error = (denoised - x).square().mean(1)
        return (loss_weight(sigma, self.sigma_data) * error).mean(), {"error": error.detach().mean()}

    def denoise(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        sigma: Float[Tensor, "*b"],
        condition: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b d"]:
        c_skip, c_out, c_in, c_noise = precondition(sigma, self.sigma_data)
        return column(c_skip) * x + column(c_out) * network(column(c_in) * x, c_noise, condition)


class FlowMatching(Objective):
    """Rectified flow (Liu et al. 2023): x_t = (1 - t) x + t noise, and the network predicts v = noise - x.

    The row at time t, divided by 1 - t, is the row of EDM at sigma = t / (1 - t).

    Args:
        time: distribution of t while training; "logit_normal" is Esser et al. 2024's, equation 19 with mean 0 and scale 1.
    """

    def __init__(self, *, time: Literal["uniform", "logit_normal"] = "uniform"):
        self.time = time

    def loss(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        condition: Float[Tensor, "b c"] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        t = self._times(len(x), generator, x.device)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        v = network(torch.lerp(x, noise, column(t)), _label(t), condition)
        error = (v - (noise - x)).square().mean(1)
        return error.mean(), {"error": (t.square() * error).detach().mean()}

    def denoise(
        self,
        network: Network,
        x: Float[Tensor, "b d"],
        sigma: Float[Tensor, "*b"],
        condition: Float[Tensor, "b c"] | None = None,
    ) -> Float[Tensor, "b d"]:
        t = sigma / (1 + sigma)
        x_t = x * column(1 - t)
        return x_t - column(t) * network(x_t, _label(t), condition)

    def _times(self, count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
        if self.time == "logit_normal":
            return torch.randn(count, generator=generator, device=device).sigmoid()
        return torch.rand(count, generator=generator, device=device)


def column(scalars: Tensor) -> Tensor:
    """(b,) as (b, 1), so that it scales rows; a scalar stays one."""
    return rearrange(scalars, "b -> b 1") if scalars.ndim else scalars


def _label(t: Tensor) -> Tensor:
    """ln(sigma) / 4, EDM's label of the same noise level; the ends of time are moved into float range."""
    return torch.logit(t, eps=1e-5) / 4
