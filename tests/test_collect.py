import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import get_args

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamloom.datasets import procgen, recorder
from dreamloom.datasets.policies import parse_mixture, random, sticky
from dreamloom.datasets.procgen import ACTION_NAMES, collect_procgen, make_procgen, parse_levels
from dreamloom.datasets.recorder import split_rows
from dreamloom.datasets.store import open_dataset

pytest.importorskip("procgen")
SMALL = {"num_envs": 3, "segment": 150, "num_threads": 2}


def stand_still(lanes, space, rng):
    return lambda frames, first: np.full(lanes, 4)


def record(path, **options):
    collect_procgen(**{"game": "starpilot", "steps": 1000, "out": path, "policy": "random", **SMALL, **options})
    return open_dataset(path)


def made_environments(monkeypatch):
    """Keyword arguments of every environment that a recording makes."""
    made = []
    monkeypatch.setattr(procgen, "make_procgen", lambda num, **kw: made.append((num, kw)) or make_procgen(num, **kw))
    return made


def test_rows_are_what_a_hand_stepped_environment_shows(tmp_path, monkeypatch):
    made = made_environments(monkeypatch)
    data = record(tmp_path / "a.hdf5", levels="5:40")
    bounds = split_rows(1000, 3)
    assert len(made) == 3
    endings = 0
    for (num, options), start, end in zip(made, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        rows = start + split_rows(end - start, num)
        env = make_procgen(num, **options)
        actions, terminals = data.actions[:], data.terminals[:]
        for t in range(np.diff(rows).min()):
            row = rows[:-1] + t
            _, observation, _ = env.observe()
            np.testing.assert_array_equal(data.observations[row], observation["rgb"])
            assert data.infos["level_seed"][row].tolist() == [info["level_seed"] for info in env.get_info()]
            env.act(actions[row])
            reward, _, first = env.observe()
            np.testing.assert_array_equal(data.rewards[row], reward)
            inner = row < rows[1:] - 1
            np.testing.assert_array_equal((terminals | data.timeouts[:])[row][inner], first[inner])
            endings += terminals[row].sum()
    assert endings > 5
    assert data.timeouts[:].sum() <= 9  # only where a segment cuts a lane


def test_larger_frames_are_those_drawn_for_people_of_the_same_moments(tmp_path, monkeypatch):
    made = made_environments(monkeypatch)
    options = {"game": "coinrun", "steps": 24, "num_envs": 2, "segment": 12, "levels": "5:40"}
    collect_procgen(**options, size=128, out=tmp_path / "large.hdf5")
    collect_procgen(**options, out=tmp_path / "native.hdf5")
    large, native = open_dataset(tmp_path / "large.hdf5"), open_dataset(tmp_path / "native.hdf5")
    assert large.observations.shape == (24, 128, 128, 3)
    np.testing.assert_array_equal(large.actions[:], native.actions[:])
    env = make_procgen(made[0][0], **made[0][1])
    drawn = np.stack([info["rgb"] for info in env.get_info()]).reshape(2, 128, 4, 128, 4, 3).mean((2, 4))
    assert np.abs(large.observations[[0, 12]] - drawn).max() <= 1
    halved = large.observations[:].reshape(24, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halved - native.observations[:]).mean() < 12, "the same scene"
    with pytest.raises(ValueError, match="64, 128 or 256"):
        collect_procgen(**options, size=96, out=tmp_path / "odd.hdf5")


def test_file_says_what_it_holds(tmp_path):
    data = record(tmp_path / "a.hdf5", levels="7:9", seed=3, policy="random:1,sticky:2", steps=901)
    assert len(data) == 901
    assert set(np.unique(data.infos["level_seed"][:])) == {7, 8}
    assert data.attrs["game"] == "starpilot"
    assert data.action_names == ACTION_NAMES
    source = data.attrs["source"]
    assert (source["levels"], source["seed"], source["policy"]) == ("7:9", 3, "random:1,sticky:2")
    assert source["env"]["distribution_mode"] == "easy"
    repeats = [np.mean(np.diff(data.actions[data.infos["policy"][:] == i]) == 0) for i in range(2)]
    assert repeats[0] < 0.2
    assert repeats[1] > 0.8
    assert data.attrs["policy_names"] == ["random", "sticky"]
    # 3 segments of 3 lanes: the last row of each lane always ends an episode
    bounds = split_rows(901, 3)
    for start, end in pairwise(bounds.tolist()):
        last = start + split_rows(end - start, 3)[1:] - 1
        assert (data.terminals[:] | data.timeouts[:])[last].all()


def test_step_limit_is_a_timeout_and_no_terminal(tmp_path):
    data = record(tmp_path / "a.hdf5", game="maze", policy=f"{__name__}:stand_still", steps=1100, num_envs=1, segment=1100)
    assert np.flatnonzero(data.timeouts[:]).tolist() == [499, 999, 1099]
    assert not data.terminals[:].any()


def test_same_seed_same_bytes_other_seed_other_frames(tmp_path):
    first = record(tmp_path / "a.hdf5", num_threads=1).path.read_bytes()
    assert record(tmp_path / "b.hdf5", num_threads=4).path.read_bytes() == first
    assert record(tmp_path / "c.hdf5", seed=1).path.read_bytes() != first


def test_writing_through_the_page_cache_gives_the_same_bytes(tmp_path, monkeypatch):
    first = record(tmp_path / "a.hdf5").path.read_bytes()
    monkeypatch.setattr(recorder, "_open_direct", lambda part: None)
    assert record(tmp_path / "b.hdf5").path.read_bytes() == first


def fail_a_write(monkeypatch, number):
    """Lets the disk be full at one write; returns the list that counts the writes."""
    calls, written = [], os.pwrite

    def pwrite(*arguments):
        calls.append(arguments)
        if len(calls) - 1 == number:
            raise OSError(28, "No space left on device")
        return written(*arguments)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return calls


@pytest.mark.parametrize("number", [0, 11, -1])
def test_any_failing_write_stops_the_recording_and_leaves_it_resumable(tmp_path, monkeypatch, number):
    calls = fail_a_write(monkeypatch, None)
    whole = record(tmp_path / "whole.hdf5").path.read_bytes()
    monkeypatch.undo()
    fail_a_write(monkeypatch, number % len(calls))
    with pytest.raises(OSError, match="No space left"):
        record(tmp_path / "a.hdf5")
    assert not (tmp_path / "a.hdf5").exists()
    monkeypatch.undo()
    assert record(tmp_path / "a.hdf5").path.read_bytes() == whole


def test_scripted_coinrun_shows_every_motion_and_reaches_the_coin(tmp_path):
    data = record(tmp_path / "a.hdf5", game="coinrun", policy="scripted", steps=6000, num_envs=8, segment=750)
    used = np.bincount(data.actions[:], minlength=15) / len(data)
    left, none, right = used[0:3].sum(), used[4], used[6:9].sum()
    assert right > 0.4
    assert left > 0.08
    assert none > 0.03
    assert used[[2, 5, 8]].sum() > 0.2  # jumps
    assert (data.rewards[:] > 0).sum() > 10


def test_an_environment_closes_while_cffi_is_busy_with_another():
    """The garbage collector closes forgotten ones at any moment, also inside cffi's lock."""
    env = make_procgen(1, env_name="coinrun")
    closing = threading.Thread(target=env.close, daemon=True)
    with env._ffi._lock:
        closing.start()
        closing.join(120)
        assert not closing.is_alive()


@pytest.mark.parametrize("game", get_args(procgen.Game))
def test_all_games_record(tmp_path, game):
    data = record(tmp_path / "a.hdf5", game=game, policy="scripted", mode="hard", steps=60)
    assert data.observations[:].std() > 1
    assert len(np.unique(data.observations[:].reshape(60, -1), axis=0)) > 5


def record_elsewhere(out, killed_at=None):
    """Records in another process, which a kill -9 ends in the middle of a write once so many segments are finished."""
    code = f"from test_collect import *; record_until({str(out)!r}, {killed_at})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parent)


def record_until(out, killed_at):
    written = os.pwrite

    def pwrite(descriptor, data, offset):
        if killed_at is not None and finished_segments(Path(out)) >= killed_at:
            written(descriptor, data[: recorder._PAGE], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return written(descriptor, data, offset)

    os.pwrite = pwrite
    record(Path(out), game="coinrun", steps=9_000, policy="scripted,sticky")


def finished_segments(out):
    journal = out.with_name(out.name + ".part.json")
    return json.loads(journal.read_text())["finished"] if journal.exists() else 0


def test_kill_and_resume_gives_the_bytes_of_an_uninterrupted_recording(tmp_path):
    out = tmp_path / "killed.hdf5"
    for target in (2, 12):
        process = record_elsewhere(out, killed_at=target)
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        assert target <= finished_segments(out) < len(range(0, 9_000, 450))
        assert not out.exists()
    with pytest.raises(ValueError, match=r"other settings: seed=0 \(now 5\)"):
        record(out, game="coinrun", steps=9_000, policy="scripted,sticky", seed=5)
    process = record_elsewhere(out)
    assert process.returncode == 0, process.stderr.decode()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed.hdf5"]
    whole = record(tmp_path / "whole.hdf5", game="coinrun", steps=9_000, policy="scripted,sticky")
    assert out.read_bytes() == whole.path.read_bytes()


def test_a_failing_policy_leaves_no_file_under_the_final_name(tmp_path):
    out = tmp_path / "a.hdf5"
    with pytest.raises(RuntimeError, match="broken"):
        record(out, policy=f"{__name__}:broken")
    assert not out.exists()
    with pytest.raises(ValueError, match="other settings: policy="):
        record(out)


def broken(lanes, space, rng):
    raise RuntimeError("broken")


def test_two_processes_cannot_record_one_file(tmp_path):
    out = tmp_path / "a.hdf5"

    def rival(lanes, space, rng):
        record(out)

    globals()["rival"] = rival
    with pytest.raises(ValueError, match="another process is recording"):
        record(out, policy=f"{__name__}:rival")


def test_memory_does_not_grow_with_the_steps(tmp_path):
    def peak(steps):
        code = (
            f"import resource; from test_collect import *; out = Path({str(tmp_path / str(steps))!r}); "
            f"record(out, steps={steps}, num_envs=32, segment=125, policy='random'); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parent)
        assert run.returncode == 0, run.stderr.decode()
        return int(run.stdout) / 1024

    growth = peak(20_000) - peak(4_000)
    assert growth < 60, f"{growth} MB more for 197 MB more of frames"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"game": "doom"}, ["'doom'", "bigfish", "starpilot"]),
        ({"mode": "extreme"}, ["'extreme'", "easy, hard"]),
        ({"levels": "9"}, ["'9'", "LO:HI"]),
        ({"steps": 0}, ["--steps 0", "at least 1"]),
        ({"policy": "clever"}, ["'clever'", "random, sticky, scripted", "module:callable"]),
        ({"policy": "no.such.module:make"}, ["no.such.module"]),
        ({"policy": "numpy:no_such_thing"}, ["no_such_thing"]),
        ({"policy": "random:0,sticky:1"}, ["weights must be positive"]),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    asked = {"game": "coinrun", "steps": 100, "out": tmp_path / "a.hdf5", **options}
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        inspect.unwrap(collect_procgen)(**asked)  # without the type checks of the tests
    for word in words[1:]:
        assert word in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "a.hdf5"
    path.write_text("precious")
    with pytest.raises(ValueError, match="exists already"):
        record(path)
    assert path.read_text() == "precious"


@given(st.text(alphabet="0123456789:-+. a", max_size=8).filter(lambda t: not re.fullmatch(r"\d+:\d+", t)))
def test_other_texts_are_no_level_range(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        parse_levels(text)


@given(st.integers(0, 2**33), st.integers(0, 2**33))
def test_level_ranges_hold_a_level_and_fit_31_bits(low, high):
    if low < high < 2**31:
        assert parse_levels(f"{low}:{high}") == (low, high)
    else:
        with pytest.raises(ValueError, match="LO < HI"):
            parse_levels(f"{low}:{high}")


@given(st.integers(0, 10_000), st.integers(1, 70))
def test_rows_are_split_evenly_and_wholly(rows, parts):
    sizes = np.diff(split_rows(rows, parts))
    assert sizes.sum() == rows
    assert sizes.max() - sizes.min() <= 1


@given(st.integers(1, 100), st.lists(st.floats(0.01, 10), min_size=1, max_size=4), st.integers(0, 9))
def test_a_mixture_gives_every_lane_one_policy_in_the_asked_shares(lanes, weights, seed):
    built = {f"p{i}": lambda n, space, rng, i=i: lambda frames, first: np.full(n, i) for i in range(len(weights))}
    mixture = parse_mixture(",".join(f"p{i}:{w}" for i, w in enumerate(weights)), built)
    act, chosen = mixture.start(lanes, gymnasium.spaces.Discrete(4), np.random.default_rng(seed))
    actions = act(np.zeros((lanes, 2, 2, 3), np.uint8), np.zeros(lanes, bool))
    np.testing.assert_array_equal(actions, chosen)
    counts = np.bincount(chosen, minlength=len(weights))
    np.testing.assert_array_less(np.abs(counts - lanes * np.array(weights) / sum(weights)), 1 + 1e-6)


@pytest.mark.parametrize("policy", [random, sticky])
def test_policies_serve_continuous_actions_too(policy):
    space = gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))
    act = policy(6, space, np.random.default_rng(0))
    actions = np.stack([act(np.zeros((6, 2, 2, 3), np.uint8), np.zeros(6, bool)) for _ in range(50)])
    assert actions.shape == (50, 6, 2)
    assert all(space.contains(action) for action in actions.reshape(-1, 2))
    assert actions[..., 1].max() > 3


def test_a_disk_that_is_too_small_shows_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"needs 12\.3 TB, the disk has \S+ [MGT]B free: \S+ TB too little"):
        record(tmp_path / "a.hdf5", steps=10**9)
    assert not list(tmp_path.iterdir())
