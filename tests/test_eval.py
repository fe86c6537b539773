"""Worlds whose scores are known beforehand, and the verb `eval world` on a small Genie and real frames."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import float64
from toy_game import ToyWorld, write_toy

from dreamloom.cli import main
from dreamloom.datasets.store import open_dataset
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.plots import grid_frames
from dreamloom.eval.protocols import sections, steady
from dreamloom.eval.protocols.rollout import rollout
from dreamloom.eval.protocols.trial import Trial
from dreamloom.eval.psnr import MAX_PSNR
from dreamloom.eval.world import _levels_note, _settings, _stride, evaluate
from dreamloom.nn.encoders import Impala
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.bundle import load_world, save_bundle
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.genie import Genie
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.outcomes import Judged, Outcomes
from dreamloom.worldmodels.world import Sampling, World

# Long rollouts have tests of their own.
MOST = "rollout,tokenizer,distances,control,latent_actions,latency"
SHORT = ["--steady-rollouts", "2", "--steady-frames", "16"]


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.hdf5")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller samples: these worlds are far from the edge of any metric."""
    monkeypatch.setattr(sections, "FRECHET_FRAMES", 24)
    monkeypatch.setattr(sections, "LATENCY_STEPS", (1, 2))
    monkeypatch.setattr(steady, "BANK", 64)
    monkeypatch.setattr(steady, "HELD", 48)


def tiny_genie(*, latent_actions: bool = True) -> Genie:
    torch.manual_seed(0)
    tokenizer = Tokenizer(VQ(32, 64, latent=8), patch=8, width=32, heads=2, encoder_depth=1, decoder_depth=1)
    actions = (
        LatentActions(VQ(32, 6, latent=8), width=32, heads=2, encoder_depth=1, decoder_depth=1) if latent_actions else None
    )
    dynamics = Dynamics(64, 64, 6 if latent_actions else 15, width=32, depth=1, heads=2)
    return Genie(tokenizer, dynamics, actions, steps=2).eval().requires_grad_(False)


def bundle_with_heads(world: Genie, data: Path, folder: Path) -> None:
    """Puts a world's parts and untrained heads together from the command line, as they lie in checkpoints."""
    heads = Outcomes(Impala((6, 64, 64), latent_size=8, channels=(4, 4, 4)))
    words = []
    for name, part in {"tokenizer": world.tokenizer, "dynamics": world.dynamics, "outcomes": heads}.items():
        weights = {f"model.{key}": value for key, value in part.state_dict().items()}
        torch.save({"model_config": part.config, "state_dict": weights, "train_wall_s": 3.0}, folder / f"{name}.ckpt")
        words += [f"--{name}", str(folder / f"{name}.ckpt")]
    words += ["--data", str(data), "--prompts", "2", "--prompt-frames", "1", "--steps", "2", "--precision", "float32"]
    assert main(["bundle", *words, "--out", str(folder / "world")]) == 0
    loaded = load_world(folder / "world")
    assert isinstance(loaded, Judged)
    assert loaded.train_wall_s == 6.0
    _, outcome = loaded.step(loaded.reset(loaded.prompts), 1, torch.Generator().manual_seed(0))
    assert (outcome.reward.shape, outcome.terminal.dtype) == ((2,), torch.bool)


