"""Stable-Baselines3's replay buffers as transitions: the environment's own log of what it was given is the truth."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import dreamloom
from dreamloom.datasets.transitions import load_transitions

pytest.importorskip("stable_baselines3")
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv

LATER = np.array([0.0, 0, 1])  # from an observation to the next: its last number is the time


class Logged(gymnasium.Env):
    """Episodes of 7 steps; every third ends itself, the others are cut. It remembers all that happened."""

    def __init__(self, name=0.0, observation="vector", discrete=False, log=None):
        parts = {"b": spaces.Box(-100, 1e4, (1,)), "a": spaces.Box(-100, 1e4, (2,))}
        kinds = {
            "vector": spaces.Box(-100, 1e4, (3,)),
            "dict": spaces.Dict(parts),
            "frame": spaces.Box(0, 255, (40, 36, 3), np.uint8),
        }
        self.observation_space, self.kind = kinds[observation], observation
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(np.array([-2.0, 0], "f"), np.array([2.0, 5], "f"))
        self.name, self.log = name, [] if log is None else log
        self.episode, self.time = -1, 0

    def seen(self):
        now = np.array([self.name, self.episode, self.time], np.float32)
        if self.kind == "dict":
            return {"b": now[2:], "a": now[:2]}
        return np.full((40, 36, 3), self.time, np.uint8) * np.uint8([1, 2, 3]) if self.kind == "frame" else now

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.seen(), {}

    def step(self, action):
        before = [self.name, self.episode, self.time]
        self.time += 1
        over = self.time == 7
        ended = over and self.episode % 3 == 0
        self.log.append((before, np.array(action), float(self.time), ended, over and not ended))
        return self.seen(), float(self.time), ended, over and not ended, {}


def learnt(kind, envs=1, steps=60, observation="vector", **settings):
    """A model that acted at random, and what its environments logged."""
    logs = [[] for _ in range(envs)]
    discrete = kind is DQN
    made = [lambda i=i: Logged(float(i), observation, discrete, logs[i]) for i in range(envs)]
    policy = {"vector": "MlpPolicy", "dict": "MultiInputPolicy", "frame": "CnnPolicy"}[observation]
    size = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0, "learning_starts": 10_000}
    model = kind(policy, DummyVecEnv(made), **{**size, **settings})
    return model.learn(steps), logs


def columns(log):
    return (np.array(column) for column in zip(*log, strict=True))


@pytest.mark.parametrize("kind", [SAC, TD3, DQN])
@pytest.mark.parametrize(("envs", "size"), [(1, 1000), (3, 1000), (2, 40)])
def test_rows_are_what_each_environment_was_given_in_order_of_time(kind, envs, size):
    model, logs = learnt(kind, envs, buffer_size=size)
    found = dreamloom.from_sb3(model)
    kept = min(len(logs[0]), size // envs)
    assert len(found) == kept * envs
    for i, log in enumerate(logs):
        part = found[i * kept : (i + 1) * kept]
        now, actions, rewards, terminals, timeouts = columns(log[-kept:])
        np.testing.assert_array_equal(part.observations, now)
        np.testing.assert_allclose(part.actions, actions, atol=1e-6)
        np.testing.assert_array_equal(part.rewards, rewards)
        np.testing.assert_array_equal(part.terminals, terminals)
        timeouts[-1] |= not terminals[-1]  # where the buffer stops
        np.testing.assert_array_equal(part.timeouts, timeouts)
        np.testing.assert_array_equal(part.next_observations, now + LATER)
    assert found.actions.dtype == (np.int64 if kind is DQN else np.float32)


def test_dictionaries_are_vectors_in_the_order_of_the_names():
    model, (log,) = learnt(SAC, observation="dict", steps=20)
    found = dreamloom.from_sb3(model)
    np.testing.assert_array_equal(found.observations, [before for before, *_ in log])
    np.testing.assert_array_equal(found.next_observations, found.observations + LATER)


def test_frames_have_their_channels_last():
    model, (log,) = learnt(DQN, observation="frame", steps=20, buffer_size=100, policy_kwargs={})
    found = dreamloom.from_sb3(model)
    assert found.observations.shape == (20, 40, 36, 3)
    np.testing.assert_array_equal(found.observations[:, 0, 0], np.outer([before[2] for before, *_ in log], [1, 2, 3]))


def test_a_buffer_without_next_observations_gives_those_that_it_holds():
    options = {"replay_buffer_kwargs": {"handle_timeout_termination": False}, "optimize_memory_usage": True}
    model, (log,) = learnt(SAC, steps=60, buffer_size=40, **options)
    with pytest.warns(UserWarning, match="handle_timeout_termination=False: episodes that a time limit cut count as terminal"):
        found = dreamloom.from_sb3(model)
    now = np.array([before for before, *_ in log[-39:]])
    ends = now[:, 2] == 6
    np.testing.assert_array_equal(found.observations, now)
    assert found.terminals.tolist() == ends.tolist() == (~found.next_known).tolist()
    np.testing.assert_array_equal(found.next_observations[~ends], (now + LATER)[~ends])


def test_what_is_saved_obeys_pendulums_own_physics(tmp_path):
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=1000, seed=0, device="cpu").learn(250)
    dreamloom.save_dataset(dreamloom.from_sb3(model), tmp_path / "a.hdf5", attrs={"env": "Pendulum-v1"})
    rows = load_transitions(tmp_path / "a.hdf5")
    cosine, sine, speed = rows.observations.T
    expected = np.clip(speed + (15 * np.sin(np.arctan2(sine, cosine)) + 3 * rows.actions[:, 0]) * 0.05, -8, 8)
    np.testing.assert_allclose(rows.next_observations[:, 2], expected, atol=1e-5)
    assert np.abs(rows.actions).max() > 1.5
    assert rows.timeouts.nonzero()[0].tolist() == [199, 249]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: PPO("MlpPolicy", Logged(), device="cpu"), "PPO has no replay buffer"),
        (lambda: SAC("MlpPolicy", Logged(), device="cpu"), "SAC has an empty replay buffer"),
    ],
)
def test_models_without_rows_are_refused(model, told):
    with pytest.raises(ValueError, match=told):
        dreamloom.from_sb3(model())
