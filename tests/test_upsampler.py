"""The upsampler: the codec of rows, what is drawn and what is diffused, guidance, and that training learns the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

import dreamloom
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.conditions import Ranks, return_to_go
from dreamloom.diffusion.discrete import MAX_COMBINATIONS
from dreamloom.diffusion.rows import Rows
from dreamloom.diffusion.solvers import Euler, SDEDPMSolver
from dreamloom.diffusion.upsampler import Upsampler, load_upsampler

FAST = SDEDPMSolver(12)


def rows_of(n: int, *, seed: int = 0, **columns: Any) -> Transitions:
    """Known dynamics: the next observation is 0.9 s + 0.1 a, the reward is s[0], the MDP ends where s[1] > 1.2."""
    random = np.random.default_rng(seed)
    states = random.normal([2.0, 0.0], [3.0, 1.0], (n, 2)).astype(np.float32)
    actions = random.uniform(-1, 1, (n, 2)).astype(np.float32)
    made = {
        "observations": states,
        "actions": actions,
        "rewards": states[:, 0].copy(),
        "next_observations": 0.9 * states + 0.1 * actions,
        "terminals": states[:, 1] > 1.2,
        "timeouts": np.arange(n) % 50 == 49,
    }
    return Transitions(**(made | columns))


@pytest.fixture(scope="module")
def trained() -> Upsampler:
    return Upsampler(width=96, depth=2, condition="reward").fit(rows_of(4000), steps=800, lr=2e-3, progress=False)


def same(a: Transitions, b: Transitions, tolerance: float = 0.0) -> None:
    for name, column in vars(a).items():
        if column is None:
            assert getattr(b, name) is None
        else:
            np.testing.assert_allclose(column, getattr(b, name), rtol=tolerance, atol=tolerance, err_msg=name)
            assert column.dtype == getattr(b, name).dtype


@given(
    n=st.integers(2, 60),
    action=st.integers(0, 3),
    unknown=st.booleans(),
    change=st.booleans(),
    terminals=st.sampled_from(["drawn", "diffused"]),
    seed=st.integers(0, 99),
)
def test_rows_come_back_as_they_were(n: int, action: int, unknown: bool, change: bool, terminals: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = rows_of(n, seed=seed, timeouts=np.zeros(n, bool))
    acts = random.normal(size=(n, action)).astype(np.float32) if action else random.integers(0, 4, n)
    known = random.random(n) < 0.5 if unknown else np.ones(n, bool)
    following = np.where(known[:, None], data.next_observations, data.observations)
    columns = {"actions": acts, "next_observations": following, "next_known": None if known.all() else known}
    data = Transitions(**(vars(data) | columns))
    rows = Rows.of(data, terminals=terminals, next_observation="change" if change else "absolute")
    same(data, rows.decode(*rows.encode(data)), 1e-5)


def test_actions_stay_in_the_range_of_the_data() -> None:
    data = rows_of(200)
    rows = Rows.of(data)
    values, labels = rows.encode(data)
    made = rows.decode(5 * values, labels)
    for bound in ("min", "max"):
        np.testing.assert_array_equal(getattr(made.actions, bound)(0), getattr(data.actions, bound)(0))
    assert np.abs(made.observations).max() > np.abs(data.observations).max(), "observations have no such bounds"


def test_rows_have_unit_variance_and_constants_are_exact() -> None:
    data = rows_of(500)
    data = Transitions(**(vars(data) | {"actions": np.full((500, 2), 0.1, np.float32)}))
    rows = Rows.of(data)
    values = rows.encode(data).values
    assert rows.size == 5, "two actions, the terminal and whether the next is known are drawn"
    assert torch.allclose(values.mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(values.std(0, correction=0), torch.ones(5), atol=1e-4)
    drawn = rows.decode(torch.randn(10, 5), torch.zeros(10, dtype=torch.int64))
    assert (drawn.actions == np.float32(0.1)).all()


def test_columns_of_few_values_are_drawn_unless_combinations_are_many() -> None:
    random = np.random.default_rng(0)
    sparse = (random.random(1000) < 0.1).astype(np.float32)
    rows = Rows.of(rows_of(1000, rewards=sparse))
    assert rows.discrete == [4, 7, 8]
    assert rows.features == 4, "one-hot for reward and terminal; whether the next is known never varies"
    assert Rows.of(rows_of(1000, rewards=sparse), max_levels=0).discrete == [7, 8]
    digits = random.integers(0, 12, (20_000, 5)).astype(np.float32)  # 248,832 combinations
    many = Rows.of(rows_of(20_000, observations=digits, next_observations=digits + random.random((20_000, 1), np.float32)))
    assert 1 < len(many.counts) <= MAX_COMBINATIONS


def test_unknown_next_observations_teach_nothing() -> None:
    """Neither statistics nor targets: wherever the next observation is unknown, the row says the mean."""
    data = rows_of(1000)
    known = ~data.terminals
    clean = Rows.of(Transitions(**(vars(data) | {"next_known": known})))
    wild = np.where(known[:, None], data.next_observations, 1e6).astype(np.float32)
    spoilt = Transitions(**(vars(data) | {"next_observations": wild, "next_known": known}))
    assert torch.equal(clean.mean, Rows.of(spoilt).mean)
    assert torch.equal(clean.scale, Rows.of(spoilt).scale)
    assert (clean.encode(spoilt).values[~torch.from_numpy(known)][:, -2:] == 0).all()
    decoded = clean.decode(*clean.encode(spoilt))
    assert (decoded.next_known == known).all()
    assert (decoded.next_observations[~known] == decoded.observations[~known]).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"observations": np.zeros((9, 4, 4, 3), np.uint8)}, "rows of vectors"),
        ({"rewards": np.full(9, np.nan, np.float32)}, r"9 of 9 rows hold NaN or infinite numbers \(rewards 9\)"),
    ],
)
def test_rows_that_cannot_be_diffused_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Upsampler().fit(rows_of(9, **wrong), steps=1)
    with pytest.raises(ValueError, match="nothing to diffuse"):
        Upsampler().fit(rows_of(50)[np.zeros(20, int)], steps=1)


def test_training_learns_marginals_and_dynamics(trained: Upsampler) -> None:
    real, made = rows_of(4000, seed=1), trained.sample(4000)
    for name in ("observations", "actions", "next_observations"):
        for a, b in zip(getattr(real, name).T, getattr(made, name).T, strict=True):
            assert ks_2samp(a, b).statistic < 0.08, name
    error = made.next_observations - (0.9 * made.observations + 0.1 * made.actions)
    assert (error**2).mean(0) == pytest.approx([0, 0], abs=0.06)
    assert np.corrcoef(made.rewards, made.observations[:, 0])[0, 1] > 0.99
    ended = made.observations[made.terminals, 1]
    assert ended.mean() > 1.3 > made.observations[~made.terminals, 1].mean() + 1


def test_terminals_are_as_frequent_as_in_the_data(trained: Upsampler) -> None:
    """Within four standard errors; the network has no say in it."""
    rate, n = rows_of(4000).terminals.mean(), 20_000
    made = trained.sample(n, solver=Euler(1))
    assert abs(made.terminals.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
    assert not made.timeouts.any()


def test_a_row_does_not_depend_on_how_rows_are_batched(trained: Upsampler) -> None:
    whole = trained.sample(60, seed=3, solver=FAST)
    same(whole, trained.sample(60, seed=3, solver=FAST))
    parts = [trained.sample(25, seed=3, solver=FAST), trained.sample(35, seed=3, start=25, batch_size=10, solver=FAST)]
    same(whole, Transitions.concatenate(parts), 1e-4)
    assert not np.allclose(whole.observations, trained.sample(60, seed=4, solver=FAST).observations)


def test_guidance_moves_rows_to_the_condition(trained: Upsampler) -> None:
    real = rows_of(4000)
    free = trained.sample(1000, solver=FAST).rewards
    top = trained.sample(1000, condition=(0.9, 1.0), guidance=1.0, solver=FAST).rewards
    assert abs(free.mean() - real.rewards.mean()) < 0.4
    assert abs(top.mean() - real.rewards[real.rewards > np.quantile(real.rewards, 0.9)].mean()) < 1.0
    one = trained.sample(500, condition=-2.0, guidance=1.0, solver=FAST).rewards
    assert one.mean() == pytest.approx(-2, abs=0.5)
    assert one.std() < 1


def test_drawn_values_follow_the_condition() -> None:
    """Terminals are drawn given the rank of the condition: here they go with high relevance alone."""
    data = rows_of(2000)
    upsampler = Upsampler(width=16, depth=1, condition="given")
    relevance = data.observations[:, 1].copy()
    upsampler.fit(data, steps=1, relevance=relevance, progress=False)
    low, high = (upsampler.sample(300, condition=c, solver=Euler(1)).terminals.mean() for c in ((0.0, 0.5), (0.95, 1.0)))
    assert (low, high) == (0, 1)
    with pytest.raises(ValueError, match="needs relevance"):
        upsampler.fit(data, steps=1)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        upsampler.sample(1, condition=(0.5, 1.5))
    with pytest.raises(ValueError, match="without a condition"):
        Upsampler(width=16, depth=1).fit(data, steps=1, progress=False).sample(1, condition=0.0)
    with pytest.raises(ValueError, match="has not been trained"):
        Upsampler().sample(1)


@given(rewards=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), seed=st.integers(0, 99))
def test_return_to_go_is_the_sum_to_the_end_of_the_episode(rewards: list[float], seed: int) -> None:
    n, random = len(rewards), np.random.default_rng(seed)
    ends, cut = random.random(n) < 0.2, random.random(n) < 0.1
    data = rows_of(n, rewards=np.array(rewards, np.float32), terminals=ends, timeouts=cut)
    total, expected = 0.0, np.zeros(n)
    for i in reversed(range(n)):
        total = rewards[i] + (0.0 if ends[i] or cut[i] else total)
        expected[i] = total
    np.testing.assert_allclose(return_to_go(data), expected, atol=1e-4)


def test_ranks_are_even_and_ties_share_theirs() -> None:
    scalars = np.random.default_rng(0).normal(size=5000)
    ranks = Ranks.of(scalars, np.zeros(5000, np.int64), 1)
    assert ks_2samp(ranks.rank(scalars), np.linspace(0, 1, 5000)).statistic < 0.02
    sparse = np.repeat([0.0, 1.0], [900, 100])
    tied = Ranks.of(sparse, (sparse > 0).astype(np.int64), 2)
    assert tied.rank(np.array([0.0, 1.0])) == pytest.approx([0.45, 0.95], abs=0.011)
    _, labels = tied.draw((0.92, 1.0), np.random.default_rng(0).random((100, 2)))
    assert (labels == 1).all()


def test_novelty_guides_to_rare_rows() -> None:
    data = rows_of(1500)
    odd = np.arange(1500) % 50 == 0
    data = Transitions(**(vars(data) | {"actions": np.where(odd[:, None], 8, data.actions).astype(np.float32)}))
    upsampler = Upsampler(width=16, depth=1, condition="novelty")
    places = upsampler.prepare(data).ranks.numpy()
    assert places[odd].mean() > places[~odd].mean() + 0.25


def test_checkpoint_brings_the_model_back(trained: Upsampler, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save({"model_config": trained.config, "state_dict": {f"model.{k}": v for k, v in trained.state_dict().items()}}, path)
    again = dreamloom.load_upsampler(path)
    same(trained.sample(20, solver=FAST), again.sample(20, solver=FAST))
    same(
        trained.sample(20, condition=(0.9, 1.0), solver=FAST),
        load_upsampler(tmp_path).sample(20, condition=(0.9, 1.0), solver=FAST),
    )
    stranger = {"class_path": "dreamloom.nn.attention.Attention", "init_args": {"width": 8, "heads": 2}}
    torch.save({"model_config": stranger, "state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"holds a dreamloom\.nn\.attention\.Attention; here an Upsampler is needed"):
        load_upsampler(path)


def test_reduced_precision_draws_nearly_the_same_rows(trained: Upsampler) -> None:
    exact = trained.sample(200, solver=FAST)
    trained.precision = "bfloat16"
    try:
        rough = trained.sample(200, solver=FAST)
    finally:
        trained.precision = "float32"
    assert rough.observations.dtype == np.float32
    distance = np.abs(exact.observations - rough.observations) / exact.observations.std(0)
    assert np.median(distance) < 0.1
