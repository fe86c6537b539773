"""Fidelity metrics against closed forms, and against the real simulator."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from scipy import stats

from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.dynamics import NotMeasurableError, dynamics_error
from dreamloom.eval.fidelity.marginals import correlation, correlation_distance, ks, wasserstein


def gaussian(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns))


def play(env_id: str, rows: int, seed: int = 0) -> Transitions:
    """Random actions in the real environment, float32 as files hold them."""
    env = gymnasium.make(env_id)
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


@pytest.mark.parametrize("shift", [0.3, 1.0])
def test_marginals_of_shifted_gaussians_are_the_closed_forms(shift: float) -> None:
    a, b = gaussian(20_000, 3, 0), gaussian(20_000, 3, 1) + shift
    assert ks(a, b) == pytest.approx(np.full(3, 2 * stats.norm.cdf(shift / 2) - 1), abs=0.02)
    assert wasserstein(a, b) == pytest.approx(np.full(3, shift), abs=0.04)
    assert (ks(a, a).max(), wasserstein(a, a).max()) == (0, 0)


def test_correlation_distance_is_over_pairs_of_columns() -> None:
    a = gaussian(50_000, 3, 0)
    b = a.copy()
    b[:, 1] = 0.6 * b[:, 0] + 0.8 * b[:, 1]
    assert correlation_distance(a, b) == pytest.approx(0.6 / 3, abs=0.01)
    assert correlation_distance(a, 5 * a + 2) == pytest.approx(0, abs=1e-12)
    assert (correlation(np.c_[a[:, :1], np.full(len(a), 0.1)])[1] == 0).all(), "a constant column has no correlation"


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "InvertedPendulum-v5"])
def test_the_simulator_repeats_real_rows(env_id: str) -> None:
    real = play(env_id, 300)
    found = dynamics_error(env_id, real).summary()
    assert found["mse"] < 1e-9, "float32 rounding of the state is all that differs"
    assert found["terminal_agreement"] == 1
    assert found["left_out"] < (0.95 if env_id == "Walker2d-v5" else 0.01), "random actions make Walker2d faster than it sees"
    # Ant takes its speed from positions that lag behind by one step of the integrator.
    assert found["reward_mse"] < (1e-2 if env_id == "Ant-v5" else 1e-9)


def test_rows_that_no_simulation_can_follow_are_left_out() -> None:
    real = play("HalfCheetah-v5", 50)
    wild = real.observations.copy()
    wild[:5] = 1e12
    found = dynamics_error("HalfCheetah-v5", replace(real, observations=wild), scale=real)
    assert found.valid.tolist() == [False] * 5 + [True] * 45
    assert found.summary()["left_out"] == pytest.approx(0.1)
    assert found.summary()["mse"] < 1e-9, "the rows after them are measured as if nothing had been"


def test_errors_are_in_standard_deviations_of_the_real_rows() -> None:
    real = play("HalfCheetah-v5", 200)
    off = replace(real, next_observations=real.next_observations + 2 * real.next_observations.std(0), rewards=real.rewards + 3)
    found = dynamics_error("HalfCheetah-v5", off, scale=real).summary()
    assert found["mse"] == pytest.approx(4, rel=1e-4)
    assert found["reward_mse"] == pytest.approx(9 / real.rewards.var(), rel=1e-4)


def test_terminals_are_held_against_the_simulator() -> None:
    real = play("Hopper-v5", 300)
    found = dynamics_error("Hopper-v5", replace(real, terminals=np.arange(300) == 0)).summary()
    assert (found["terminal_precision"], found["terminal_recall"]) == (0, 0)
    assert found["terminal_agreement"] == pytest.approx(1 - (real.terminals.sum() + 1) / 300)
    found = dynamics_error("Hopper-v5", real).summary()
    assert (found["terminal_precision"], found["terminal_recall"]) == (1, 1)


def test_what_cannot_be_measured_says_why() -> None:
    real = play("HalfCheetah-v5", 5)
    for env_id, reason in [("CartPole-v1", "not a MuJoCo environment"), ("Reacher-v5", "does not hold the simulator's pos")]:
        with pytest.raises(NotMeasurableError, match=reason):
            dynamics_error(env_id, real)
    with pytest.raises(ValueError, match=r"observations have shape \(17,\) a row, those of Hopper-v5 have \(11,\)"):
        dynamics_error("Hopper-v5", real)
    with pytest.raises(ValueError, match="environment 'HalfCheetah-v99'"):
        dynamics_error("HalfCheetah-v99", real)
