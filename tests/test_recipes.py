"""Every recipe says what it costs, and runs: one real step of training and one of validation at the recipe's own model size.

Only the batch is smaller than the recipe's: two clips of two frames, so that the paper's sizes take seconds, not minutes.
Each folder of recipes has data of its own kind; recipes of studies are not `fit`'s, and are tested with the study.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dreamloom import cli
from dreamloom.train.cli import FitCLI, recipe_paths, run_name

RECIPES = {name: path for name, path in recipe_paths().items() if not name.startswith("recipes/studies/")}
# Folder -> the fixture that holds its data, and what makes its batch small.
DATA = {"coinrun": "coinrun_file", "replay": "cheetah_file", "agents": "cheetah_file"}
SMALL = {
    "coinrun": {"data.batch_size": 2, "data.length": 2, "data.val_batches": 1, "data.residence": "ram"},
    "replay": {"data.batch_size": 2, "data.val_batches": 1},
    "agents": {"data.batch_size": 2},
}
QUIET = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.logger": "false",
}


def folder(recipe: str) -> str:
    return Path(recipe).parent.name


def overrides(recipe: str, data: Path) -> list[str]:
    options = {"config": RECIPES[recipe], "data.path": data, **SMALL[folder(recipe)], **QUIET}
    return [f"--{key}={value}" for key, value in options.items()]


def read(recipe: str) -> dict[str, Any]:
    return yaml.safe_load(RECIPES[recipe].read_text())


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Recipe -> a checkpoint of its model before training, as the recipe of the dynamics needs it."""
    made: dict[str, Path] = {}

    def checkpoint(recipe: str) -> Path:
        if recipe not in made:
            model = FitCLI(overrides(recipe, request.getfixturevalue(DATA[folder(recipe)]))).model.model
            weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
            made[recipe] = tmp_path_factory.mktemp("parts") / "untrained.ckpt"
            torch.save({"model_config": model.config, "state_dict": weights}, made[recipe])
        return made[recipe]

    return checkpoint


def test_there_are_recipes() -> None:
    assert {f"recipes/coinrun/{part}.yaml" for part in ("tokenizer", "latent_actions", "dynamics")} <= set(RECIPES)
    assert {folder(recipe) for recipe in RECIPES} <= set(DATA), "a new folder of recipes needs data to be tested with"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_says_what_it_costs(recipe: str) -> None:
    lines = RECIPES[recipe].read_text().splitlines()
    header = "\n".join(line for line in lines[:8] if line.startswith("#"))
    assert f"dreamloom fit -c {recipe} --data.path" in header
    for word in ("machine:", "time:", "memory:", "expected:"):
        assert word in header
    for placeholder in ("TIME", "MEMORY", "EXPECTED", "TODO"):
        assert placeholder not in header


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs(
    recipe: str, untrained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(DATA[folder(recipe)])
    words = [*overrides(recipe, data), "--trainer.fast_dev_run", "true"]
    init_args = read(recipe)["model"]["init_args"]
    for part in ("tokenizer", "latent_actions"):
        if isinstance(init_args.get(part), str):
            words += [f"--model.{part}", str(untrained(recipe.replace("dynamics", part)))]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", *words]) == 0
    assert not list(tmp_path.iterdir()), "fast_dev_run leaves nothing behind"


def test_run_is_named_after_its_recipe() -> None:
    assert run_name("recipes/coinrun/tokenizer.yaml") == "coinrun/tokenizer"
    assert run_name("elsewhere/mine.yaml") == "mine"
