"""Arms of a study with rows imagined in a world: real Procgen, a small diffusion world with heads, an agent's checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import record
from test_diffusion_world import denoiser
from test_study_pixels import RECIPE

from dreamloom import cli, open_dataset
from dreamloom.agents.frames import FrameBuffer
from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.eval.arms import Arm
from dreamloom.eval.study import read_study
from dreamloom.eval.study_imagined import drawn_rewards, imagined_rows, world_seconds
from dreamloom.nn.encoders import Nature
from dreamloom.recipes import recipe_paths
from dreamloom.worldmodels.bundle import save_bundle
from dreamloom.worldmodels.diffusion_world import DiffusionWorld
from dreamloom.worldmodels.outcomes import Outcomes

TINY_NATURE = ["--model.model.init_args.vision.init_args.encoder", "dreamloom.nn.encoders.Nature"]
SYNTHESIZE = ["--horizon=3", "--batch-size=8", "--shard-rows=64", "--accelerator=cpu", "--steps=1", "--context=2"]


def write_world(folder: Path, *, levels: str = "0:10", **identity: Any) -> None:
    """A world of Procgen's 15 actions that has not learned, as a bundle, and heads as a checkpoint of `fit`."""
    world = DiffusionWorld(denoiser(actions=15, size=64, context=2, widths=[8, 8], fold=4, shaken=False))
    world.introduce(
        name="tiny", action_names=ACTION_NAMES, game="fruitbot", train_levels=[levels], train_wall_s=7.0, **identity
    )
    save_bundle(world, folder / "world")
    torch.manual_seed(0)
    heads = Outcomes(Nature((6, 64, 64), latent_size=8, channels=(4, 4, 4)), actions=15)
    torch.nn.init.normal_(heads.head.weight)
    weights = {f"model.{name}": tensor for name, tensor in heads.state_dict().items()}
    torch.save({"model_config": heads.config, "state_dict": weights, "train_wall_s": 2.0}, folder / "outcomes.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording, a world of it, an agent that `fit` made, what it imagines, and a study of that."""
    folder = tmp_path_factory.mktemp("imagined")
    data = record(folder / "fruitbot.hdf5", game="fruitbot", levels="0:10")
    write_world(folder)
    recipe = RECIPE.format(data=data).replace("0:5", "0:10")
    (folder / "study.yaml").write_text(recipe)
    fit = ["fit", "-c", str(recipe_paths()["recipes/pixels/coinrun/cql.yaml"]), "--data.path", str(data), *TINY_NATURE]
    fit += ["--data.batch_size=2", "--model.updates_per_step=1", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    fit += ["--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.enable_model_summary=false"]
    rows = ["synthesize", "world", "--starts=fruitbot.hdf5", "--outcomes=outcomes.ckpt", "--n=120", "--out=dreams", *SYNTHESIZE]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*fit, "--trainer.default_root_dir=agent"]) == 0
        agent = next(folder.glob("**/last.ckpt"))
        assert cli.main([*rows, f"--policy={agent}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


ARMS = """{imagined: {imagined: 100}, imagined + upsampled: {imagined: 100, synthetic: 100},
    upsampled: {real: 1.0, synthetic: 100}, baseline: {real: 1.0}}"""
WORDS = ["eval", "study", "-c", "study.yaml", "--arms", ARMS, "--pixels.imagined", "{procgen:fruitbot: dreams}"]


def test_an_agent_by_its_path_acts_in_the_world(folder: Path) -> None:
    with open_dataset("dreams") as data:
        assert len(data) == 120
        assert data.action_names == ACTION_NAMES
        source = data.attrs["source"]
        assert (source["world"], source["world_levels"], source["world_wall_s"]) == ("tiny", ["0:10"], 9.0)
        assert str(source["acted"]).endswith("last.ckpt")
        starts, _ = data.episodes
        assert set(data.infos["level_seed"][:]) <= set(range(10))
        assert len(np.unique(data.actions[:])) >= 1
        assert len(starts) >= 30


def test_study_has_real_and_imagined_rows() -> None:
    assert cli.main([*WORDS, "--out", "report"]) == 0
    arms = json.loads(Path("report/study.json").read_text())["results"]["procgen:fruitbot"]["cql"]
    with open_dataset("fruitbot.hdf5") as real:
        assert arms["baseline"]["rows"] == arms["upsampled"]["rows"] <= len(real)
        more = FrameBuffer(imagined_rows(Path("dreams"), real, rows=100, levels="0:10", test="1000:1100", seed=0))
    for name in ("imagined", "imagined + upsampled"):
        assert arms[name]["rows"] - arms["baseline"]["rows"] == len(more) < 104, "a row that closes a rollout is no transition"
    assert arms["imagined"]["seconds"]["world"] == 9.0
    assert arms["imagined"]["wall_s"] > 9.0
    assert "world" not in arms["upsampled"]["seconds"]
    told = Path("report/report.md").read_text()
    assert "Imagined rows: `dreams`" in told
    assert "## Imagined rows" in told
    found = arms["imagined"]["imagined"]
    assert 0 < found["terminals_imagined"] < 1
    assert found["reward_real"] != found["reward_imagined"]
    files = sorted(path.name for path in Path("report/learners").glob("*cql*.pt"))
    assert len(files) == 2, "arms of the same frames share their first updates: with imagined rows, and without"


def test_rewards_are_drawn_with_their_mean() -> None:
    means = np.repeat(np.array([-9, -1, 0, 0.25, 5, 99], np.float32), 4000)
    drawn = drawn_rewards(means, np.array([-4, 0, 1, 10], np.float32), np.random.default_rng(0))
    assert set(drawn) == {-4, 0, 1, 10}
    assert drawn.reshape(6, -1).mean(1) == pytest.approx([-4, -1, 0, 0.25, 5, 10], abs=0.25)
    assert (drawn_rewards(means, np.array([2.0]), np.random.default_rng(0)) == 2).all()
    with open_dataset("fruitbot.hdf5") as real:
        rows = imagined_rows(Path("dreams"), real, rows=80, levels="0:10", test="20:30", seed=0)
        assert set(rows.rewards[:]) <= set(real.rewards[:])
        assert 80 <= len(rows) < 84
        rows.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pixels.imagined", "{}"], "pixels.imagined has none for procgen:fruitbot"),
        (["--arms", "{baseline: {imagined: 5, real: 0.5}}"], "leave out `real`"),
    ],
)
def test_a_study_that_cannot_be_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, "--out", "other", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": 121}, "has 120 rows, an arm asks for 121"),
        ({"levels": "0:3"}, "starts from levels that are not all known and of 0:3"),
        ({"test": "5:30"}, "was trained on levels 0:10, which reach into those of the test, 5:30"),
        ({"path": Path("fruitbot.hdf5")}, "was not imagined in a world"),
    ],
)
def test_rows_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    asked: dict[str, Any] = {"path": Path("dreams"), "rows": 80, "levels": "0:10", "test": "20:30", "seed": 0} | settings
    with open_dataset("fruitbot.hdf5") as real, pytest.raises(ValueError, match=said):
        imagined_rows(asked.pop("path"), real, **asked)


