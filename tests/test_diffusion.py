"""Preconditioning, objectives, the network, and noise that belongs to rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from dreamloom.diffusion.denoisers import ResidualMLP
from dreamloom.diffusion.noise import lognormal_sigma
from dreamloom.diffusion.objectives import EDM, FlowMatching, Objective
from dreamloom.diffusion.preconditioning import loss_weight, precondition
from dreamloom.diffusion.row_noise import RowNoise

SIGMA = torch.tensor([0.01, 0.5, 3.0, 40.0])


def test_preconditioning_is_table_1_of_karras() -> None:
    c_skip, c_out, c_in, c_noise = precondition(SIGMA, 0.5)
    assert torch.allclose(c_skip, 0.25 / (SIGMA**2 + 0.25))
    assert torch.allclose(c_out, SIGMA * 0.5 / (0.25 + SIGMA**2).sqrt())
    assert torch.allclose(c_in, 1 / (SIGMA**2 + 0.25).sqrt())
    assert torch.allclose(c_noise, SIGMA.log() / 4)
    assert torch.allclose(loss_weight(SIGMA, 0.5) * c_out**2, torch.ones(4))


def test_training_noise_is_lognormal() -> None:
    sigma = lognormal_sigma(20_000, -1.2, 1.2, generator=torch.Generator().manual_seed(0), device=torch.device("cpu"))
    assert kstest(sigma.log().numpy(), "norm", args=(-1.2, 1.2)).pvalue > 0.001


def zeros(x: Tensor, label: Tensor, condition: Tensor | None) -> Tensor:
    return torch.zeros_like(x)


@pytest.mark.parametrize(("objective", "expected"), [(EDM(), 1.0), (FlowMatching(), 2.0)])
def test_targets_have_their_variance_at_every_noise_level(objective: Objective, expected: float) -> None:
    """A network that says 0 pays the variance of its target: 1 by EDM's design, 2 for noise - row."""
    generator = torch.Generator().manual_seed(0)
    loss, metrics = objective.loss(zeros, torch.randn(20_000, 4, generator=generator), None, generator)
    assert float(loss) == pytest.approx(expected, rel=0.03)
    assert not metrics["error"].requires_grad


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_both_objectives_give_the_denoiser_of_gaussian_rows(spread: float) -> None:
    """Networks that are the exact answer for N(0, spread^2), each in its own coordinates."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    def velocity(x_t: Tensor, label: Tensor, condition: Tensor | None) -> Tensor:
        t = torch.sigmoid(4 * label)
        return x_t * (t - (1 - t) * spread**2) / ((1 - t) ** 2 * spread**2 + t**2)

    def residual(scaled: Tensor, label: Tensor, condition: Tensor | None) -> Tensor:
        sigma = torch.exp(4 * label)
        c_skip, c_out, c_in, _ = precondition(sigma, 1.0)
        noisy = scaled / c_in
        return (noisy * spread**2 / (spread**2 + sigma**2) - c_skip * noisy) / c_out

    for sigma in SIGMA:
        expected = x * spread**2 / (spread**2 + sigma**2)
        assert torch.allclose(FlowMatching().denoise(velocity, x, sigma), expected, atol=1e-4)
        assert torch.allclose(EDM().denoise(residual, x, sigma), expected, atol=1e-4)


@pytest.mark.parametrize("objective", [EDM(), FlowMatching(), FlowMatching(time="logit_normal")])
def test_loss_is_fixed_by_its_generator(objective: Objective) -> None:
    torch.manual_seed(0)
    network, x = ResidualMLP(4, width=16, depth=1), torch.randn(8, 4)
    first, again, other = (objective.loss(network, x, None, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert first == again != other


def test_network_has_the_published_size() -> None:
    """6.5 M parameters at width 1024 and row size 42."""
    count = sum(p.numel() for p in ResidualMLP(42).parameters())
    assert count == pytest.approx(6.5e6, rel=0.005)


def test_network_takes_one_label_for_all_rows() -> None:
    torch.manual_seed(0)
    network, x = ResidualMLP(4, condition=2, width=16, depth=2), torch.randn(6, 4)
    condition = torch.eye(2)[[0, 1, 0, 1, 0, 1]]
    one = network(x, torch.tensor(0.3), condition)
    assert torch.allclose(one, network(x, torch.full((6,), 0.3), condition), atol=1e-6)
    assert not torch.allclose(one, network(x, torch.tensor(0.3), condition.flip(1)))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**63), step=st.integers(0, 300), start=st.integers(0, 10**12), size=st.integers(1, 50),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)  # fmt: skip
def test_noise_of_a_row_does_not_depend_on_the_batch(seed: int, step: int, start: int, size: int, cuts: list[int]) -> None:
    whole = RowNoise(seed, start, sum(cuts), size)(step)
    first = start
    parts = []
    for rows in cuts:
        parts.append(RowNoise(seed, first, rows, size)(step))
        first += rows
    assert torch.equal(whole, torch.cat(parts))


def test_row_noise_is_normal_and_independent() -> None:
    noise = torch.stack([RowNoise(seed, 0, 20_000, 5)(step) for seed, step in ((0, 0), (0, 1), (1, 0))])
    flat = noise.permute(0, 2, 1).reshape(15, -1)  # draw and column by row
    assert min(kstest(row.numpy(), "norm").pvalue for row in flat) > 1e-4
    between = torch.corrcoef(flat) - torch.eye(15)
    assert between.abs().max() < 5 / math.sqrt(20_000)
    along = np.corrcoef(flat[0][:-1], flat[0][1:])[0, 1]
    assert abs(along) < 5 / math.sqrt(20_000)


def test_row_noise_refuses_negative_seeds() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RowNoise(-1, 0, 1, 1)
