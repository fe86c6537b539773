"""Solvers: from noise to rows, knowing nothing of the network but its denoiser D(x; sigma).

`solver(denoise, noise)` starts at sigma_max * noise(0); noise(i + 1) is what step i may inject. Rows are of its dtype.
"""

import math
from collections.abc import Callable

from torch import Tensor

from dreamloom.diffusion.noise import karras_sigmas
from dreamloom.nn.build import Buildable

Denoise = Callable[[Tensor, Tensor], Tensor]  # (rows (b, d), sigma scalar) -> rows (b, d)
Noise = Callable[[int], Tensor]  # number of a draw -> standard normal (b, d)


class Solver(Buildable):
    """Walks the Karras schedule, step by step.

    Args:
        steps: N of the schedule.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.
    """

    def __init__(self, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        self.sigmas = karras_sigmas(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    @property
    def steps(self) -> int:
        """Steps of the schedule."""
        return len(self.sigmas) - 1

    @property
    def calls(self) -> int:
        """Network calls a row."""
        return self.steps

    def __call__(self, denoise: Denoise, noise: Noise) -> Tensor:
        """Rows (b, d) from noise (b, d)."""
        raise NotImplementedError


class Euler(Solver):
    """First order, deterministic: the probability-flow ODE of Karras et al. 2022 (equation 1) by Euler steps."""

    def __call__(self, denoise: Denoise, noise: Noise) -> Tensor:
        x = self.sigmas[0] * noise(0)
        for now, after in zip(self.sigmas, self.sigmas[1:], strict=False):
            x = x + (after - now) * _slope(denoise, x, now)
        return x


class StochasticHeun(Solver):
    """Algorithm 2 of Karras et al. 2022; the defaults are SynthER's. S_churn 0 is their deterministic Algorithm 1.

    Args:
        steps: N.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.
        S_churn: how much noise is renewed; saturates at (sqrt(2) - 1) N.
        S_tmin: noise is renewed from this level on.
        S_tmax: and up to this level.
        S_noise: standard deviation of new noise.
    """

    def __init__(
        self,
        steps: int = 128,
        *,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        S_churn: float = 80.0,
        S_tmin: float = 0.05,
        S_tmax: float = 50.0,
        S_noise: float = 1.003,
    ):
        super().__init__(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        self.S_churn, self.S_tmin, self.S_tmax, self.S_noise = S_churn, S_tmin, S_tmax, S_noise

    @property
    def calls(self) -> int:
        """Two a step, one in the last."""
        return 2 * self.steps - 1

    def __call__(self, denoise: Denoise, noise: Noise) -> Tensor:
        x = self.sigmas[0] * noise(0)
        for i in range(self.steps):
            x, sigma = self._churn(x, self.sigmas[i], noise, i)
            x = _heun(denoise, x, sigma, self.sigmas[i + 1])
        return x

    def _churn(self, x: Tensor, sigma: float, noise: Noise, i: int) -> tuple[Tensor, float]:
        """Lines 4 to 6: raises the noise level by new noise."""
        gamma = min(self.S_churn / self.steps, math.sqrt(2) - 1) if self.S_tmin <= sigma <= self.S_tmax else 0.0
        if gamma == 0:
            return x, sigma
        raised = sigma * (1 + gamma)
        return x + math.sqrt(raised**2 - sigma**2) * self.S_noise * noise(i + 1), raised


class SDEDPMSolver(Solver):
    """DPM-Solver++(2M) of the reverse SDE (Lu et al. 2022, arXiv 2211.01095), in lambda = -ln sigma, with any share of noise.

    A step h from sigma to sigma' is exact where D moves linearly, and D is extrapolated from the last two calls:
    x' = exp(-(1 + eta) h) x + (1 - exp(-(1 + eta) h)) D + sigma' sqrt(1 - exp(-2 eta h)) noise.

    Args:
        steps: network calls.
        sigma_min: last noise level before 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.
        eta: 0 is the ODE, 1 the reverse SDE of the forward process; more renews more noise.
    """

    def __init__(
        self, steps: int = 24, *, sigma_min: float = 0.01, sigma_max: float = 10.0, rho: float = 7.0, eta: float = 2.0
    ):
        super().__init__(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        self.eta = eta

    def __call__(self, denoise: Denoise, noise: Noise) -> Tensor:
        x, earlier, h_before = self.sigmas[0] * noise(0), None, math.nan
        for i in range(self.steps - 1):
            now, after = self.sigmas[i], self.sigmas[i + 1]
            h = math.log(now / after)
            denoised = denoise(x, x.new_tensor(now))
            target = denoised if earlier is None else denoised + h / (2 * h_before) * (denoised - earlier)
            x = math.exp(-(1 + self.eta) * h) * x - math.expm1(-(1 + self.eta) * h) * target
            if self.eta:
                x = x + after * math.sqrt(-math.expm1(-2 * self.eta * h)) * noise(i + 1)
            earlier, h_before = denoised, h
        return denoise(x, x.new_tensor(self.sigmas[-2]))  # the step to 0


def _slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """dx / d sigma (Karras et al. 2022, equations 1 and 3)."""
    return (x - denoise(x, x.new_tensor(sigma))) / sigma


def _heun(denoise: Denoise, x: Tensor, sigma: float, after: float) -> Tensor:
    """An Euler step (lines 7 and 8 of Algorithm 2), corrected to second order unless it ends at 0 (lines 9 to 11)."""
    slope = _slope(denoise, x, sigma)
    ahead = x + (after - sigma) * slope
    if after == 0:
        return ahead
    return x + (after - sigma) * 0.5 * (slope + _slope(denoise, ahead, after))
