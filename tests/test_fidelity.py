"""Fidelity metrics against closed forms, and against the real simulator."""

from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.baselines import gaussian_copula, noise_copies
from dreamloom.eval.fidelity.columns import Columns, matrix
from dreamloom.eval.fidelity.dynamics import NotMeasurableError, dynamics_error
from dreamloom.eval.fidelity.marginals import correlation, correlation_distance, jensen_shannon, ks, wasserstein
from dreamloom.eval.fidelity.neighbours import copy_share, nearest, nearest_ratio
from dreamloom.eval.fidelity.sampling import episode_numbers, heldout_mask, sample_rows
from dreamloom.eval.fidelity.two_sample import c2st_auc


def gaussian(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def play(env_id: str, rows: int, seed: int = 0) -> Transitions:
    """Random actions in the real environment, float32 as files hold them."""
    env: gymnasium.Env = gymnasium.make(env_id)
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    taken = []
    for _ in range(rows):
        action = env.action_space.sample()
        after, reward, terminal, timeout, _ = env.step(action)
        taken.append((observation, action, reward, after, terminal, timeout))
        observation = env.reset()[0] if terminal or timeout else after
    columns = [np.array(column) for column in zip(*taken, strict=True)]
    return Transitions(*(column.astype(np.float32) for column in columns[:4]), *columns[4:])


@pytest.fixture(scope="module")
def cheetah(cheetah_file: Path) -> Transitions:
    return load_transitions(cheetah_file)


@pytest.fixture(scope="module")
def hopper(hopper_file: Path) -> Transitions:
    return load_transitions(hopper_file)


def random_generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_marginals_of_shifted_gaussians_are_the_closed_forms(shift: float) -> None:
    a, b = gaussian(20_000, 3, 0), gaussian(20_000, 3, 1) + shift
    assert ks(a, b) == pytest.approx(np.full(3, 2 * stats.norm.cdf(shift / 2) - 1), abs=0.02)
    assert wasserstein(a, b) == pytest.approx(np.full(3, shift), abs=0.04)
    assert (ks(a, a).max(), wasserstein(a, a).max()) == (0, 0)


def test_jensen_shannon_is_that_of_two_normals_and_bounded() -> None:
    random, grid = np.random.default_rng(0), np.linspace(-12, 14, 20001)
    p, q = stats.norm.pdf(grid), stats.norm.pdf(grid, 2.0)
    expected = (stats.entropy(p, p + q, base=2) + stats.entropy(q, p + q, base=2)) / 2  # it scales p + q to the mixture
    a, b = random.normal(size=(40_000, 1)), random.normal(2.0, 1, (30_000, 1))
    assert jensen_shannon(a, b)[0] == pytest.approx(expected, abs=0.01)
    assert jensen_shannon(a, random.normal(size=(30_000, 1)))[0] < 0.001
    assert jensen_shannon(a, a + 100)[0] == pytest.approx(1)
    zeros = np.zeros((50, 1))
    assert jensen_shannon(zeros, zeros)[0] == 0
    assert jensen_shannon(zeros, zeros + 1)[0] == pytest.approx(1)


def test_correlation_distance_is_over_pairs_of_columns() -> None:
    a = gaussian(50_000, 3, 0)
    b = a.copy()
    b[:, 1] = 0.6 * b[:, 0] + 0.8 * b[:, 1]
    assert correlation_distance(a, b) == pytest.approx(0.6 / 3, abs=0.01)
    assert correlation_distance(a, 5 * a + 2) == pytest.approx(0, abs=1e-12)
    assert (correlation(np.c_[a[:, :1], np.full(len(a), 0.1)])[1] == 0).all(), "a constant column has no correlation"


def test_a_copy_is_at_no_distance_and_an_unseen_row_as_far_as_others() -> None:
    training, unseen, fresh = (gaussian(800, 6, seed) for seed in range(3))
    far = nearest(training, unseen)
    assert far[3] == pytest.approx(np.linalg.norm(training - unseen[3], axis=1).min())
    copied = nearest(training, training[::2])
    assert (nearest_ratio(copied, far), copy_share(copied, far)) == (pytest.approx(0, abs=1e-6), 1)
    assert nearest_ratio(nearest(training, fresh), far) == pytest.approx(1, abs=0.05)
    assert nearest_ratio(nearest(training, training, skip=1), far) == pytest.approx(1, abs=0.05)
    assert copy_share(far, far) < 0.01
    assert nearest_ratio(far, np.zeros(3)) is None


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_classifier_has_the_auc_of_the_likelihood_ratio(shift: float) -> None:
    a, b = gaussian(1500, 2, 0), gaussian(1500, 2, 1) + np.array([shift, 0])
    found = c2st_auc(a, b, generator=random_generator())
    assert found == pytest.approx(stats.norm.cdf(shift / 2**0.5), abs=0.05)
    assert found == c2st_auc(a, b, generator=random_generator())


def test_noise_copies_have_the_noise_that_they_say(hopper: Transitions) -> None:
    noisy = noise_copies(hopper, sd=0.2, generator=random_generator())
    off = (matrix(noisy) - matrix(hopper)) / matrix(hopper).std(0)
    assert off.std(0) == pytest.approx(np.full(off.shape[1], 0.2), rel=0.1)
    assert np.array_equal(noisy.terminals, hopper.terminals)
    discrete = replace(hopper, actions=np.arange(len(hopper)) % 3)
    assert np.array_equal(noise_copies(discrete, generator=random_generator()).actions, discrete.actions)


def test_the_copula_keeps_marginals_and_ranks_and_nothing_else(hopper: Transitions) -> None:
    drawn = gaussian_copula(hopper, 3000, generator=random_generator())
    assert ks(matrix(drawn), matrix(hopper)).max() < 0.06
    assert drawn.terminals.mean() == pytest.approx(hopper.terminals.mean(), abs=0.02)
    assert set(drawn.rewards.tolist()) <= set(hopper.rewards.tolist())
    assert [value.dtype for value in vars(drawn).values() if value is not None] == [
        value.dtype for value in vars(hopper).values() if value is not None
    ]
    x = gaussian(4000, 2, 0)
    x[:, 1] = np.exp(0.8 * x[:, 0] + 0.6 * x[:, 1])  # a Gaussian copula of correlation 0.8
    flags = np.zeros(4000, bool)
    rows = Transitions(x[:, :1], x[:, 1:], x[:, 0], x[:, 1:], flags, flags)
    drawn = gaussian_copula(rows, 4000, generator=random_generator())
    assert stats.spearmanr(drawn.observations[:, 0], drawn.actions[:, 0]).statistic == pytest.approx(0.786, abs=0.02)
    assert np.array_equal(drawn.actions, drawn.next_observations), "columns that are equal stay equal"


def test_columns_are_named_scaled_and_checked(hopper: Transitions) -> None:
    columns = Columns.of(hopper)
    assert columns.names[:2] + columns.names[11:15] == ("s0", "s1", "a0", "a1", "a2", "r")
    assert columns.scaled(hopper).std(0) == pytest.approx(np.ones(26), abs=1e-4)
    discrete = replace(hopper, actions=np.arange(len(hopper)) % 3)
    assert Columns.of(discrete).names[11:15] == ("a=0", "a=1", "a=2", "r")
    assert Columns.of(discrete).scaled(discrete[:3]).shape == (3, 26)
    with pytest.raises(ValueError, match="has action 7, the real data has 0 to 2"):
        Columns.of(discrete).scaled(replace(discrete, actions=np.full(len(discrete), 7)))
    with pytest.raises(ValueError, match="are not those of the real data"):
        columns.scaled(discrete)
    with pytest.raises(ValueError, match="r is inf in some row"):
        columns.scaled(replace(hopper, rewards=np.full(len(hopper), np.inf)))


def test_episodes_are_found_where_timeouts_were_dropped(cheetah: Transitions, hopper: Transitions) -> None:
    ends = np.flatnonzero(hopper.terminals | hopper.timeouts)
    assert np.array_equal(np.flatnonzero(np.diff(episode_numbers(hopper))), ends[:-1])
    cut = cheetah[~cheetah.timeouts]
    assert np.bincount(episode_numbers(cut)).tolist() == [999, 999]


@given(lengths=st.lists(st.integers(1, 30), min_size=2, max_size=30), seed=st.integers(0, 99))
def test_one_in_five_episodes_is_held_out_spread_over_time(lengths: list[int], seed: int) -> None:
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    mask = heldout_mask(episodes, random_generator(seed))
    held = set(episodes[mask].tolist())
    assert not held & set(episodes[~mask].tolist())
    assert len(held) == max(1, len(lengths) // 5)
    assert all(len(held & set(range(first, first + 5))) == 1 for first in range(0, len(lengths) - 4, 5))


def test_a_sample_is_of_all_rows_and_repeats(hopper_file: Path, hopper: Transitions) -> None:
    with open_dataset(hopper_file) as data:
        first, again = (sample_rows(data, 50, random_generator(1)) for _ in range(2))
        everything = sample_rows(data, 10_000, random_generator())
    assert np.array_equal(everything.observations, hopper.observations)
    assert np.array_equal(first.rewards, again.rewards)
    rows = [int(np.flatnonzero((hopper.observations == row).all(1))[0]) for row in first.observations]
    assert len(set(rows)) == 50
    assert np.mean(rows) == pytest.approx(1000, abs=300)


def test_the_simulator_repeats_recorded_rows(cheetah: Transitions, hopper: Transitions) -> None:
    for env_id, real in (("HalfCheetah-v5", cheetah[::4]), ("Hopper-v5", hopper[::4])):
        found = dynamics_error(env_id, real).summary()
        assert found["mse"] < 1e-9, "float32 rounding of the state is all that differs"
        assert found["reward_mse"] < 1e-9
        assert (found["terminal_agreement"], found["left_out"]) == (1, pytest.approx(0, abs=0.01))
        noisy = noise_copies(real, sd=0.01, generator=random_generator())
        assert dynamics_error(env_id, noisy, scale=real).summary()["mse"] > 1e-5


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "Ant-v5", "InvertedPendulum-v5"])
def test_the_simulator_repeats_rows_of_other_bodies(env_id: str) -> None:
    real = play(env_id, 150)
    found = dynamics_error(env_id, real).summary()
    assert found["mse"] < 1e-9, "float32 rounding of the state is all that differs"
    assert found["terminal_agreement"] == 1
    assert found["left_out"] < (0.95 if env_id == "Walker2d-v5" else 0.01), "random actions make Walker2d faster than it sees"
    # Ant takes its speed from positions that lag behind by one step of the integrator.
    assert found["reward_mse"] < (1e-2 if env_id == "Ant-v5" else 1e-9)


