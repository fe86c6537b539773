"""Whether imagination ranks policies: moments of real Procgen that one can go back to, the ranking, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import record
from test_study_imagined import write_world

from dreamloom import cli
from dreamloom.datasets.policies import sticky
from dreamloom.eval import ranking as rankings
from dreamloom.eval.branches import SPACE, Branches, find_branches, games, play_on
from dreamloom.eval.ranking import ranking, spearman

OPTIONS = {"env_name": "fruitbot", "start_level": 0, "num_levels": 10, "distribution_mode": "easy"}
WORDS = ["eval", "imagination", "world", "--agents=bot.agents", "--outcomes=outcomes.ckpt", "--starts=6", "--warmup=20"]
WORDS += ["--horizon=4", "--steps=1", "--device=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten agents of a short PPO run on real fruitbot, and a world of it that has not learned."""
    folder = tmp_path_factory.mktemp("imagination")
    small: dict[str, Any] = {"policy": "ppo", "network": "nature", "steps": 160, "num_envs": 4, "segment": 4}
    record(folder / "bot.hdf5", game="fruitbot", levels="0:10", **small)
    write_world(folder)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(rankings, "REPETITIONS", 200)


def test_a_moment_can_be_gone_back_to(tmp_path: Path) -> None:
    env, random = games(5, OPTIONS, 3), np.random.default_rng(0)
    branches = find_branches(env, sticky(5, SPACE, random), frames=3, warmup=40, random=random)
    branches.save(tmp_path / "starts.npz")
    kept = Branches.load(tmp_path / "starts.npz")
    assert kept.states == branches.states
    assert kept.frames.shape == (5, 3, 64, 64, 3)
    other = games(5, OPTIONS, 99)
    other.callmethod("set_state", kept.states)
    assert np.array_equal(other.observe()[1]["rgb"], kept.frames[:, -1])
    assert len({frame.tobytes() for frame in kept.frames[:, -1]}) > 2
    returns = [play_on(one, kept.states, sticky, horizon=60, seed=1) for one in (other, env)]
    assert np.array_equal(*returns)
    assert returns[0].any(), "in fruitbot something is met within 60 steps"
    env.close()
    other.close()


def test_the_command_ranks_all_agents(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--out=report"]) == 0
    found = json.loads(Path("report/metrics.json").read_text())
    assert [policy["steps"] for policy in found["policies"]] == list(range(16, 161, 16))
    assert np.shape(found["returns"]["real"]) == np.shape(found["returns"]["imagined"]) == (10, 6)
    for number, policy in enumerate(found["policies"]):
        assert policy["imagined"]["mean"] == pytest.approx(np.mean(found["returns"]["imagined"][number]))
    assert found["spearman"] is None or -1 <= found["spearman"] <= 1
    told = Path("report/report.md").read_text()
    for words in ("undiscounted return of 4 steps", "the same 6 moments on levels 0:10", "| 000000160 | 160 |"):
        assert words in told
    assert Path("report/ranking.png").stat().st_size > 5000
    capsys.readouterr()
    Path("report/policies/000000160.json").unlink()
    assert cli.main([*WORDS, "--out=report"]) == 0
    assert capsys.readouterr().out.count("agent ") == 1, "the other agents are kept"
    assert json.loads(Path("report/metrics.json").read_text())["returns"] == found["returns"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["coinrun-latent", "--outcomes=null"], "agents need a world of Procgen's own 15 actions"),
        (["world", "--agents=nowhere"], "nowhere: has 0 agents"),
        (["world", "--horizon=0"], "--horizon and --repeats must be at least 1"),
        (["world", "--out=without", "--outcomes=null"], "--outcomes takes a checkpoint of heads"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "imagination", words[0], "--out=other", *WORDS[3:], *words[1:]]) == 2
    assert said in capsys.readouterr().err


def test_ranks_are_correlated() -> None:
    noise = np.random.default_rng(0).normal(0, 1, (8, 400))
    real = np.arange(8.0)[:, None] + noise
    same, reverse, none = ranking(real, real), ranking(real, -real), ranking(real, 0 * real)
    assert (same["spearman"], same["regret"], reverse["spearman"]) == (1.0, 0.0, -1.0)
    assert same["pearson"] == pytest.approx(1)
    assert (same["low"], same["fixed_low"]) == (1.0, 1.0)
    assert (none["spearman"], none["low"]) == (None, None)
    other = ranking(real, real[[1, 0, 3, 2, 5, 4, 7, 6]] + 3 * noise)
    assert other["spearman"] == pytest.approx(1 - 6 * 8 / (8 * 63))
    assert other["low"] < other["spearman"] < 1.0
    assert other["regret"] == pytest.approx(1, abs=0.2)
    assert spearman(np.array([1.0, 1, 2]), np.array([1.0, 1, 5])) == pytest.approx(1), "ties share their rank"
