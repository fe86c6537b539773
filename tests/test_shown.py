"""Environments of other people: what they show is converted where it is clear, and refused at the first picture where not."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamloom import cli
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.datasets.gymnasium_env import collect_gymnasium
from dreamloom.datasets.shown import PlainSteps, Screen
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.types import Transitions
from dreamloom.eval.agent import evaluate_agent

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[:, :, :1]
OPAQUE = np.concatenate([RGB, np.full((6, 9, 1), 255, np.uint8)], 2)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (RGB, RGB),
        (OPAQUE, RGB),
        (np.moveaxis(OPAQUE, 2, 0), RGB),
        (np.moveaxis(RGB, 2, 0), RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.int64), RGB),
        (GREY, GREY.repeat(3, 2)),
        (GREY[:, :, 0], GREY.repeat(3, 2)),
        (np.moveaxis(GREY, 2, 0), GREY.repeat(3, 2)),
        (GREY[:, :, 0] > 99, 255 * (GREY > 99).repeat(3, 2).astype(np.uint8)),
    ],
)
def test_what_is_clear_is_converted(shown: np.ndarray, expected: np.ndarray) -> None:
    found = Screen("env")(shown)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_transparency_is_laid_on_black() -> None:
    half = np.concatenate([np.full((2, 2, 3), 200, np.uint8), np.full((2, 2, 1), 128, np.uint8)], 2)
    np.testing.assert_array_equal(Screen("env")(half), np.full((2, 2, 3), 100, np.uint8))


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (None, r"env: shows nothing \(None\)"),
        ([RGB, RGB], "env: shows a list"),
        (np.zeros((6, 9, 5), np.uint8), r"uint8 of shape \(6, 9, 5\)"),
        (np.zeros(27, np.uint8), r"uint8 of shape \(27,\)"),
        (np.full((6, 9, 3), np.nan), "from nan to nan"),
        (RGB.astype(np.float32) - 300, "expected 0 to 1"),
        (RGB.astype(np.uint16) * 257, "expected 0 to 255"),
    ],
)
def test_what_is_not_clear_is_refused(shown: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Screen("env")(shown)


def test_four_grey_frames_are_no_rgba() -> None:
    with pytest.raises(ValueError, match=r"shape \(6, 9, 4\)"):
        Screen("env", stacked=True)(OPAQUE)


@given(st.floats(0, 1, width=32))
def test_the_first_picture_fixes_the_scale(dark: float) -> None:
    screen = Screen("env")
    screen(RGB.astype(np.float32))
    assert screen(np.full((6, 9, 3), dark, np.float32)).max() == round(dark)  # of 255, not of 1
    screen = Screen("env")
    screen(np.full((6, 9, 3), dark, np.float32))
    with pytest.raises(ValueError, match="expected 0 to 1"):
        screen(RGB.astype(np.float32))
    with pytest.raises(ValueError, match="its first picture had 3 channels last"):
        screen(GREY)


class Other(gymnasium.Env):
    """Shows and pays as it is told."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, show: Callable[[], Any], reward: Any, actions: gymnasium.Space, render_mode: str | None = None):
        self.show, self.reward, self.action_space, self.render_mode = show, reward, actions, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), self.reward, np.bool_(False), np.array([False]), {}

    def render(self) -> Any:
        return self.show()


def register(show: Any, reward: Any, actions: gymnasium.Space | None = None) -> str:
    kwargs = {"show": lambda: show, "reward": reward, "actions": actions or gymnasium.spaces.Discrete(2)}
    gymnasium.registry.pop("Other-v0", None)
    gymnasium.register("Other-v0", entry_point=Other, kwargs=kwargs, max_episode_steps=5, disable_env_checker=True)
    return "Other-v0"


@pytest.mark.parametrize("reward", [0.5, np.float64(0.5), np.array([0.5]), np.float32(0.5)])
def test_a_recording_of_rgba_and_arrays_as_rewards(reward: Any, tmp_path: Any) -> None:
    collect_gymnasium(env=register(OPAQUE, reward), steps=6, size=6, out=tmp_path / "a.hdf5", policy="random")
    with open_dataset(tmp_path / "a.hdf5") as data:
        assert data.rewards is not None
        assert data.rewards[:].tolist() == [0.5] * 6
        assert data.timeouts[:].tolist() == [False] * 4 + [True, True]
        assert data.observations[:].std() > 20


CONTINUOUS = gymnasium.spaces.Box(-1, 1, (1,))


@pytest.mark.parametrize(
    ("show", "reward", "actions", "verb", "said"),
    [
        (None, 0.0, None, "gymnasium --size 6", "--env Other-v0: shows nothing (None)"),
        (RGB[..., None], 0.0, None, "gymnasium --size 6", "uint8 of shape (6, 9, 3, 1)"),
        (RGB, None, None, "gymnasium --size 6", "Other-v0: gives None as `reward`, expected one number"),
        (RGB, np.zeros(2), None, "gymnasium --size 6", "as `reward`, expected one number"),
        (RGB, None, CONTINUOUS, "mujoco --policy random", "Other-v0: gives None as `reward`"),
    ],
)
def test_one_line_at_the_first_frame(
    show: Any, reward: Any, actions: Any, verb: str, said: str, tmp_path: Any, capsys: pytest.CaptureFixture
) -> None:
    words = f"collect {verb} --env {register(show, reward, actions)} --steps 100000 --out {tmp_path / 'a.hdf5'}"
    assert cli.main(words.split()) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("dreamloom: ")
    assert said in line
    assert not (tmp_path / "a.hdf5").exists()


def test_steps_are_plain() -> None:
    env = PlainSteps(Other(lambda: RGB, np.array([[2]]), gymnasium.spaces.Discrete(2)))
    _, reward, terminal, truncated, _ = env.step(0)
    assert [type(value) for value in (reward, terminal, truncated)] == [float, bool, bool]
    assert (reward, terminal, truncated) == (2.0, False, False)


def test_agents_are_paid_plain_numbers() -> None:
    rows, none = np.zeros((2, 50, 2), np.float32), np.zeros(50, bool)
    rows += np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    agent = TD3BC(seeds=2, width=16)
    agent.prepare(Transitions(rows[0], rows[0, :, :1].clip(-1, 1), np.zeros(50, np.float32), rows[1], none, none))
    returns = evaluate_agent(agent, register(RGB, np.array([0.5]), CONTINUOUS), episodes=3)
    np.testing.assert_array_equal(returns, np.full((2, 3), 2.5))  # of five steps
    with pytest.raises(ValueError, match="Other-v0: gives None as `reward`, expected one number"):
        evaluate_agent(agent, register(RGB, None, CONTINUOUS), episodes=3)