def test_rows_that_no_simulation_can_follow_are_left_out(cheetah: Transitions) -> None:
    real = cheetah[:50]
    wild = real.observations.copy()
    wild[:5] = 1e12
    found = dynamics_error("HalfCheetah-v5", replace(real, observations=wild), scale=real)
    assert found.valid.tolist() == [False] * 5 + [True] * 45
    assert found.summary()["left_out"] == pytest.approx(0.1)
    assert found.summary()["mse"] < 1e-9, "the rows after them are measured as if nothing had been"


def test_errors_are_in_standard_deviations_of_the_real_rows(cheetah: Transitions) -> None:
    real = cheetah[:200]
    off = replace(real, next_observations=real.next_observations + 2 * real.next_observations.std(0), rewards=real.rewards + 3)
    found = dynamics_error("HalfCheetah-v5", off, scale=real).summary()
    assert found["mse"] == pytest.approx(4, rel=1e-4)
    assert found["reward_mse"] == pytest.approx(9 / real.rewards.var(), rel=1e-4)


def test_terminals_are_held_against_the_simulator(hopper: Transitions) -> None:
    real = hopper[:300]
    found = dynamics_error("Hopper-v5", replace(real, terminals=np.arange(300) == 0)).summary()
    assert (found["terminal_precision"], found["terminal_recall"]) == (0, 0)
    assert found["terminal_agreement"] == pytest.approx(1 - (real.terminals.sum() + 1) / 300)
    found = dynamics_error("Hopper-v5", real).summary()
    assert (found["terminal_precision"], found["terminal_recall"]) == (1, 1)


