"""The upsampled replay buffer inside Stable-Baselines3: the algorithm is the library's own, only its buffer differs."""

import gymnasium
import numpy as np
import pytest

from dreamloom.diffusion.upsampler import Upsampler

pytest.importorskip("stable_baselines3")
from stable_baselines3 import SAC, TD3

from dreamloom.agents.online import UpsampledReplayBuffer

SETTINGS = {"upsampler": Upsampler(width=32, depth=1), "refit_every": 60, "fit_steps": 3, "synthetic_rows": 100}


def learn(algorithm: type, steps: int, **settings: object) -> UpsampledReplayBuffer:
    model = algorithm(
        "MlpPolicy",
        gymnasium.make("Pendulum-v1"),
        learning_starts=20,
        batch_size=16,
        policy_kwargs={"net_arch": [16]},
        replay_buffer_class=UpsampledReplayBuffer,
        replay_buffer_kwargs={**SETTINGS, **settings},
        seed=0,
        device="cpu",
    )
    model.learn(steps)
    return model.replay_buffer


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_off_policy_algorithms_learn_from_it(algorithm: type) -> None:
    buffer = learn(algorithm, 130)
    assert buffer.refits == 2
    assert buffer.synthetic is not None
    assert len(buffer.synthetic) == 100


def test_half_of_a_batch_is_synthetic_after_the_first_fit_and_none_before() -> None:
    buffer = learn(SAC, 59)
    assert buffer.synthetic is None
    assert len(buffer.sample(10).rewards) == 10
    buffer.refit()
    assert buffer.synthetic is not None
    batch = buffer.sample(10)
    known = {tuple(row) for row in buffer.synthetic.observations}
    made = [tuple(row) in known for row in batch.observations.numpy()]
    assert made == [False] * 5 + [True] * 5
    assert [tuple(column.shape) for column in batch[:5]] == [(10, 3), (10, 1), (10, 3), (10, 1), (10, 1)]


def test_a_full_share_is_synthetic_alone() -> None:
    buffer = learn(SAC, 70, synthetic_share=1.0)
    known = {tuple(row) for row in buffer.synthetic.observations}  # type: ignore[union-attr]
    assert all(tuple(row) in known for row in buffer.sample(8).observations.numpy())


def test_an_episode_cut_by_time_is_no_terminal() -> None:
    buffer = learn(SAC, 230, refit_every=10_000)  # Pendulum is cut after 200 steps and never ends
    real = buffer.real()
    assert len(real) == 230
    assert real.timeouts.nonzero()[0].tolist() == [199]
    assert not real.terminals.any()
    inside = np.setdiff1d(np.arange(229), [199])
    np.testing.assert_array_equal(real.next_observations[inside], real.observations[inside + 1])


@pytest.mark.parametrize("settings", [{"synthetic_share": 1.5}, {"refit_every": 0}, {"optimize_memory_usage": True}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    space = gymnasium.spaces.Box(-1, 1, (3,))
    with pytest.raises(ValueError, match=r"share|needs"):
        UpsampledReplayBuffer(
            10,
            space,
            space,
            handle_timeout_termination=False,
            **{**SETTINGS, **settings},  # type: ignore[arg-type]
        )


def test_pixels_are_refused() -> None:
    pixels = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="flat boxes"):
        UpsampledReplayBuffer(10, pixels, gymnasium.spaces.Box(-1, 1, (1,)), **SETTINGS)  # type: ignore[arg-type]


def test_rows_that_cannot_be_diffused_leave_the_last_upsampler_in_place() -> None:
    buffer = learn(SAC, 59)
    for column in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        column[:] = 1.0
    with pytest.warns(UserWarning, match=r"after 59 steps: all 59 rows are combinations .*; batches are of real rows alone"):
        buffer.refit()
    assert buffer.synthetic is None
    assert len(buffer.sample(10).rewards) == 10
    buffer = learn(SAC, 70)
    made, buffer.rewards[3] = buffer.synthetic, np.nan
    with pytest.warns(UserWarning, match=r"1 of 70 rows hold NaN .*\(rewards 1\); the last upsampler's rows stay"):
        buffer.refit()
    assert buffer.synthetic is made
    assert buffer.refits == 1
