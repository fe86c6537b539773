"""The study of agents from pixels, on real Procgen: arms, equal budgets, levels seen and unseen, the gap and what closes it."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from conftest import record
from hypothesis import given
from hypothesis import strategies as st

from dreamloom import cli
from dreamloom.datasets.subset import overlap
from dreamloom.eval import study_report
from dreamloom.eval.arms import Arm
from dreamloom.eval.procgen import _wandering
from dreamloom.eval.study import read_study
from dreamloom.eval.study_gap import gap_figures
from dreamloom.recipes import recipe_paths

# In fruitbot everybody falls within 200 steps, whatever they do; CoinRun would last 1,000.
RECIPE = """
environments:
  procgen:fruitbot: {data}
learners:
  cql:
    class_path: dreamloom.agents.cql.DiscreteCQL
    init_args: &learner
      seeds: 2
      width: 8
      vision:
        class_path: dreamloom.agents.vision.Vision
        init_args:
          encoder:
            class_path: dreamloom.nn.encoders.Nature
            init_args: {{latent_size: 6, channels: [4, 4, 4]}}
  bc:
    class_path: dreamloom.agents.bc.BC
    init_args: *learner
arms:
  baseline: {{real: 0.5}}
  upsampled: {{real: 0.5, synthetic: 200}}
  augmented: {{real: 0.5, augmented: true}}
  augmented + upsampled: {{real: 0.5, augmented: true, synthetic: 200}}
  in another way: {{real: 0.5, augmented: grey}}
  heads on real latents: {{real: 0.5, latents: true}}
  twice the data: {{augmented: true}}
  more levels: {{levels: "0:10", real: 0.3}}
pixels:
  levels: "0:5"
  test: "1000:1100"
  head_updates: 2
  heads:
    cql: {{class_path: dreamloom.agents.cql.DiscreteCQL, init_args: {{width: 8, depth: 2}}}}
    bc: {{class_path: dreamloom.agents.bc.BC, init_args: {{width: 8}}}}
  augment:
    class_path: dreamloom.datasets.augment.Augment
    init_args:
      augmentations:
        - class_path: dreamloom.datasets.augment.Crop
        - class_path: dreamloom.datasets.augment.ColourJitter
  augments:
    grey:
      class_path: dreamloom.datasets.augment.Augment
      init_args: {{augmentations: [{{class_path: dreamloom.datasets.augment.Greyscale}}]}}
  guide: [0.5, 1.0]
  curate: range
upsampler:
  class_path: dreamloom.diffusion.upsampler.Upsampler
  init_args: {{width: 16, depth: 1, condition: return_to_go}}
upsampler_steps: 5
upsampler_batch: 64
updates: 5
batch_size: 8
episodes: 2
"""
WORDS = ["eval", "study", "-c", "study.yaml", "--out", "report"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording, a recipe and the study's report."""
    folder = tmp_path_factory.mktemp("study")
    data = record(folder / "fruitbot.hdf5", game="fruitbot", levels="0:10")
    (folder / "study.yaml").write_text(RECIPE.format(data=data))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(study_report, "REPETITIONS", 20)
        assert cli.main(WORDS) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(study_report, "REPETITIONS", 20)  # of a bootstrap that takes most of a small study's time


def study() -> dict:
    return json.loads(Path("report/study.json").read_text())


def test_every_cell_has_its_figures() -> None:
    found = study()
    for arms in found["results"]["procgen:fruitbot"].values():
        assert list(arms) == list(yaml.safe_load(Path("study.yaml").read_text())["arms"])
        for cell in arms.values():
            assert np.shape(cell["episode_returns"]) == np.shape(cell["train"]["episode_returns"]) == (2, 2)
            assert cell["returns"] == pytest.approx(np.mean(cell["episode_returns"], 1))
            assert cell["scores"] == pytest.approx([(value + 1.5) / 0.339 for value in cell["returns"]])
            assert cell["low"] <= cell["iqm"] <= cell["high"]
            assert cell["wall_s"] > 0
            gap = cell["gaps"]["gap"]
            assert gap["mean"] == pytest.approx(np.mean(cell["train"]["scores"]) - np.mean(cell["scores"]))
            assert gap["low"] <= gap["mean"] <= gap["high"]
            assert cell["bytes_per_transition"] < 64 * 64 * 3 * 1.3