def test_worlds_that_skip_frames_are_refused(tmp_path: Path) -> None:
    write_world(tmp_path, fps=7.5)
    words = ["synthesize", str(tmp_path / "world"), "--policy=random", "--starts=fruitbot.hdf5", "--n=8"]
    assert cli.main([*words, f"--out={tmp_path / 'rows'}", f"--outcomes={tmp_path / 'outcomes.ckpt'}", *SYNTHESIZE]) == 0
    with open_dataset("fruitbot.hdf5") as real, pytest.raises(ValueError, match=r"train the world with data\.stride 1"):
        imagined_rows(tmp_path / "rows", real, rows=8, levels="0:10", test="20:30", seed=0)


def test_cost_is_that_of_the_file() -> None:
    assert world_seconds(Path("dreams")) == {"world": 9.0}
    assert world_seconds(Path("fruitbot.hdf5")) == {}
    assert Arm().settings(pixels=True)["imagined"] == 0


def test_recipe_can_be_built_and_says_how_its_rows_are_made() -> None:
    word = "recipes/studies/imagination.yaml"
    study, _ = read_study(["-c", word, "--out", "reports/x"])
    assert len(list(study.cells())) == 2 * 4
    assert [(arm.imagined > 0, arm.synthetic > 0) for arm in study.arms.values()] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert min(agent.seeds for agent in study.learners.values()) >= 3
    header = recipe_paths()[word].read_text().partition("environments:")[0]
    for words in (f"dreamloom eval study -c {word}", "dreamloom synthesize", "--data.stride 1", "time:"):
        assert words in header
