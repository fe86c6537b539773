"""Recording replay: every row is checked against the real simulator, and SAC's recordings against an interrupted one."""

import json
import re
import shlex
import sys
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from dreamloom.cli import main
from dreamloom.datasets.mujoco import collect_mujoco
from dreamloom.datasets.recorder import Recorder

pytest.importorskip("mujoco")

SAC = {"learning_starts": 60, "updates_per_step": 0.25, "batch_size": 16, "width": 16, "segment": 90, "policy": "sac"}


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: array[:] for name, array in file.items()}


def record(path: Path, **options) -> dict[str, np.ndarray]:
    collect_mujoco(**{"env": "Hopper-v5", "steps": 300, "out": path, "policy": "random", **options})
    return read(path)


@pytest.fixture(scope="module")
def sac_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sac") / "whole.hdf5"
    record(path, **SAC)
    assert list(path.parent.iterdir()) == [path]
    return path


@pytest.fixture(params=["cheetah_file", "hopper_file", "sac_file"])
def rows(request) -> dict[str, np.ndarray]:
    return read(request.getfixturevalue(request.param))


def test_a_row_goes_on_where_the_one_before_it_ended(rows):
    last = rows["terminals"] | rows["timeouts"]
    follows = (rows["next_observations"][:-1] == rows["observations"][1:]).all(1)
    np.testing.assert_array_equal(follows, ~last[:-1])
    assert last[-1]
    assert not (rows["terminals"] & rows["timeouts"]).any()
    assert {name: array.dtype.name for name, array in rows.items()} == {
        **dict.fromkeys(["observations", "actions", "rewards", "next_observations"], "float32"),
        **dict.fromkeys(["terminals", "timeouts"], "bool"),
    }
    assert np.abs(rows["actions"]).max() <= 1


@pytest.mark.parametrize(("name", "env_id"), [("cheetah_file", "HalfCheetah-v5"), ("hopper_file", "Hopper-v5")])
def test_the_simulator_set_to_a_row_steps_to_its_next_observation(request, name, env_id):
    rows = read(request.getfixturevalue(name))
    env = gymnasium.make(env_id).unwrapped
    env.reset()
    positions = env.model.nq - 1  # the first one, x, is not observed
    ends = np.flatnonzero(rows["terminals"])[:20]
    for row in [*range(40), *ends]:
        observation = rows["observations"][row].astype(np.float64)
        env.set_state(np.r_[0.0, observation[:positions]], observation[positions:])
        following, reward, terminal, _, _ = env.step(rows["actions"][row])
        np.testing.assert_allclose(following, rows["next_observations"][row], atol=2e-3)
        assert reward == pytest.approx(rows["rewards"][row], abs=2e-3)
        assert terminal == rows["terminals"][row]


def test_a_fall_is_terminal_and_the_step_limit_is_a_timeout(cheetah_file, hopper_file):
    cheetah, hopper = read(cheetah_file), read(hopper_file)
    assert not cheetah["terminals"].any()
    assert np.flatnonzero(cheetah["timeouts"]).tolist() == [999, 1999]
    height, angle = hopper["next_observations"][:, :2].T
    np.testing.assert_array_equal(hopper["terminals"], (height < 0.7) | (np.abs(angle) > 0.2))
    assert hopper["terminals"].sum() > 50
    assert np.flatnonzero(hopper["timeouts"]).tolist() == [1999]  # the recording's own end


def test_equal_seeds_give_equal_bytes(tmp_path):
    first, again, other = (tmp_path / name for name in ("a.hdf5", "b.hdf5", "c.hdf5"))
    record(first, segment=100)
    record(again, segment=100)
    record(other, segment=100, seed=1)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    with h5py.File(first) as file:
        attrs = dict(file.attrs)
    assert (attrs["env"], attrs["policy"]) == ("Hopper-v5", "random")
    assert json.loads(attrs["source"])["segment"] == 100


@pytest.mark.parametrize("saved", [False, True], ids=["before SAC is saved", "before the journal is written"])
def test_a_killed_sac_goes_on_learning_to_the_same_bytes(tmp_path, monkeypatch, sac_file, saved):
    owner, name = (Recorder, "commit") if saved else (Recorder, "write")
    original, calls = getattr(owner, name), iter(range(9))

    def killed_at_the_third(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.hdf5", **SAC)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other settings: .*width=16 \(now 8\)"):
        record(tmp_path / "a.hdf5", **{**SAC, "width": 8})
    record(tmp_path / "a.hdf5", **SAC)
    assert (tmp_path / "a.hdf5").read_bytes() == sac_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]


def test_lost_weights_are_told(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "_finish", killed)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.hdf5", **SAC)
    monkeypatch.undo()
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    with pytest.raises(ValueError, match=r"a\.hdf5\.part\.\d\.pt: SAC's weights are missing"):
        record(tmp_path / "a.hdf5", **SAC)


def test_sac_learns_to_balance_a_pole(tmp_path):
    options = {"learning_starts": 300, "learning_rate": 3e-3, "batch_size": 64, "width": 64, "updates_per_step": 0.5}
    rows = record(tmp_path / "a.hdf5", env="InvertedPendulum-v5", steps=1200, **{**SAC, **options, "segment": 600})
    falls = rows["terminals"].reshape(4, 300).mean(1)
    assert falls[3] < falls[0] / 3
    assert np.abs(rows["actions"]).max() > 2  # its bounds are -3 and 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"env": "NoSuchThing-v0"}, "--env NoSuchThing-v0: .*exist"),
        ({"env": "CartPole-v1"}, r"--env CartPole-v1: actions are Discrete\(2\); can record Box"),
        ({"env": "FrozenLake-v1"}, r"--env FrozenLake-v1: observations are Discrete\(16\)"),
        ({"env_kwargs": {"wings": 2}}, "--env Hopper-v5: .*wings"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"policy": "sac", "batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"policy": "sac", "updates_per_step": -1.0}, "--updates-per-step .* must not be negative"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path / "a.hdf5", **options)
    assert not list(tmp_path.iterdir())


def test_on_the_command_line(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.hdf5"
    words = ["collect", "mujoco", "--env", "HalfCheetah-v5", "--steps", "30", "--out", str(out)]
    assert main([*words, "--policy", "random", "--env-kwargs", '{"ctrl_cost_weight": 0.0}']) == 0
    assert len(read(out)["rewards"]) == 30
    assert main([*words, "--policy", "random"]) == 2
    assert f"{out}: exists already" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    assert main(words) == 2
    assert "pip install 'dreamloom[sb3]'" in capsys.readouterr().err


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^dreamloom (collect mujoco .*)$", page, re.MULTILINE)
    for command in commands:
        assert main(shlex.split(re.sub(r"--steps \d+", "--steps 60", command))) == 0
    assert len(commands) == len(list((tmp_path / "data").iterdir())) == 2