def test_what_cannot_be_measured_says_why(cheetah: Transitions) -> None:
    real = cheetah[:5]
    for env_id, reason in [("CartPole-v1", "not a MuJoCo environment"), ("Reacher-v5", "does not hold the simulator's pos")]:
        with pytest.raises(NotMeasurableError, match=reason):
            dynamics_error(env_id, real)
    with pytest.raises(ValueError, match=r"observations have shape \(17,\) a row, those of Hopper-v5 have \(11,\)"):
        dynamics_error("Hopper-v5", real)
    with pytest.raises(ValueError, match="environment 'HalfCheetah-v99'"):
        dynamics_error("HalfCheetah-v99", real)


def test_what_followed_a_row_may_be_unknown(hopper: Transitions) -> None:
    real = hopper[:200]
    trap = np.where(real.terminals[:, None], real.observations, real.next_observations)
    found = dynamics_error("Hopper-v5", replace(real, next_observations=trap, next_known=~real.terminals), scale=real)
    assert np.array_equal(np.isnan(found.observation), real.terminals)
    assert found.summary()["mse"] < 1e-9
    assert found.summary()["terminal_recall"] == 1


def test_settings_of_the_environment_are_kept(cheetah: Transitions) -> None:
    found = dynamics_error("HalfCheetah-v5", cheetah[:50], env_kwargs={"ctrl_cost_weight": 1.0}).summary()
    assert found["mse"] < 1e-9 < found["reward_mse"]
    with pytest.raises(ValueError, match="no_such_setting"):
        dynamics_error("HalfCheetah-v5", cheetah[:50], env_kwargs={"no_such_setting": 1})
