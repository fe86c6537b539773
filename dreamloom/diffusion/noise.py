"""How much noise: while training (a distribution of levels) and while sampling (a schedule of levels)."""

import torch
from jaxtyping import Float
from torch import Tensor


def lognormal_sigma(
    count: int, P_mean: float, P_std: float, *, generator: torch.Generator | None, device: torch.device
) -> Float[Tensor, "b"]:
    """Levels for training, ln sigma ~ N(P_mean, P_std^2) (Karras et al. 2022, table 1)."""
    return (P_mean + P_std * torch.randn(count, generator=generator, device=device)).exp()


def karras_sigmas(steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> list[float]:
    """Levels for sampling, from sigma_max down to sigma_min, then 0 (Karras et al. 2022, equation 5).

    Args:
        steps: N; the list has N + 1 levels.
        sigma_min: last level before 0.
        sigma_max: first level.
        rho: how much shorter the steps are near sigma_min.

    Raises:
        ValueError: fewer than one step, or levels out of order.
    """
    if steps < 1 or not 0 < sigma_min < sigma_max:
        raise ValueError(f"a schedule needs steps >= 1 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}")
    if steps == 1:
        return [sigma_max, 0.0]
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(ends[0] + i / (steps - 1) * (ends[1] - ends[0])) ** rho for i in range(steps)] + [0.0]
