"""Numbers that differ between environment and data: where actions count from, offsets that float32 would drown values in."""

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from test_eval_agent import checkpoint
from test_minari import Toy
from test_minari import record as record_minari

from dreamloom.agents.bc import BC
from dreamloom.agents.bcq import BCQ
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.training import train
from dreamloom.agents.units import Units, discrete_actions
from dreamloom.cli import main
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.gymnasium_env import collect_gymnasium
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval.agent import evaluate_agent


@pytest.fixture(autouse=True)
def minaris_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


class Told(gym.Env):
    """Tells which action it wants; the return is how often it got it, of 20 steps. `scale` lies on a clock far from 0."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, start=0, clock=0.0, dictionary=False, continuous=False, render_mode=None):
        self.action_space = spaces.Box(-3, 5, (2, 1)) if continuous else spaces.Discrete(3, start=start)
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        parts = {"wanted": box, "clock": spaces.Box(-np.inf, np.inf, (1,), np.float64)}
        self.observation_space = spaces.Dict(parts) if dictionary else spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.start, self.clock, self.dictionary, self.continuous = start, clock, dictionary, continuous
        self.render_mode = render_mode

    def observe(self):
        self.wanted, self.time = int(self.np_random.integers(3)), self.time + 1
        flags = np.array([self.wanted == 1, self.wanted == 2], np.float64)
        clock = np.array([self.clock + self.wanted])
        return {"wanted": flags, "clock": clock} if self.dictionary else np.append(clock, flags)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        right = self.best() if not self.continuous else None
        got = float(action == right) if right is not None else float(abs(action - (2 * self.wanted - 1)).max() < 0.5)
        return self.observe(), got, False, self.time > 20, {}

    def best(self):
        return self.start + self.wanted

    def render(self):
        return np.full((32, 32, 3), 80 * self.wanted, np.uint8)


for name, options in {
    "Zero": {},
    "One": {"start": 1},
    "Minus": {"start": -1},
    "Clock": {"clock": 1.7e9},
    "Dict": {"dictionary": True, "start": 2},
    "Wide": {"continuous": True, "dictionary": True},
}.items():
    gym.register(f"Told{name}-v0", Told, kwargs=options, disable_env_checker=True)


def shown(start, n=400, clock=0.0):
    """Rows of a policy that does what it is told."""
    random = np.random.default_rng(0)
    wanted = random.integers(0, 3, n)
    seen = np.stack([clock + wanted, wanted == 1, wanted == 2], 1)
    none = np.zeros(n, bool)
    return Transitions(seen, wanted + start, np.ones(n, np.float32), seen, none, none)


def cloned(rows, kind=BC, **prepare):
    agent = kind(seeds=1, width=32, lr=0.01)
    agent.prepare(rows, **prepare)
    train(agent, Buffer([rows]), updates=150, batch_size=64, progress=False)
    return agent


@pytest.mark.parametrize("kind", [BC, BCQ])
@pytest.mark.parametrize(("env", "start"), [("ToldZero-v0", 0), ("ToldOne-v0", 1), ("ToldMinus-v0", -1)])
def test_agents_learn_from_actions_as_the_environment_counts_them(kind, env, start):
    agent = cloned(shown(start), kind)
    assert len(agent.action_low) == 3
    assert set(agent.act(torch.randn(1, 200, 3)).flatten().tolist()) <= {start, start + 1, start + 2}
    if kind is BC:
        assert evaluate_agent(agent, env, episodes=2).tolist() == [[20, 20]]


@pytest.mark.parametrize(("env", "start"), [("ToldOne-v0", 1), ("ToldMinus-v0", -1)])
def test_where_data_counts_from_0_the_start_is_added_when_the_environment_is_played(env, start, tmp_path):
    agent = cloned(shown(0), units=Units(action_start=start))
    assert set(agent.act(torch.randn(1, 200, 3)).flatten().tolist()) <= {0, 1, 2}
    assert evaluate_agent(agent, env, episodes=2).tolist() == [[20, 20]]
    again = BC(seeds=1, width=32, observation_size=3, action_size=3, discrete_actions=True)
    again.load_state_dict(torch.load(checkpoint(agent, tmp_path / "a.ckpt"), weights_only=True)["state_dict"], strict=False)
    again.load_state_dict({name.removeprefix("model."): value for name, value in agent.state_dict().items()})
    assert again.units == Units(action_start=start)


def test_dictionaries_and_discrete_actions_are_played_in_the_order_that_minari_is_read():
    rows = shown(2)  # of parts in the order of their names, the clock comes first
    assert evaluate_agent(cloned(rows), "ToldDict-v0", episodes=2).tolist() == [[20, 20]]
    wide = Transitions(**{**vars(rows), "actions": np.repeat(2.0 * rows.observations[:, :1] - 1, 2, 1).astype(np.float32)})
    assert evaluate_agent(cloned(wide), "ToldWide-v0", episodes=2).tolist() == [[20, 20]]


@pytest.mark.parametrize(
    ("rows", "env", "told"),
    [
        (shown(3), "ToldOne-v0", r"actions Discrete\(3, start=1\); the agents were trained on discrete ones, 3 to 5"),
        (shown(0), "ToldWide-v0", r"actions Box.*; the agents were trained on discrete ones, 0 to 2"),
        (shown(0), "CartPole-v1", r"observations Box.*; the agents were trained on observations \(3,\)"),
        (shown(0), "Pendulum-v1", r"actions Box.*; the agents were trained on discrete ones, 0 to 2"),
    ],
)
def test_agents_that_do_not_fit_are_told_as_what_they_are(rows, env, told):
    agent = BC(width=8)
    agent.prepare(rows)
    with pytest.raises(ValueError, match=told):
        evaluate_agent(agent, env, episodes=1)


@given(st.lists(st.lists(st.integers(-5, 9), min_size=1), min_size=1, max_size=3), st.integers(0, 12))
def test_discrete_actions_are_numbered_from_0_where_told_and_else_from_the_lowest(columns, told):
    arrays = [np.array(column) for column in columns]
    low, high = min(map(min, columns)), max(map(max, columns))
    if told and low < 0:
        with pytest.raises(ValueError, match=f"count from 0 to {told - 1}, the data's lowest is {low}"):
            discrete_actions(arrays, told)
    else:
        first, count = discrete_actions(arrays, told)
        assert (first, first + count) == ((0, max(told, high + 1)) if told else (low, high + 1))


def test_minari_and_gymnasium_store_from_0_and_keep_the_start(tmp_path):
    dataset = record_minari(Toy(spaces.Box(-1, 1, (3,)), spaces.Discrete(3, start=4)), "toys/start-v0")
    raw = np.concatenate([episode.actions for episode in dataset.iterate_episodes()])
    with open_dataset("minari:toys/start-v0") as data:
        assert data.attrs["action_start"] == 4
        np.testing.assert_array_equal(data.actions[:], raw - 4)
        for target in ("minari:toys/again-v0", str(tmp_path / "a.hdf5"), str(tmp_path / "a.npz"), str(tmp_path / "a")):
            save_dataset(data, target)
            with open_dataset(target) as again:
                assert again.attrs["action_start"] == 4
                np.testing.assert_array_equal(load_transitions(again).actions, raw - 4)
    import minari

    stored = minari.load_dataset("toys/again-v0")
    assert stored.action_space == spaces.Discrete(3, start=4)
    np.testing.assert_array_equal(np.concatenate([episode.actions for episode in stored.iterate_episodes()]), raw)
    collect_gymnasium(env="ToldMinus-v0", steps=40, out=tmp_path / "b.hdf5", size=16, policy="random")
    with open_dataset(tmp_path / "b.hdf5") as data:
        assert data.attrs["action_start"] == -1
        assert sorted(set(data.actions[:].tolist())) == [0, 1, 2]
        # The reward says whether the action was the wanted one, which the picture shows.
        wanted = data.observations[:, 0, 0, 0] // 80
        np.testing.assert_array_equal(data.rewards[:] == 1, data.actions[:] == wanted)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3), spaces.Dict({"a": spaces.Discrete(2)})])
def test_several_discrete_actions_at_once_are_refused_in_a_line(space, capsys):
    both = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1)}) if isinstance(space, spaces.Dict) else space
    record_minari(Toy(spaces.Box(-1, 1, (3,)), both), "toys/many-v0")
    assert main(["data", "minari:toys/many-v0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected Box, Discrete, or a dictionary or tuple of Box" in line
    assert str(both) in line


def write(path, rows):
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts"):
            file[name] = getattr(rows, name)
    return path


def test_clock_times_are_centred_aloud_and_the_offset_comes_off_when_the_environment_is_played(tmp_path):
    rows = shown(0, clock=1.7e9)
    with pytest.warns(UserWarning, match=r"a\.hdf5: `observations` \[0\]: .*3 different ones become 1\): they are read less"):
        data = open_dataset(write(tmp_path / "a.hdf5", rows))
    offset = np.array(data.attrs["observation_offset"])
    assert (offset[0] > 1.6e9, offset[1:].tolist()) == (True, [0, 0])
    for name in ("observations", "next_observations"):
        assert getattr(data, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(data, name)[:] + offset, rows.observations)
    save_dataset(data, tmp_path / "b.npz")
    with open_dataset(tmp_path / "b.npz") as again:  # float32 by now: nothing is taken off twice
        assert again.attrs["observation_offset"] == offset.tolist()
        np.testing.assert_array_equal(again.observations[:], data.observations[:])
    agent = cloned(load_transitions(data), units=Units.of(data.attrs))
    assert evaluate_agent(agent, "ToldClock-v0", episodes=2).tolist() == [[20, 20]]


@pytest.mark.parametrize("values", [np.linspace(-3, 3, 600), 1e4 + np.linspace(-3e4, 3e4, 600), np.full(600, 1.7e9)])
def test_columns_that_float32_holds_are_left_alone(tmp_path, values, recwarn):
    rows = shown(0, n=600)
    rows.observations[:, 0] = values
    with open_dataset(write(tmp_path / "a.hdf5", rows)) as data:
        assert "observation_offset" not in data.attrs
        np.testing.assert_array_equal(data.observations[:], rows.observations.astype(np.float32))
    assert not recwarn.list


def test_rewards_that_merge_are_warned_of(tmp_path):
    rows = shown(0)
    rewards = Transitions(**{**vars(rows), "rewards": 1e9 + rows.observations[:, 0]})
    with pytest.warns(UserWarning, match=r"`rewards`: .* 3 different ones become 1\): take off what they have in common"):
        open_dataset(write(tmp_path / "a.hdf5", rewards))


def test_datasets_with_other_offsets_are_not_mixed():
    with pytest.raises(ValueError, match=r"a and b differ in `action_start` \(1, 0\)"):
        Units.common([{"action_start": 1}, {}], ["a", "b"])
    assert Units.common([{"action_start": 1}] * 2, ["a", "b"]) == Units(action_start=1)
    agent = IQL(width=8)
    agent.prepare(shown(0).__class__(**{**vars(shown(0)), "actions": np.zeros((400, 2), np.float32)}))
    assert agent.units == Units()
