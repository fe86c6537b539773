"""Bundles: what is saved is what is loaded, and anything else is one clear error."""

import os
from pathlib import Path

import pytest
import torch
import yaml

import dreamloom
from dreamloom.nn.build import build
from dreamloom.nn.parts import checkpoint_at
from dreamloom.recipes import recipe_paths
from dreamloom.tokenizers.quantizers import FSQ, VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.bundle import CONFIG, WEIGHTS, BundleError, bundle, load_world, save_bundle
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.genie import Genie
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.parts import ALLOWED, load_part, trained_levels


@pytest.fixture(scope="module")
def world() -> Genie:
    torch.manual_seed(0)
    tokenizer = Tokenizer(FSQ(32, [3, 3]), size=16, patch=8, width=32, heads=2, encoder_depth=1, decoder_depth=1, window=3)
    actions = LatentActions(VQ(32, 4, latent=4), size=16, patch=8, width=32, heads=2, encoder_depth=1, decoder_depth=1)
    dynamics = Dynamics(9, 4, 4, width=32, depth=2, heads=2, window=4)
    prompts = torch.randint(256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    names = ["left", "right", "jump", "stand"]
    return Genie(tokenizer, dynamics, actions, prompts=prompts, name="tiny", action_names=names, steps=2).eval()


@pytest.fixture
def folder(world: Genie, tmp_path: Path) -> Path:
    save_bundle(world, tmp_path / "tiny", notes="Made by a test.")
    return tmp_path / "tiny"


def test_a_loaded_world_dreams_what_the_saved_one_did(world: Genie, folder: Path) -> None:
    loaded = dreamloom.load_world(folder)
    assert (loaded.name, loaded.action_names, loaded.sampling) == (world.name, world.action_names, world.sampling)
    frames = []
    for w in (world, loaded):
        state = w.reset(w.prompts)
        for t in range(6):
            state, outcome = w.step(state, t % 4, torch.Generator().manual_seed(t))
        frames.append(outcome.frame)
    assert torch.equal(*frames)
    assert "Made by a test." in (folder / "README.md").read_text()


def test_a_file_of_version_1_is_read(world: Genie, folder: Path) -> None:
    config = yaml.safe_load((folder / CONFIG).read_text())
    parts = config.pop("world")["init_args"]
    (folder / CONFIG).write_text(yaml.safe_dump({**config, "version": 1, **parts}))
    assert load_world(folder).config == world.config


def test_half_precision_halves_the_file(world: Genie, tmp_path: Path) -> None:
    for precision in ("float32", "float16"):
        save_bundle(world, tmp_path / precision, precision=precision)
    whole, half = ((tmp_path / p / WEIGHTS).stat().st_size for p in ("float32", "float16"))
    assert half < 0.65 * whole
    assert load_world(tmp_path / "float16").dynamics.place.dtype == torch.float32


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _tamper(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def _edit(folder: Path, **changes: object) -> None:
    config = yaml.safe_load((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(yaml.safe_dump(config | changes))


def _edit_part(folder: Path, **changes: object) -> None:
    world = yaml.safe_load((folder / CONFIG).read_text())["world"]
    _edit(folder, world={**world, "init_args": world["init_args"] | changes})


def _foreign_class(folder: Path) -> None:
    _edit_part(folder, tokenizer={"class_path": "os.system", "init_args": {"command": "true"}})


def _executable_yaml(folder: Path) -> None:
    (folder / CONFIG).write_text("!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "truncated or changed"),
        (_tamper, "truncated or changed"),
        (_foreign_class, "not one that may be built"),
        (_executable_yaml, "could not determine a constructor"),
        (lambda f: (f / WEIGHTS).unlink(), "No such file"),
        (lambda f: (f / CONFIG).write_text("hello"), "not a dreamloom-world file"),
        (lambda f: _edit(f, version=99), "99"),
        (lambda f: _edit(f, action_names=["one"]), "need 4 action names"),
        (
            lambda f: _edit_part(f, dynamics={"class_path": "dreamloom.worldmodels.dynamics.Dynamics", "init_args": {"x": 1}}),
            "x",
        ),
        (lambda f: _edit_part(f, tokenizer=None), "not a world"),
        (lambda f: _edit(f, world={"class_path": VQ.__module__ + ".VQ", "init_args": {"width": 8}}), "a VQ is no world"),
        (lambda f: _edit(f, train_levels=["all"]), "not a list of ranges"),
    ],
)
def test_a_damaged_folder_is_one_clear_error(folder: Path, damage, said: str) -> None:
    damage(folder)
    with pytest.raises(BundleError, match=said) as caught:
        load_world(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no folder"):
        load_world(tmp_path / "nothing")


def test_a_part_or_an_empty_folder_is_no_world(world: Genie, tmp_path: Path) -> None:
    part = _checkpoint(tmp_path / "runs/checkpoints/last.ckpt", world.tokenizer, 0)
    with pytest.raises(BundleError, match=r"holds a part of a world \(Tokenizer\)"):
        load_world(part)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no world.yaml.*no checkpoint in"):
        load_world(tmp_path / "empty")


def test_only_a_bundle_is_replaced(world: Genie, folder: Path, tmp_path: Path) -> None:
    save_bundle(world, folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(ValueError, match="choose another folder"):
        save_bundle(world, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def _checkpoint(path: Path, part: torch.nn.Module, age: float, **kept: object) -> Path:
    """A checkpoint as `dreamloom fit` writes it, `age` seconds old."""
    path.parent.mkdir(parents=True)
    weights = {f"model.{name}": tensor for name, tensor in part.state_dict().items()}
    torch.save({"model_config": part.config, "state_dict": weights, **kept}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_run_folder_stands_for_its_newest_checkpoint(world: Genie, tmp_path: Path) -> None:
    runs = tmp_path / "tokenizer"
    old = _checkpoint(runs / "version_10/checkpoints/last.ckpt", world.tokenizer, 9, ClipData={"levels": ["5:6", "0:3"]})
    new = _checkpoint(runs / "version_9/checkpoints/last.ckpt", world.tokenizer, 1)
    found = {path: checkpoint_at(path) for path in (runs, runs / "version_10", runs / "version_9", old)}
    assert list(found.values()) == [new, old, new, old]
    assert load_part(runs, Tokenizer).config == world.tokenizer.config
    assert (trained_levels(old), trained_levels(runs)) == ({"0:3", "5:6"}, set())
    with pytest.raises(ValueError, match=r"version_\*/checkpoints/last.ckpt"):
        checkpoint_at(tmp_path)
    with pytest.raises(ValueError, match=r"no checkpoint at .*gone.ckpt"):
        load_part(tmp_path / "gone.ckpt", Tokenizer)


def test_a_run_folder_says_which_run_it_stands_for(world: Genie, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs, bigger = tmp_path / "tokenizer", Tokenizer(FSQ(32, [3, 3]), size=16, patch=8, width=32, heads=2, window=3)
    old = _checkpoint(runs / "version_0/checkpoints/last.ckpt", bigger, 9, global_step=1700)
    _checkpoint(runs / "version_1/checkpoints/last.ckpt", world.tokenizer, 5, global_step=40)
    new = _checkpoint(runs / "version_2/checkpoints/last.ckpt", world.tokenizer, 1, global_step=300)
    assert [checkpoint_at(runs) for _ in range(3)] == [new] * 3
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{runs} stands for {new} (300 steps)"
    assert second == (
        f"warning: {old}, of a model with other settings, was trained for longer (1,700 steps); "
        f"give {runs / 'version_0'} to take that run"
    )
    os.utime(old)
    assert checkpoint_at(runs) == old
    assert capsys.readouterr().err == f"{runs} stands for {old} (1,700 steps)\n", "the longest is the newest"


def test_a_bundle_knows_the_levels_of_its_parts(world: Genie, coinrun_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(FSQ(32, [3, 3]), patch=32, width=32, heads=2, encoder_depth=1, decoder_depth=1)
    dynamics = Dynamics(9, 4, 15, width=32, depth=1, heads=2)
    _checkpoint(tmp_path / "t/checkpoints/last.ckpt", tokenizer, 0, ClipData={"levels": ["0:10"]}, train_cpu_s=60.0)
    _checkpoint(tmp_path / "d/checkpoints/last.ckpt", dynamics, 0, ClipData={"levels": ["0:10", "20:30"]}, train_cpu_s=1.5)
    options = {"data": coinrun_file, "prompts": 2, "out": tmp_path / "world"}
    bundle(tokenizer=tmp_path / "t", dynamics=tmp_path / "d", **options)
    loaded = load_world(tmp_path / "world")
    assert (loaded.train_levels, loaded.train_cpu_s) == (["0:10", "20:30"], 61.5)
    assert "Trained on levels 0:10, 20:30" in (tmp_path / "world" / "README.md").read_text()


def test_a_bundle_keeps_the_sampling_of_the_recipe(world: Genie, coinrun_file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(FSQ(32, [3, 3]), patch=32, width=32, heads=2, encoder_depth=1, decoder_depth=1)
    dynamics = Dynamics(9, 4, 15, width=32, depth=1, heads=2)
    sampling = {"steps": 3, "temperature": 0.6, "order": "confidence"}
    parts = {"tokenizer": _checkpoint(tmp_path / "t/last.ckpt", tokenizer, 0)}
    parts["dynamics"] = _checkpoint(tmp_path / "d/last.ckpt", dynamics, 0, sampling=sampling)
    options = {"data": coinrun_file, "prompts": 2, **parts}
    found = []
    for name, asked in {"as trained": {}, "other": {"steps": 5, "order": "random"}}.items():
        bundle(out=tmp_path / name, **options, **asked)
        loaded = load_world(tmp_path / name)
        found.append((loaded.sampling.steps, loaded.sampling.temperature, loaded.order))
    assert found == [(3, 0.6, "confidence"), (5, 0.6, "random")]


def test_the_recipe_of_the_shipped_genie_has_its_sampling() -> None:
    recipe = yaml.safe_load(recipe_paths()["recipes/coinrun/dynamics.yaml"].read_text())["model"]["init_args"]
    shipped = load_world("coinrun-latent")
    assert (recipe["steps"], recipe["temperature"]) == (shipped.sampling.steps, shipped.sampling.temperature)
    assert recipe.get("order", "random") == shipped.order


def test_parts_remember_how_they_were_built(world: Genie) -> None:
    for part in (world.tokenizer, world.dynamics, world.latent_actions):
        assert part is not None
        again = build(part.config, ALLOWED)
        assert again.config == part.config
        again.load_state_dict(part.state_dict())


def test_no_part_outside_the_list_is_built() -> None:
    with pytest.raises(ValueError, match="may be built"):
        build({"class_path": "dreamloom.nn.attention.Attention", "init_args": {"width": 8, "heads": 2}}, ALLOWED)