def test_arms_get_the_rows_that_they_say() -> None:
    arms = study()["results"]["procgen:fruitbot"]["cql"]
    with h5py.File("fruitbot.hdf5") as file:
        below = int((file["infos/level_seed"][:] < 5).sum())
    sizes = {name: cell["rows"] for name, cell in arms.items()}
    assert 0.8 * below <= sizes["twice the data"] <= below
    assert 0.4 * below <= sizes["baseline"] < sizes["twice the data"]
    assert len({sizes[name] for name in ("baseline", "upsampled", "augmented", "augmented + upsampled")}) == 1
    assert "latents" not in arms["augmented"]
    assert all(0 <= value <= 1 for name in ("js", "auc") for value in arms["upsampled"]["latents"][name])


def test_arms_of_the_same_frames_share_their_first_updates_and_all_make_as_many() -> None:
    files = sorted(path.name for path in Path("report/learners").glob("*.pt"))
    assert len(files) == 2 * 5, "baseline, augmented, in another way, twice the data, more levels"
    state = torch.load(Path("report/learners", files[0]), weights_only=True)
    assert state["agent"]["_extra_state"]["updates"] == 5 - 2


def test_report_has_every_arm_and_a_plot() -> None:
    told = Path("report/report.md").read_text()
    for words in ("| augmented + upsampled |", "G_perf", "levels `0:5` (train)", "## Synthetic latents", "![bc](bc.png)"):
        assert words in told
    assert Path("report/cql.png").stat().st_size > 5000


def test_a_cell_that_is_made_again_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    cell = Path("report/cells", "procgen:fruitbot--cql--augmented + upsampled.json")
    before = json.loads(cell.read_text())
    cell.unlink()
    for path in Path("report/learners").glob("*"):
        path.unlink()
    assert cli.main(WORDS) == 0
    assert "augmented + upsampled" in (said := capsys.readouterr().out)
    assert "baseline" not in said, "the other cells are kept"
    assert json.loads(cell.read_text())["episode_returns"] == before["episode_returns"]


def test_a_report_of_the_cells_that_are_there_names_those_that_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("report/cells", tmp_path / "cells")
    for cell in ("cql--augmented", "cql--twice the data", "bc--baseline"):
        (tmp_path / "cells" / f"procgen:fruitbot--{cell}.json").unlink()
    assert cli.main([*WORDS, "--partial", "--out", str(tmp_path)]) == 0
    assert "of 13 of 16 cells" in capsys.readouterr().out
    found = json.loads((tmp_path / "study.json").read_text())
    assert set(found["missing"]) >= {
        f"procgen:fruitbot / {cell}" for cell in ("cql / augmented", "bc / baseline", "bc / upsampled")
    }
    assert "augmented" not in found["results"]["procgen:fruitbot"]["cql"]
    assert "bc" not in found["overall"], "without a baseline nothing is said"
    told = (tmp_path / "report.md").read_text()
    assert "Not measured, and so in no table: procgen:fruitbot / cql / augmented;" in told
    assert "| augmented + upsampled |" in told


