"""The study: arms get the rows that they say, cells are kept and not made twice, the report has every figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreamloom import cli
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval import study_report
from dreamloom.eval.arms import noisy_copies, share_of
from dreamloom.eval.study_report import iqm

RECIPE = """
environments:
  HalfCheetah-v5: {data}
learners:
  td3_bc:
    class_path: dreamloom.agents.td3_bc.TD3BC
    init_args: {{seeds: 2, width: 16}}
arms:
  real: {{}}
  half: {{real: 0.5}}
  synthetic: {{real: 0.5, keep: false, synthetic: 300}}
  noise: {{real: 0.5, noisy: 300, width: 24}}
upsampler:
  class_path: dreamloom.diffusion.upsampler.Upsampler
  init_args: {{width: 32, depth: 1}}
upsampler_steps: 5
updates: 4
batch_size: 8
episodes: 1
"""


def rows(count: int) -> Transitions:
    drawn = np.random.default_rng(0)
    return Transitions(
        observations=drawn.standard_normal((count, 3), np.float32),
        actions=drawn.uniform(-1, 1, (count, 2)).astype(np.float32),
        rewards=drawn.standard_normal(count, np.float32),
        next_observations=drawn.standard_normal((count, 3), np.float32),
        terminals=drawn.random(count) < 0.1,
        timeouts=np.zeros(count, bool),
    )


def test_a_smaller_share_lies_within_a_larger_one() -> None:
    data = rows(1000)
    ten, three = share_of(data, 0.1, seed=5), share_of(data, 0.03, seed=5)
    assert (len(ten), len(three)) == (100, 30)
    assert set(three.rewards.tolist()) < set(ten.rewards.tolist()) < set(data.rewards.tolist())
    assert set(share_of(data, 0.1, seed=6).rewards.tolist()) != set(ten.rewards.tolist())


def test_noisy_copies_are_near_their_rows() -> None:
    data = rows(50)
    copies = noisy_copies(data, 4000, noise=0.1, seed=0)
    assert len(copies) == 4000
    away = np.linalg.norm(copies.observations[:, None] - data.observations[None], axis=-1).min(1)
    assert 0.02 < np.median(away) < 0.3
    assert away.min() > 0
    assert copies.terminals.mean() == pytest.approx(data.terminals.mean(), abs=0.03)
    assert np.abs(copies.actions).max() <= np.abs(data.actions).max()
    assert copies.rewards.dtype == np.float32


def test_iqm_drops_the_outer_quarters() -> None:
    scores = np.array([[0.0], [10.0], [20.0], [1000.0]])
    interval = iqm(scores)
    assert interval["iqm"] == 15.0
    assert 0 <= interval["low"] <= 15 <= interval["high"] <= 1000


def test_a_study_ends_in_a_report_and_makes_no_cell_twice(
    cheetah_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "REPETITIONS", 20)
    recipe, out = tmp_path / "study.yaml", tmp_path / "report"
    recipe.write_text(RECIPE.format(data=cheetah_file))
    words = ["eval", "study", "-c", str(recipe), "--out", str(out)]
    assert cli.main(words) == 0, capsys.readouterr().err
    study = json.loads((out / "study.json").read_text())
    arms = study["results"]["HalfCheetah-v5"]["td3_bc"]
    assert list(arms) == ["real", "half", "synthetic", "noise"]
    for cell in arms.values():
        assert len(cell["scores"]) == 2
        assert cell["low"] <= cell["iqm"] <= cell["high"]
        assert cell["wall_s"] > 0
    count = len(load_transitions(cheetah_file))
    assert [cell["rows"] for cell in arms.values()] == [count, round(count / 2), 300, round(count / 2) + 300]
    assert (out / "td3_bc.png").stat().st_size > 5000
    assert "| synthetic |" in (out / "report.md").read_text()

    gone = out / "cells" / "HalfCheetah-v5--td3_bc--half.json"
    before = gone.read_text()
    gone.unlink()
    capsys.readouterr()
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "half" in said
    assert "noise" not in said, "the other cells are kept"
    assert json.loads(gone.read_text())["returns"] == json.loads(before)["returns"]

    assert cli.main([*words, "--updates", "5"]) == 2
    assert "holds a study with other updates" in capsys.readouterr().err


def test_an_empty_arm_is_refused(cheetah_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "study.yaml"
    recipe.write_text(RECIPE.format(data=cheetah_file).replace("keep: false, synthetic: 300", "keep: false"))
    assert cli.main(["eval", "study", "-c", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "arm synthetic" in capsys.readouterr().err
