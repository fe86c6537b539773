"""Every recipe says what it costs, and runs: one real step of training and one of validation at the recipe's own model size.

Only the batch is smaller than the recipe's: two clips of two frames, so that the paper's sizes take seconds, not minutes.
Each folder of recipes has data of its own kind; recipes of studies are not `fit`'s, and are tested with the study.
"""

import os
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from dreamloom import cli
from dreamloom.recipes import recipe_paths
from dreamloom.train.cli import FitCLI, run_name

PARTS = "recipes/pixels/augment/"  # of the recipes of pixels, by --data.augment
ELSEWHERE = ("recipes/studies/", PARTS)
RECIPES = {name: path for name, path in recipe_paths().items() if not name.startswith(ELSEWHERE)}
# Folder -> the fixture that holds its data, and what makes its batch small.
DATA = {
    "coinrun": "coinrun_file",
    "replay": "cheetah_file",
    "agents": "cheetah_file",
    "pixels": "latents_file",
    "pixels/coinrun": "coinrun_file",
    "pixels/vd4rl": "vd4rl_file",
}
HEADS = {"recipes/pixels/coinrun/cql_head.yaml": "latents_file", "recipes/pixels/coinrun/bc_head.yaml": "latents_file"}
SMALL = {
    "coinrun": {"data.batch_size": 2, "data.length": 2, "data.val_batches": 1, "data.residence": "ram"},
    "replay": {"data.batch_size": 2, "data.val_batches": 1},
    "agents": {"data.batch_size": 2},
    "pixels": {"data.batch_size": 2, "data.val_batches": 1},
    "pixels/coinrun": {"data.batch_size": 2, "model.updates_per_step": 1},
    "pixels/vd4rl": {"data.batch_size": 2, "model.updates_per_step": 1},
}
# What of the recipe's model fits the fixture's frames.
FITTED = {"recipes/coinrun/canvas.yaml": {"model.model.init_args.size": 64}}
QUIET = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.logger": "false",
}


def folder(recipe: str) -> str:
    return Path(recipe).parent.relative_to("recipes").as_posix()


def overrides(recipe: str, data: Path) -> list[str]:
    # Heads mix two datasets, a real and a synthetic one.
    path = f"[{data}, {data}]" if recipe in HEADS else data
    options = {"config": RECIPES[recipe], "data.path": path, **SMALL[folder(recipe)], **FITTED.get(recipe, {}), **QUIET}
    return [f"--{key}={value}" for key, value in options.items()]


def read(recipe: str) -> dict[str, Any]:
    return yaml.safe_load(RECIPES[recipe].read_text())


def fast_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; without, the paper's sizes take minutes in it."""
    told = Path("/proc/cpuinfo")
    return not told.exists() or "avx512_bf16" in told.read_text()


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


@pytest.fixture(scope="session")
def pixel_learner(tmp_path_factory: pytest.TempPathFactory, coinrun_file: Path) -> Path:
    """A checkpoint of discrete CQL from pixels, before it has learned much."""
    folder, before = tmp_path_factory.mktemp("learner"), Path.cwd()
    words = [*overrides("recipes/pixels/coinrun/cql.yaml", coinrun_file), "--trainer.max_steps", "1"]
    os.chdir(folder)
    try:
        assert cli.main(["fit", *words]) == 0
    finally:
        os.chdir(before)
    return next(folder.glob("**/last.ckpt"))


@pytest.fixture(scope="session")
def latents_file(tmp_path_factory: pytest.TempPathFactory, coinrun_file: Path, pixel_learner: Path) -> Path:
    """The 400 frames as its latents."""
    out = tmp_path_factory.mktemp("latents") / "z.hdf5"
    assert cli.main(["encode", str(pixel_learner), "--data", str(coinrun_file), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def vd4rl_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of random frames, 84 px, in V-D4RL's own layout."""
    path, random = tmp_path_factory.mktemp("vd4rl") / "cheetah_run.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observation"] = random.integers(0, 256, (12, 3, 84, 84), np.uint8)
        file["action"] = random.uniform(-1, 1, (12, 6)).astype(np.float32)
        file["reward"], file["discount"] = random.random(12).astype(np.float32), np.ones(12, np.float32)
        file["step_type"] = np.tile([0, 1, 1, 1, 1, 2], 2)
    return path


@pytest.mark.parametrize("part", [name for name in recipe_paths() if name.startswith(PARTS)])
def test_part_is_taken_by_the_recipes(part: str, coinrun_file: Path, vd4rl_file: Path) -> None:
    turns = "Rotation" in recipe_paths()[part].read_text()
    recipe, data = ("vd4rl/drq_bc", vd4rl_file) if turns else ("coinrun/cql", coinrun_file)
    words = [*overrides(f"recipes/pixels/{recipe}.yaml", data), "--trainer.fast_dev_run", "true"]
    if "UCBDrAC" in recipe_paths()[part].read_text():
        words += ["--data.levels", "0:7", "--data.judge", "7:10"]
    assert cli.main(["fit", *words, "--data.augment", str(recipe_paths()[part])]) == 0
    assert f"--data.augment {part}" in recipe_paths()[part].read_text()


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
    data = request.getfixturevalue(HEADS.get(recipe, DATA[folder(recipe)]))
    words = [*overrides(recipe, data), "--trainer.fast_dev_run", "true"]
    if "precision: bf16" in Path(recipe).read_text() and not fast_bfloat16():
        words += ["--trainer.precision", "32-true"]
    if recipe in HEADS:
        words += ["--model.learner", str(request.getfixturevalue("pixel_learner"))]
    init_args = read(recipe)["model"]["init_args"]
    for part in ("tokenizer", "autoencoder", "latent_actions"):
        if isinstance(init_args.get(part), str):
            words += [f"--model.{part}", str(untrained(re.sub("dynamics|forcing", part, recipe)))]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", *words]) == 0
    assert not list(tmp_path.iterdir()), "fast_dev_run leaves nothing behind"


def test_run_is_named_after_its_recipe() -> None:
    assert run_name("recipes/coinrun/tokenizer.yaml") == "coinrun/tokenizer"
    assert run_name("elsewhere/mine.yaml") == "mine"
