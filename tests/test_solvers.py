"""Solvers against closed forms: on Gaussian data the denoiser, and the ODE from noise to data, are known exactly."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamloom.diffusion.diffusers_solver import DiffusersSolver
from dreamloom.diffusion.noise import karras_sigmas
from dreamloom.diffusion.solvers import Euler, SDEDPMSolver, Solver, StochasticHeun

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
BASIS = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]], dtype=torch.float64))[0]
SPREAD = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)  # standard deviations along the basis
COVARIANCE = BASIS @ SPREAD.square().diag() @ BASIS.T
EXACT = {"sigma_min": 1e-4, "sigma_max": 20.0}


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[row | row + sigma noise] of the Gaussian."""
    shrink = SPREAD.square() / (SPREAD.square() + sigma**2)
    return MEAN + ((x - MEAN) @ BASIS * shrink) @ BASIS.T


def flow(x: Tensor, sigma: float) -> Tensor:
    """Where the probability-flow ODE takes x from noise level sigma: every direction shrinks to its own spread."""
    shrink = SPREAD / (SPREAD.square() + sigma**2).sqrt()
    return MEAN + ((x - MEAN) @ BASIS * shrink) @ BASIS.T


def noise_of(rows: int, seed: int = 0) -> Callable[[int], Tensor]:
    return lambda step: torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 * seed + step))


def error(solver: Solver) -> float:
    noise = noise_of(50)
    expected = flow(solver.sigmas[0] * noise(0), solver.sigmas[0])
    return float((solver(denoise, noise) - expected).abs().max())


def order(make: Callable[[int], Solver]) -> float:
    """Slope of the error over the step size, both logarithmic."""
    return math.log2(error(make(32)) / error(make(128))) / 2


def test_deterministic_heun_converges_at_order_two() -> None:
    assert order(lambda n: StochasticHeun(n, S_churn=0.0, **EXACT)) == pytest.approx(2, abs=0.25)
    assert error(StochasticHeun(128, S_churn=0.0, **EXACT)) < 5e-3


def test_euler_converges_at_order_one() -> None:
    assert order(lambda n: Euler(n, **EXACT)) == pytest.approx(1, abs=0.2)


def test_deterministic_dpm_solver_converges_at_order_two() -> None:
    assert order(lambda n: SDEDPMSolver(n, eta=0.0, **EXACT)) == pytest.approx(2, abs=0.35)


@pytest.mark.parametrize(
    "solver",
    [
        StochasticHeun(64, S_churn=20.0, S_tmin=0.01, S_tmax=10.0, S_noise=1.0, **EXACT),
        StochasticHeun(64, S_churn=1000.0, S_tmin=0.01, S_tmax=10.0, S_noise=1.0, **EXACT),
        SDEDPMSolver(64, eta=1.0, **EXACT),
        SDEDPMSolver(128, eta=2.0, **EXACT),
    ],
    ids=["heun", "heun_saturated", "sde_1", "sde_2"],
)
def test_stochastic_solvers_end_in_the_gaussian(solver: Solver) -> None:
    rows = solver(denoise, noise_of(40_000))
    assert (rows.mean(0) - MEAN).abs().max() < 0.05
    assert (rows.T.cov() - COVARIANCE).abs().max() < 0.12  # 4 * the sampling error of the largest variance is 0.11


def test_heun_with_no_churn_asks_for_no_noise() -> None:
    start = noise_of(4)

    def only_first(step: int) -> Tensor:
        assert step == 0
        return start(0)

    plain = StochasticHeun(16, S_churn=0.0)(denoise, only_first)
    out_of_reach = StochasticHeun(16, S_churn=80.0, S_tmin=100.0, S_tmax=200.0)(denoise, only_first)
    assert torch.equal(plain, out_of_reach)
    assert not torch.allclose(plain, StochasticHeun(16, S_churn=80.0)(denoise, start))


def test_stochastic_heun_is_algorithm_2_of_karras() -> None:
    """Two steps, written out line by line."""
    noise, S_noise = noise_of(5), 1.003
    got = StochasticHeun(2, sigma_min=0.5, sigma_max=2.0, S_churn=0.4, S_tmin=0.05, S_tmax=50.0, S_noise=S_noise)(
        denoise, noise
    )
    t, gamma = [2.0, 0.5, 0.0], min(0.4 / 2, math.sqrt(2) - 1)
    x = t[0] * noise(0)
    for i in range(2):
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * S_noise * noise(i + 1)
        d = (x_hat - denoise(x_hat, x.new_tensor(t_hat))) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_prime = (x - denoise(x, x.new_tensor(t[i + 1]))) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * d_prime)
    assert torch.allclose(got, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (DiffusersSolver("EDMDPMSolverMultistepScheduler", 20), SDEDPMSolver(20, eta=0.0, sigma_min=0.002, sigma_max=80.0)),
        (DiffusersSolver("EDMEulerScheduler", 20), Euler(20)),
    ],
    ids=["dpm_solver", "euler"],
)
def test_diffusers_schedulers_agree_with_ours(theirs: Solver, ours: Solver) -> None:
    """To the float32 in which diffusers keeps its noise levels."""
    noise = noise_of(50)
    assert torch.allclose(theirs(denoise, noise), ours(denoise, noise), atol=2e-4)


def test_one_step_is_one_denoising_of_noise() -> None:
    noise = noise_of(3)
    expected = denoise(80 * noise(0), torch.tensor(80.0))
    assert torch.allclose(SDEDPMSolver(1, sigma_max=80.0)(denoise, noise), expected)
    assert torch.allclose(Euler(1)(denoise, noise), expected)


@pytest.mark.parametrize("steps", [1, 2, 7, 128])
def test_solvers_know_their_calls(steps: int) -> None:
    for solver in (Euler(steps), StochasticHeun(steps), SDEDPMSolver(steps), DiffusersSolver(steps=steps)):
        calls: list[float] = []
        solver(lambda x, sigma, calls=calls: calls.append(float(sigma)) or x * 0, noise_of(1))
        assert len(calls) == solver.calls
    assert StochasticHeun().calls == 255, "SynthER's setting"
    assert SDEDPMSolver().calls == 24


def test_schedule_is_equation_5() -> None:
    sigmas = karras_sigmas(18, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    assert sigmas[0] == pytest.approx(80)
    assert sigmas[-2:] == pytest.approx([0.002, 0])
    assert np.diff(np.array(sigmas[:-1]) ** (1 / 7)) == pytest.approx((0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17)
    for wrong in ({"steps": 0}, {"sigma_min": 0.0}, {"sigma_max": 0.001}):
        with pytest.raises(ValueError, match="sigma_min < sigma_max"):
            karras_sigmas(**({"steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0} | wrong))