def random_frames(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_clips_stay_in_their_episode_and_halves_share_no_level(heldout_file: Path) -> None:
    with open_dataset(heldout_file) as data:
        for stride in (1, 3):
            episodes = Episodes.of(data, stride)
            clip = episodes.clips(20, 5, seed=0)
            frames = torch.from_numpy(data.observations[:]).permute(0, 3, 1, 2)
            windows = {frames[s + i : s + i + 4 * stride + 1 : stride].numpy().tobytes()
                       for s, e in zip(*data.episodes, strict=True) for i in range(e - s - 4 * stride)}  # fmt: skip
            assert all(one.numpy().tobytes() in windows for one in clip.frames)
        first, second = Episodes.of(data).halves()
        assert not set(first.levels) & set(second.levels)
        assert len(first.starts) + len(second.starts) == len(data.episodes[0])
        with pytest.raises(ValueError, match="no episode has 500 frames; the longest has"):
            first.clips(2, 500, seed=0)


def scores_of(kind: str, path: Path) -> dict:
    world = ToyWorld(kind)
    assert isinstance(world, World)
    metrics, pictures = evaluate(world, data=path, clips=12, sections=MOST)
    assert list(pictures["grid"]) == ["real", "same actions", "stand", "right", "left"]
    return metrics


def test_a_perfect_world_has_perfect_scores(toy_file: Path) -> None:
    found = scores_of("perfect", toy_file)
    assert found["rollout"]["psnr"] == dict.fromkeys(["1", "4", "16", "64"], MAX_PSNR)
    assert found["rollout"]["clips"] == {"1": 12, "4": 12, "16": 12, "64": 3}
    assert found["copy_last"]["psnr"]["16"] < 20
    assert found["delta4_psnr"]["low"] > 10
    assert found["action_swap"]["real_accuracy"] > 0.95
    assert found["action_swap"]["accuracy"] > 0.95
    assert found["effnet_fd"]["both"] == pytest.approx(0, abs=1e-3)
    assert found["effnet_fd"]["floor"] > 1
    assert found["drift"]["psnr_slope"] == pytest.approx(0, abs=1e-9)
    assert found["drift"]["sharpness"]["64"] == pytest.approx(1)
    assert (found["no_op"]["name"], found["no_op"]["step_psnr"]) == ("stand", MAX_PSNR)
    assert found["latent_actions"]["nmi"] is None
    assert found["notes"]["latent_actions"] == "the world takes true actions"
    assert found["world"]["actions"] == "true"


def test_a_frozen_world_is_the_copy_baseline_and_has_no_control(toy_file: Path) -> None:
    found = scores_of("frozen", toy_file)
    assert found["rollout"]["psnr"] == found["copy_last"]["psnr"]
    assert found["rollout"]["ssim"] == found["copy_last"]["ssim"]
    assert {found["delta4_psnr"][k] for k in ("mean", "low", "high")} == {0.0}
    assert found["action_swap"]["accuracy"] < 0.6  # the inverse model answers "stand"
    assert found["no_op"]["psnr_to_start"]["16"] == MAX_PSNR


def test_a_deaf_world_has_no_control_though_it_moves(toy_file: Path) -> None:
    with open_dataset(toy_file) as data:
        trial = Trial(ToyWorld("deaf"), Episodes.of(data), clips=12, context=2, seed=0, sampling=Sampling())
        found = sections.control(trial, Episodes.of(data))
    assert found["delta4_psnr"]["low"] <= 0 <= found["delta4_psnr"]["high"]
    assert found["action_swap"]["accuracy"] < 0.6
    assert found["action_swap"]["real_accuracy"] > 0.95


@float64()
def test_a_dream_does_not_depend_on_its_batch(heldout_file: Path) -> None:
    genie = tiny_genie()
    prompt, actions = random_frames(5, 2, 3, 64, 64), torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])
    dreams = [rollout(genie, prompt, actions, seed=3, sampling=Sampling(), batch=batch) for batch in (2, 5)]
    assert torch.equal(*dreams)
    assert not torch.equal(dreams[0], rollout(genie, prompt, actions, seed=4, sampling=Sampling()))


