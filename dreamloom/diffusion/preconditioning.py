"""EDM's preconditioning of a denoiser (Karras et al. 2022, "Elucidating the Design Space", table 1, column "Ours")."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Preconditioning(NamedTuple):
    """The four scalings of equation 7, D(x; sigma) = c_skip x + c_out F(c_in x; c_noise); shaped like sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Float[Tensor, "*b"], sigma_data: float) -> Preconditioning:
    """Scalings for noise of standard deviation `sigma` on data of standard deviation `sigma_data`."""
    total = (sigma**2 + sigma_data**2).sqrt()
    return Preconditioning(
        c_skip=(sigma_data / total) ** 2,
        c_out=sigma * sigma_data / total,
        c_in=1 / total,
        c_noise=sigma.log() / 4,
    )


def loss_weight(sigma: Float[Tensor, "*b"], sigma_data: float) -> Float[Tensor, "*b"]:
    """lambda(sigma) = 1 / c_out^2: the effective target of F has unit weight at every noise level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