def test_other_settings_are_another_study(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--pixels.head_updates", "3"]) == 2
    assert "holds a study with other pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pixels.test", "4:30"], "levels 0:5 reach into those of pixels.test, 4:30"),
        (["--pixels.baseline", "nothing"], "there is no arm 'nothing'"),
        (["--pixels.epsilon", "1.5"], "pixels.epsilon is a chance, got 1.5"),
        (["--pixels.head_updates", "5"], "pixels.head_updates are a part of all 5 updates"),
        (["--environments", "{Hopper-v5: a.hdf5}"], "environments procgen:GAME, not Hopper-v5"),
        (["--arms", "{baseline: {noisy: 5}}"], "noisy cannot be set in a study of frames"),
        (["--pixels.augment", "null"], "there is no pixels.augment"),
        (["--pixels.augment", "gray"], "no augmentation 'gray' in pixels.augments, only grey"),
        (["--partial"], "no cell has been measured"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--out", "other", *words]) == 2
    assert said in capsys.readouterr().err


RECIPES = ["procgen_gap", "paper_procgen_gap"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_be_built_and_says_what_it_is(name: str) -> None:
    word = f"recipes/studies/{name}.yaml"
    study, out = read_study(["-c", word, "--out", "reports/x"])
    assert out == Path("reports/x")
    assert study.pixels is not None
    assert len(list(study.cells())) == len(study.environments) * 2 * len(study.arms) >= 4 * 2 * 7
    assert min(agent.seeds for agent in study.learners.values()) >= 3
    lines = recipe_paths()[word].read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"dreamloom eval study -c {word}" in header
    assert ("not run yet" in header) == name.startswith("paper")


def test_augmentations_are_tuned_on_levels_and_seeds_of_their_own() -> None:
    (tuning, _), (gap, _) = (
        read_study(["-c", f"recipes/studies/procgen_{name}.yaml", "--out", "x"]) for name in ("tuning", "gap")
    )
    assert tuning.pixels is not None
    assert gap.pixels is not None
    assert {name: one.config for name, one in tuning.pixels.augments.items()} == {
        name: one.config for name, one in gap.pixels.augments.items()
    }
    assert [arm.augmented for arm in tuning.arms.values()] == [False, *tuning.pixels.augments]
    for levels in (gap.pixels.test, *(arm.levels or gap.pixels.levels for arm in gap.arms.values())):
        assert not overlap(tuning.pixels.test, levels)
    assert not {tuning.seed + i for i in range(9)} & {gap.seed + i for i in range(9)}
    assert tuning.environments.items() <= gap.environments.items()


def test_arms_of_vectors_are_kept_as_they_were() -> None:
    kept = {"real": 1.0, "keep": True, "synthetic": 0, "noisy": 0, "width": None}
    assert Arm().settings(pixels=False) == kept, "a study's folder made before goes on"
    with pytest.raises(ValueError, match="levels, augmented cannot be set in a study of vectors"):
        Arm(levels="0:5", augmented=True).require("a", pixels=False)


def episodes(*means: float) -> np.ndarray:
    """(3 seeds, 50 episodes) around a mean."""
    return np.random.default_rng(0).normal(means[0], 1, (3, 50))


def test_a_player_that_wanders_draws_so_many_of_its_actions() -> None:
    def still(*seen: torch.Tensor) -> torch.Tensor:
        return torch.full((2, 5000), 20)

    assert _wandering(still, 0.0, 3) is still
    one, other = (_wandering(still, 0.3, 3)() for _ in range(2))
    assert torch.equal(one, other)
    drawn = one[one != 20]
    assert len(drawn) / one.numel() == pytest.approx(0.3, abs=0.02)
    counts = torch.bincount(drawn, minlength=15)
    assert len(counts) == 15
    assert counts.min() > 120, "3000 draws of 15 actions: 200 each"
    assert not torch.equal(one, _wandering(still, 0.3, 4)())


def test_share_of_the_gap_that_is_closed() -> None:
    baseline = [(episodes(50), episodes(30)), (episodes(40), episodes(20))]
    alone = gap_figures(baseline, baseline)
    assert alone["g_perf"] == {"mean": 0, "low": 0, "high": 0}, "arm and baseline are resampled alike"
    assert alone["gap"]["mean"] == pytest.approx(20)
    assert alone["gain"] == {"mean": 0, "low": 0, "high": 0}
    better = gap_figures([(episodes(50), episodes(40)), (episodes(40), episodes(25))], baseline)
    assert better["g_perf"]["mean"] == pytest.approx((10 + 5) / 40)
    assert 0.3 < better["g_perf"]["low"] < better["g_perf"]["mean"] < better["g_perf"]["high"] < 0.45


def test_without_a_gap_nothing_is_closed() -> None:
    none, noise = [(episodes(20), episodes(21))], np.random.default_rng(1).normal(0, 9, (3, 50))
    assert gap_figures(none, none)["g_perf"]["mean"] is None
    unsure = [(episodes(20) + noise, episodes(19.9) - noise)]
    found = gap_figures([(episodes(25), episodes(25))], unsure)["g_perf"]
    assert found["low"] is None


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 99))
def test_intervals_hold_their_mean(seeds: int, count: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    table = [tuple(drawn.normal(size=(2, seeds, count)))]
    found = gap_figures(table, table, seed=seed)
    for name in ("train", "test", "gap"):
        assert found[name]["low"] <= found[name]["high"]