@pytest.mark.parametrize("latent_actions", [True, False])
def test_eval_world_writes_the_whole_report(latent_actions: bool, heldout_file: Path, tmp_path: Path) -> None:
    world, out = tiny_genie(latent_actions=latent_actions), tmp_path / "report"
    if latent_actions:
        save_bundle(world, tmp_path / "world")
    else:
        bundle_with_heads(world, heldout_file, tmp_path)
    words = ["eval", "world", str(tmp_path / "world"), "--data", str(heldout_file), "--out", str(out), "--clips", "3"]
    assert main([*words, *SHORT]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert 0 < found["tokenizer"]["psnr"] < 60
    assert 0 < found["tokenizer"]["code_usage"] <= 1
    for row in ("rollout", "copy_last", "ceiling"):
        assert set(found[row]["psnr"]) == {"1", "4", "16", "64"}
    assert set(found["delta4_psnr"]) >= {"mean", "low", "high"}
    assert 0 <= found["action_swap"]["accuracy"] <= 1
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p95"]
    assert set(found["latency_ms"]["by_steps"]) == set(found["latency_ms"]["uncached_by_steps"]) == {"1", "2"}
    assert found["world"]["actions"] == ("latent" if latent_actions else "true")
    assert (found["latent_actions"]["nmi"] is not None) == latent_actions
    assert found["settings"]["sampling"] == {"steps": 2, "temperature": 1.0, "order": "random"}
    assert found["world"]["parameters"] == sum(parameter.numel() for parameter in world.parameters())
    assert found["latency_ms"]["side_by_side"]["frames_per_s"] > 0
    for part in (found["steady"], found["steady_real"]):
        assert [set(part[key]) for key in ("frames", "blank", "stuck")] == [
            {"median", "low", "high"},
            *[{"mean", "low", "high"}] * 2,
        ]
    assert found["settings"]["seed"] == 0
    assert found["machine"]["threads"] >= 1
    names = {"metrics.json", "report.md", "psnr.png", "latency.png", "grid.gif", "steady.png", "steady_strips.png"}
    assert {p.name for p in out.iterdir()} == names | ({"latent_actions.png"} if latent_actions else set())
    report = (out / "report.md").read_text()
    assert f"{found['delta4_psnr']['mean']:.2f}" in report
    assert "None" not in report.partition("| metric")[2].partition("\n\n")[0]


@pytest.mark.parametrize(
    ("levels", "game", "known"),
    [(["0:1000"], "coinrun", 0), (["0:1000", "1000:1100"], "coinrun", "all"), (["0:2000"], "ninja", 0), ([], "coinrun", None)],
)
def test_levels_of_the_training_are_no_held_out_ones(levels: list, game: str, known: object, heldout_file: Path) -> None:
    world = tiny_genie()
    world.game, world.train_levels = game, levels
    with open_dataset(heldout_file) as data:
        settings = _settings(Trial(world, Episodes.of(data), clips=4, context=2, seed=0, sampling=Sampling()), None)
    assert settings["levels_trained_on"] == (settings["levels"] if known == "all" else known)
    said = _levels_note(settings).get("levels", "")
    assert ("not of held-out levels" in said, "not known" in said) == (known == "all", known is None)


def test_eval_world_warns_of_levels_that_the_world_was_trained_on(
    heldout_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    world = tiny_genie()
    world.game, world.train_levels = "coinrun", ["1000:1010"]
    save_bundle(world, tmp_path / "world")
    words = ["eval", "world", str(tmp_path / "world"), "--data", str(heldout_file), "--out", str(tmp_path / "report")]
    assert main([*words, "--clips", "2", "--sections", "tokenizer"]) == 0
    warning = capsys.readouterr().err.splitlines()[-1]
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert warning == f"warning: {found['notes']['levels']}"
    assert "(1000:1010): these figures are not of held-out levels" in warning
    report = (tmp_path / "report" / "report.md").read_text()
    assert report.startswith("# genie: evaluation on levels of its training\n")
    assert found["notes"]["levels"] in report


def test_horizons_that_no_episode_affords_are_told(toy_file: Path) -> None:
    with open_dataset(toy_file) as data:
        whole = Episodes.of(data)
        short = Episodes(data, whole.starts, whole.starts + 8, whole.levels)
        found = sections.rollouts(Trial(ToyWorld("frozen"), short, clips=4, context=2, seed=0, sampling=Sampling()))
    assert found["rollout"]["psnr"]["64"] is None
    assert found["rollout"]["psnr"]["4"] > 0
    assert found["notes"]["rollout.psnr.64"] == "needs episodes of 66 frames; the longest held-out one has 8"


def test_a_file_that_does_not_fit_the_world_is_one_line(
    toy_file: Path, heldout_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_bundle(tiny_genie(), tmp_path / "world")
    words = ["eval", "world", str(tmp_path / "world"), "--out", str(tmp_path / "out")]
    assert main([*words, "--data", str(toy_file)]) == 2
    assert "frames are 32x32, the Genie takes 64x64" in capsys.readouterr().err
    assert main([*words, "--data", str(heldout_file), "--clips", "1"]) == 2
    assert not (tmp_path / "out").exists()


def test_a_world_that_skips_frames_is_shown_such_clips(toy_file: Path) -> None:
    world = ToyWorld("frozen")
    with open_dataset(toy_file) as file:
        world.fps = 5.0
        assert _stride(file, world) == 3
        clip = Episodes.of(file, 3).clips(1, 4, seed=0)
        rows = [r for r in range(len(file) - 9) if np.array_equal(file.observations[r], clip.frames[0, 0].permute(1, 2, 0))]
        assert any(np.array_equal(file.observations[r + 9], clip.frames[0, 3].permute(1, 2, 0)) for r in rows)
        for fps in (10.0, 30.0):
            world.fps = fps
            with pytest.raises(ValueError, match="frames/s"):
                _stride(file, world)


def test_the_grid_names_its_rows() -> None:
    rows = {"real": random_frames(2, 3, 3, 64, 64), "jump right": random_frames(2, 3, 3, 64, 64)}
    images = grid_frames(rows)
    assert len(images) == 3
    pixels = np.asarray(images[1])
    assert np.array_equal(pixels[:128:2, -128::2], rows["real"][1, 1].permute(1, 2, 0).numpy())
    assert (pixels[128 + 6 :, : pixels.shape[1] - 260] > 150).any()  # the label's letters
