"""Recording the control suite: rows against the simulator, and distractors by level. Needs the extra `dmc`."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dreamloom.cli import main
from dreamloom.datasets.dmc import collect_dmc
from dreamloom.datasets.store import open_dataset

if find_spec("dm_control"):
    try:
        from dreamloom.datasets.control_suite import ControlSuite

        ControlSuite("cheetah-run", size=8).close()
        CANNOT = ""
    except ValueError as error:  # no driver renders here
        CANNOT = str(error)
else:
    CANNOT = "dm_control is not installed"
renders = pytest.mark.skipif(bool(CANNOT), reason=CANNOT)


def record(path: Path, **options):
    collect_dmc(**{"task": "cheetah-run", "steps": 8, "segment": 4, "size": 16, "out": path, **options})
    return open_dataset(path)


def shown(level, distraction="hard", **options):
    env = ControlSuite("walker-walk", size=24, distraction=distraction, levels=(level, level + 1), **options)
    frame, _ = env.reset(seed=0)
    env.close()
    return frame.astype(int)


@renders
def test_rows_are_what_the_simulator_shows(tmp_path):
    data = record(tmp_path / "a.hdf5", levels="3:5", distraction="easy")
    env = ControlSuite("cheetah-run", size=16, distraction="easy", levels=(3, 5))
    seed = np.random.SeedSequence([0, 0]).spawn(2)[0]
    frame, info = env.reset(seed=int(seed.generate_state(1)[0]) >> 1)
    for row in range(4):
        np.testing.assert_array_equal(data.observations[row], frame)
        assert data.infos["level_seed"][row] == info["level_seed"]
        frame, reward, *_ = env.step(data.actions[row])
        assert data.rewards[row] == np.float32(reward)
    env.close()
    np.testing.assert_array_equal(data.observations[4], frame)  # after the last step
    assert data.infos["last_frame"][:].nonzero()[0].tolist() == data.timeouts[:].nonzero()[0].tolist() == [4, 9]
    assert not data.actions[4].any()
    assert set(data.infos["level_seed"][:].tolist()) <= {3, 4}
    assert (data.attrs["env"], data.fps) == ("cheetah-run", 50.0)
    assert data.attrs["source"]["distraction"] == "easy"


@renders
def test_two_rewards_make_a_step_and_the_clock_ends_an_episode(tmp_path):
    env = ControlSuite("cheetah-run", size=8)
    env.reset(seed=0)
    env.render = lambda: np.zeros((8, 8, 3), np.uint8)  # 500 frames would take a minute
    ends = [env.step(env.action_space.sample()) for _ in range(500)]
    assert [step[3] for step in ends] == [False] * 499 + [True]
    assert not any(step[2] for step in ends)
    env.close()


@renders
def test_a_level_is_an_appearance():
    first, again, other, plain = shown(1), shown(1), shown(2), shown(1, "none")
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 5
    assert np.abs(first - plain).mean() > 5
    np.testing.assert_array_equal(plain, shown(2, "none"))
    easy = np.abs(shown(1, "easy") - plain)[-4:].mean()  # the floor: colours alone
    assert easy < np.abs(first - plain)[-4:].mean()


@renders
def test_backgrounds_are_a_folders_pictures(tmp_path):
    from PIL import Image

    Image.new("RGB", (9, 9), (255, 0, 255)).save(tmp_path / "a.png")
    frame = shown(1, backgrounds=tmp_path)
    assert (frame[0] == [255, 0, 255]).all()  # the sky
    with pytest.raises(ValueError, match="no picture is in it"):
        shown(1, backgrounds=tmp_path / "none")


@renders
def test_an_episode_becomes_v_d4rls(tmp_path):
    record(tmp_path / "a.hdf5")
    assert main(["data", "convert", str(tmp_path / "a.hdf5"), "--to", f"vd4rl:{tmp_path / 'b.hdf5'}"]) == 0
    with open_dataset(tmp_path / "b.hdf5") as data, open_dataset(tmp_path / "a.hdf5") as source:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            np.testing.assert_array_equal(getattr(data, name)[:], getattr(source, name)[:])


def test_without_dm_control_one_line_tells_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    monkeypatch.setitem(os.environ, "MUJOCO_GL", "egl")
    assert main(["collect", "dmc", "--task", "walker-walk", "--steps", "5", "--out", str(tmp_path / "a.hdf5")]) == 2
    told = capsys.readouterr().err
    assert "dm_control is missing" in told
    assert "pip install 'dreamloom[dmc]'" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"policy": "sac"}, "unknown policy 'sac'"),
        ({"levels": "3"}, "LO:HI"),
        ({"segment": 501}, "at most an episode, 500 steps"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path / "a.hdf5", **options)
    assert not list(tmp_path.iterdir())
