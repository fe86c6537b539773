import gymnasium
import numpy as np
import pytest

from dreamloom.datasets import gymnasium_env
from dreamloom.datasets.gymnasium_env import collect_gymnasium
from dreamloom.datasets.resize import square
from dreamloom.datasets.store import open_dataset

PONG = "ale_py:ALE/Pong-v5"


def record(path, **options):
    collect_gymnasium(**{"env": PONG, "steps": 100, "out": path, "segment": 60, **options})
    return open_dataset(path)


@pytest.fixture(autouse=True)
def no_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


def test_pong_rows_are_what_a_hand_stepped_environment_shows(tmp_path):
    data = record(tmp_path / "a.hdf5", steps=300, segment=300, size=42, seed=4)
    env = gymnasium.make(PONG)
    env_seed, _ = np.random.SeedSequence([4, 0]).spawn(2)
    observation, _ = env.reset(seed=int(env_seed.generate_state(1)[0]) >> 1)
    for row in range(300):
        np.testing.assert_array_equal(data.observations[row], square(observation, 42, "stretch"))
        observation, reward, *_ = env.step(data.actions[row])
        assert data.rewards[row] == reward
    assert (data.rewards[:] != 0).sum() >= 2
    assert data.action_names == ["noop", "fire", "right", "left", "rightfire", "leftfire"]
    assert np.flatnonzero(data.timeouts[:]).tolist() == [299]


def test_rendered_pendulum_with_continuous_actions(tmp_path):
    data = record(tmp_path / "a.hdf5", env="Pendulum-v1", steps=260, segment=250, size=32, policy="random")
    assert data.actions.shape == (260, 1)
    assert data.actions.dtype == np.float32
    assert np.ptp(data.actions[:]) > 3
    assert data.observations[:].std() > 10
    assert data.episodes[1].tolist() == [130, 260]  # two segments; Pendulum's own limit is 200
    assert data.fps == 30.0


def test_own_endings_are_terminals_and_limits_are_timeouts(tmp_path):
    data = record(tmp_path / "a.hdf5", env="CartPole-v1", steps=120, segment=120, size=24, policy="random")
    _, ends = data.episodes
    assert len(ends) > 2
    assert data.terminals[:][ends[:-1] - 1].all()
    cut = record(tmp_path / "b.hdf5", env="Pendulum-v1", steps=205, segment=300, size=24)
    assert np.flatnonzero(cut.timeouts[:]).tolist() == [199, 204]
    assert not cut.terminals[:].any()


def test_an_interrupted_recording_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    whole = record(tmp_path / "whole.hdf5").path.read_bytes()
    played = iter([True, False])
    original = gymnasium_env._play

    def fails_the_second_time(*arguments):
        if not next(played):
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(gymnasium_env, "_play", fails_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.hdf5")
    monkeypatch.undo()
    assert record(tmp_path / "a.hdf5").path.read_bytes() == whole


class Crafter(gymnasium.Env):
    """Crafter speaks the interface of the old gym; this is all that it needs."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None):
        crafter = pytest.importorskip("crafter")
        self.env = crafter.Env(seed=0)
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self.env.action_space.n)

    def get_action_meanings(self):
        return self.env.action_names

    def reset(self, *, seed=None, options=None):
        return self.env.reset(), {}

    def step(self, action):
        observation, reward, done, info = self.env.step(action)
        return observation, reward, done and info["discount"] == 0, done and info["discount"] > 0, info


def test_crafter_registered_by_the_user(tmp_path):
    gymnasium.register("Crafter-v0", entry_point=Crafter)
    data = record(tmp_path / "a.hdf5", env="Crafter-v0", steps=40)
    assert data.observations.shape == (40, 64, 64, 3)
    assert data.observations[:].std() > 20
    assert data.action_names[:3] == ["noop", "move_left", "move_right"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env": "NoSuchThing-v0"}, "--env NoSuchThing-v0: .*exist"),
        ({"env": "no_module:Thing-v0"}, "--env no_module:Thing-v0: .*no_module"),
        ({"env_kwargs": {"wings": 2}}, "--env ale_py:ALE/Pong-v5: .*wings"),
        ({"env": "Pendulum-v1", "picture": "observation"}, r"observations are Box\(.*no RGB"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"policy": "scripted"}, "unknown policy 'scripted': choose from random, sticky"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path / "a.hdf5", **options)
    assert not list(tmp_path.iterdir())
