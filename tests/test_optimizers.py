"""Learning-rate schedule and the optimizer that mixes Muon with AdamW."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from dreamloom.train.muon import Muon
from dreamloom.train.optimizers import MuonAdamW, warmup_then_cosine


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4), nn.LayerNorm(4))


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        words = torch.randint(100, (16,), generator=torch.Generator().manual_seed(step))
        (model(words) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize(("warmup", "total", "final"), [(0, 8, 0.0), (4, 20, 0.1), (5, 5, 1.0)])
def test_schedule_is_linear_then_half_a_cosine(warmup: int, total: int, final: float) -> None:
    factor, quarter = warmup_then_cosine(warmup, total, final), (total - warmup) // 4
    assert [factor(step) for step in range(warmup)] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup)])
    parts = (0, 1, 2, 4) if quarter else (0,)
    expected = [final + (1 - final) * (1 + math.cos(math.pi * part / 4)) / 2 for part in parts]
    assert [factor(warmup + part * quarter) for part in parts] == pytest.approx(expected)
    assert factor(total) == factor(10 * total) == pytest.approx(final)


def test_schedule_follows_the_clock_where_it_is_further() -> None:
    over = 0.0
    factor = warmup_then_cosine(2, math.inf, 0.1, lambda: over)
    assert [factor(0), factor(2), factor(100)] == pytest.approx([1 / 3, 1, 1])
    over = 0.5
    assert [factor(0), factor(2)] == pytest.approx([1 / 3, 0.55])
    assert warmup_then_cosine(0, 8, 0.0, lambda: 0.5)(6) == pytest.approx(warmup_then_cosine(0, 8, 0.0)(6))
    over = 1.0
    assert factor(3) == pytest.approx(0.1)


def test_matrices_go_to_muon_and_the_rest_to_adamw() -> None:
    model = network()
    adamw, muon = MuonAdamW(model.parameters()).parts
    matrices = {id(model[1].weight), id(model[3].weight)}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == matrices
    rest = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert rest == {id(p) for p in model.parameters()} - matrices


def test_its_adamw_is_adamw() -> None:
    """On a model without hidden matrices."""
    settings = {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}
    one = nn.Sequential(nn.Embedding(100, 4), nn.LayerNorm(4))
    two = deepcopy(one)
    run(one, MuonAdamW(one.parameters(), **settings), range(5))
    run(two, torch.optim.AdamW(two.parameters(), **settings), range(5))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_its_muon_turns_every_direction_alike() -> None:
    """The first step of a matrix is orthogonal (Newton-Schulz: singular values near one another), whatever the gradient."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 8))
    before = weight.detach().clone()
    optimizer = MuonAdamW([weight, nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.0)
    weight.grad = torch.diag(torch.logspace(0, -1, 8))
    optimizer.step()
    sizes = torch.linalg.svdvals(before - weight.detach())
    assert float(sizes.max() / sizes.min()) < 2


def muons(kind: type[torch.optim.Muon]) -> tuple[list[nn.Parameter], torch.optim.Muon]:
    """Matrices of three shapes, two of which are alike, with gradients, and their optimizer."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 24), (16, 16))]
    for param in params:
        param.grad = torch.randn_like(param)
    return params, kind(params, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


def test_matrices_step_together_as_one_by_one() -> None:
    (alone, one_by_one), (several, together) = muons(torch.optim.Muon), muons(Muon)
    before = [param.detach().clone() for param in alone]
    for _ in range(3):
        one_by_one.step()
        together.step_together(together.param_groups[0])
    for old, a, b in zip(before, alone, several, strict=True):
        assert (a - b).norm() < 0.02 * (a - old).norm()


def test_schedules_reach_both_parts() -> None:
    model = network()
    optimizer = MuonAdamW(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        rates = {group["lr"] for part in optimizer.parts for group in part.param_groups}
        assert rates == {0.5 * 0.5**step}
        run(model, optimizer, range(step, step + 1))
        schedule.step()


def test_adamw_keeps_its_share_of_the_rate_under_a_schedule() -> None:
    model = network()
    optimizer = MuonAdamW(model.parameters(), lr=0.5, adamw_scale=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(model, optimizer, range(1))
    schedule.step()
    adamw, muon = ([group["lr"] for group in part.param_groups] for part in optimizer.parts)
    assert (adamw, muon) == (pytest.approx([0.025]), pytest.approx([0.25]))


def test_a_rate_of_zero_moves_nothing() -> None:
    model = network()
    before = deepcopy(model)
    run(model, MuonAdamW(model.parameters(), lr=0.0), range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_a_saved_state_resumes_bit_for_bit() -> None:
    whole, cut = network(), network()
    run(whole, MuonAdamW(whole.parameters(), lr=0.05), range(8))
    first = MuonAdamW(cut.parameters(), lr=0.05)
    run(cut, first, range(5))
    saved = deepcopy(first.state_dict())
    resumed = MuonAdamW(cut.parameters(), lr=0.3)
    resumed.load_state_dict(saved)
    assert {group["lr"] for part in resumed.parts for group in part.param_groups} == {0.05}
    run(cut, resumed, range(5, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


def test_a_closure_runs_once() -> None:
    model, calls = network(), []
    optimizer = MuonAdamW(model.parameters(), lr=0.01)

    def closure() -> torch.Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = model(torch.arange(16)).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) > 0
    assert len(calls) == 1
