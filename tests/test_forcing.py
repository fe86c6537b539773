"""Shortcut forcing: causal, its loss written out, few cached steps equal to the plain solver, and from `fit` to the player."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from exact import float64
from torch import Tensor
from toy_world import counter_clips

from dreamloom import cli
from dreamloom.tokenizers.autoencoder import Autoencoder
from dreamloom.train.optimizers import MuonAdamW
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.forcing import ForcingDynamics
from dreamloom.worldmodels.forcing_world import ForcingWorld
from dreamloom.worldmodels.world import Sampling

SMALL = {"width": 16, "heads": 2, "window": 3}


def shaken(model: torch.nn.Module, by: float = 0.2) -> Any:
    """Weights large enough that every part matters."""
    for parameter in model.parameters():
        parameter.data += by * torch.randn_like(parameter)
    return model.eval()


def autoencoder(**settings: Any) -> Autoencoder:
    torch.manual_seed(0)
    return shaken(Autoencoder(5, size=8, patch=4, encoder_depth=1, decoder_depth=2, **SMALL, **settings))


def dynamics(**settings: Any) -> ForcingDynamics:
    torch.manual_seed(0)
    sizes = {"tokens": 4, "latent": 5, "depth": 2, "time_every": 1, "finest": 8}
    return shaken(ForcingDynamics(3, **(SMALL | sizes | settings)))


def forcing_world(**settings: Any) -> ForcingWorld:
    return ForcingWorld(autoencoder(), dynamics(**settings), steps=2).eval().requires_grad_(False)


def forcing_plain(world: ForcingWorld, prompt: Tensor, actions: Tensor, generators: list) -> Tensor:
    """Frames (b, s, c, h, w) with every step run over all frames again; randomness in the order that `imagine` draws it."""
    model, steps = world.dynamics, world.sampling.steps
    assert steps is not None
    latents = world.autoencoder.encode(prompt.float() / 255)
    (b, t), top = latents.shape[:2], 1 - 1 / model.finest
    past, levels, shown = top * latents, torch.full((b, t), top), []
    led = torch.full((b, t), model.no_action)
    for action, generator in zip(actions.unbind(1), generators, strict=True):
        z, blur = torch.stack([torch.randn(2, *latents.shape[2:], generator=g) for g in generator]).unbind(1)
        led = torch.cat([led, action[:, None]], 1)
        sizes = torch.full(led.shape, model.halvings)
        sizes[:, -1] = math.ceil(math.log2(steps))
        for i in range(steps):
            level = torch.cat([levels, torch.full((b, 1), i / steps)], 1)
            x = model.predict(torch.cat([past, z[:, None]], 1), level, sizes, led)[:, -1].clamp(-1, 1)
            z = z + (x - z) / (1 - i / steps) / steps
        latents = torch.cat([latents, z[:, None]], 1)
        noisy = model.context_noise * blur + (1 - model.context_noise) * z
        past = torch.cat([past, noisy[:, None]], 1)
        levels = torch.cat([levels, torch.full((b, 1), 1 - model.context_noise)], 1)
        shown.append((world.autoencoder.decode(latents)[:, -1] * 255).round())
    return torch.stack(shown, 1).to(torch.uint8)


@pytest.mark.parametrize("steps", [1, 3, 4])
@torch.no_grad()
@float64()
def test_few_cached_steps_equal_the_plain_solver(steps: int) -> None:
    """Three windows long."""
    world = forcing_world()
    world.sampling = Sampling(steps, 1.0)
    prompt, actions = torch.randint(256, (2, 2, 3, 8, 8), dtype=torch.uint8), torch.randint(3, (2, 9))
    state, shown = world.reset(prompt), []
    generators, again = ([torch.Generator().manual_seed(i) for i in (0, 1)] for _ in "12")
    for action in actions.unbind(1):
        state, outcome = world.step(state, action, generators)
        shown.append(outcome.frame)
    plain = forcing_plain(world, prompt, actions, [again] * 9)
    assert (torch.stack(shown, 1).int() - plain.int()).abs().max() <= 1, "a rounding error may tip a grey level, no more"
    assert not torch.equal(plain[:, 0], plain[:, -1])


@torch.no_grad()
def test_frames_hang_on_the_past_alone() -> None:
    model, coder = dynamics(window=8), autoencoder()
    z, level, sizes, led = torch.randn(2, 6, 4, 5), torch.rand(2, 6), torch.randint(4, (2, 6)), torch.randint(4, (2, 6))
    before = model.predict(z, level, sizes, led)
    for changed in range(6):
        others = [x.clone() for x in (z, level, sizes, led)]
        others[0][:, changed:] += 1
        others[1][:, changed:] /= 2
        others[2][:, changed:] = (sizes[:, changed:] + 1) % 4
        others[3][:, changed:] = (led[:, changed:] + 1) % 4
        after = model.predict(*others)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed], atol=1e-3)
    frames = torch.rand(2, 5, 3, 8, 8)
    other = torch.cat([frames[:, :3], torch.rand(2, 2, 3, 8, 8)], 1)
    torch.testing.assert_close(coder.encode(other)[:, :3], coder.encode(frames)[:, :3])


def test_the_loss_is_dreamer_4s_written_out() -> None:
    """Frame by frame; its own noise level, its own step size, velocities where the step is not the finest."""
    model = dynamics(shortcut=1.0)
    latents, actions = torch.rand(3, 4, 4, 5) * 2 - 1, torch.randint(3, (3, 3))
    loss, metrics = model.loss(latents, actions, torch.Generator().manual_seed(4))
    level, halvings, noise, led = model._draw(latents, actions, torch.Generator().manual_seed(4))
    assert {int(e) for e in halvings.flatten()} == {0, 1, 2, 3}
    z = (1 - level)[..., None, None] * noise + level[..., None, None] * latents
    size, coarse = 0.5**halvings, halvings < 3
    half = torch.where(coarse, halvings + 1, halvings)
    with torch.no_grad():
        first = (model.predict(z, level, half, led) - z) / (1 - level)[..., None, None]
        there = torch.where(coarse, size / 2, 0)
        moved = z + there[..., None, None] * first
        second = (model.predict(moved, level + there, half, led) - moved) / (1 - level - there)[..., None, None]
    x, terms, errors = model.predict(z, level, halvings, led), [], []
    for i in range(3):
        for t in range(4):
            tau = float(level[i, t])
            velocity = (x[i, t] - z[i, t]) / (1 - tau)
            wanted = (first + second)[i, t] / 2
            far = (1 - tau) ** 2 * (velocity - wanted).square().mean()
            near = (x[i, t] - latents[i, t]).square().mean()
            terms.append((0.9 * tau + 0.1) * (far if coarse[i, t] else near))
            errors += [] if coarse[i, t] else [near]
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    torch.testing.assert_close(metrics["error"], torch.stack(errors).mean().detach())


def test_levels_lie_on_the_grid_of_their_steps_and_most_clips_learn_the_finest() -> None:
    model = dynamics(shortcut=0.25, forget=0.5)
    actions = torch.randint(3, (400, 5))
    level, halvings, _, led = model._draw(torch.zeros(400, 6, 4, 5), actions, torch.Generator().manual_seed(0))
    assert torch.equal(level * 2.0**halvings, (level * 2.0**halvings).round())
    assert level.max() <= 1 - 1 / 8
    assert 0.15 < (halvings < 3).any(1).float().mean() < 0.35
    told = torch.nn.functional.pad(actions, (1, 0), value=3)
    hidden = led != told
    assert 0.3 < hidden.any(1).float().mean() < 0.6
    assert torch.equal(hidden[:, 1:].int().cummin(1).values.bool(), hidden[:, 1:]), "the oldest are hidden, none between"


def test_a_consistent_model_has_no_shortcut_error() -> None:
    """One that predicts the same x everywhere moves straight to it: two half steps and one whole end alike."""
    model = dynamics(shortcut=1.0)
    goal = torch.rand(4, 5)
    model.predict = lambda z, *_: goal.expand_as(z)  # type: ignore[method-assign]
    _, metrics = model.loss(torch.rand(8, 3, 4, 5), torch.randint(3, (8, 2)), torch.Generator().manual_seed(0))
    assert metrics["shortcut_error"] < 1e-10
    assert metrics["error"] > 0.01


def test_the_autoencoder_hides_patches_in_training_alone_and_streams() -> None:
    model, frames = autoencoder(), torch.rand(2, 5, 3, 8, 8)
    latents = model.encode(frames)
    assert latents.shape == (2, 5, 4, 5)
    assert latents.abs().max() <= 1
    quiet = [model.loss(frames)[0] for _ in "12"]
    assert torch.equal(*quiet)
    model.train()
    noisy = [model.loss(frames, torch.Generator().manual_seed(i))[0] for i in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
    cache, shown = model.decoder.empty_cache(2, model.tokens), []
    for t in range(5):
        frame, cache = model.decode_frame(latents[:, t : t + 1], cache)
        shown.append(frame)
    torch.testing.assert_close(torch.cat(shown, 1), model.decode(latents), atol=1e-5, rtol=1e-4)


def test_it_learns_a_world_that_is_known() -> None:
    """A counter as points on a circle: after training, a frame of two steps is right nearly everywhere."""
    torch.manual_seed(0)
    model = ForcingDynamics(3, tokens=4, latent=2, width=32, depth=2, heads=2, window=3, time_every=1, finest=4, forget=0.0)
    optimizer, random = MuonAdamW(model.parameters(), lr=0.04), torch.Generator().manual_seed(0)
    circle = torch.stack([(torch.arange(6) * math.pi / 3).cos(), (torch.arange(6) * math.pi / 3).sin()], 1)
    for _ in range(250):
        tokens, actions = counter_clips(64, 3, random)
        loss, _ = model.loss(circle[tokens], actions, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, actions = counter_clips(64, 3, random)
    cache, right = model.empty_cache(64), {}
    with torch.no_grad():
        cache = model.observe(circle[tokens[:, 0]], torch.full((64,), model.no_action), cache)
        cache = model.observe(circle[tokens[:, 1]], actions[:, 0], cache)
        for what, action in (("told", actions[:, 1]), ("another", (actions[:, 1] + 1) % 3)):
            x, _ = model.imagine(action, cache, steps=2, generator=torch.Generator().manual_seed(0))
            right[what] = ((x @ circle.T).argmax(-1) == tokens[:, 2]).float().mean().item()
    assert right["told"] > 0.9
    assert right["another"] < 0.1


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="power of two"):
        dynamics(finest=6)
    with pytest.raises(ValueError, match="does not fit"):
        ForcingWorld(autoencoder(), dynamics(latent=4))
    world = forcing_world()
    state = world.reset(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="steps >= 1"):
        world.step(state, 0, sampling=Sampling(steps=0))


CODER = {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "patch": 16, "latent": 4}
MODEL = {"width": 16, "heads": 2, "depth": 1, "tokens": 16, "latent": 4}


@pytest.fixture(scope="module")
def runs(coinrun_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of `dreamloom fit` each, with far smaller networks."""
    root = tmp_path_factory.mktemp("fit")
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={root}"]
    common = [*quiet, f"--data.path={coinrun_file}", "--data.batch_size=2", "--data.val_batches=1", "--trainer.max_steps=2"]
    for part, settings in (("autoencoder", CODER), ("forcing", MODEL)):
        words = [f"--model.model.init_args.{key}={value}" for key, value in settings.items()]
        words += [f"--model.autoencoder={root}/coinrun/autoencoder"] if part == "forcing" else []
        assert cli.main(["fit", "-c", f"recipes/coinrun/{part}.yaml", *common, *words]) == 0
    return root / "coinrun" / "forcing"


def test_a_checkpoint_is_a_world_and_is_played(runs: Path) -> None:
    world = load_world(runs)
    assert isinstance(world, ForcingWorld)
    assert (world.game, world.fps, world.train_levels, world.sampling) == ("coinrun", 7.5, ["0:10"], Sampling(4, 1.0))
    from play_world import Client, serving  # late: what else is in this file needs no server

    with serving(world) as (address, _), Client(address) as player:
        player.frame()
        player.send(type="step", action=7, id=1)
        assert player.frame(stamp=1)[1].shape == (64, 64, 3)


def test_eval_world_has_the_autoencoders_ceiling(
    runs: Path, heldout_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamloom.datasets.store import open_dataset
    from dreamloom.eval.heldout import Episodes
    from dreamloom.eval.protocols import sections
    from dreamloom.eval.protocols.trial import Trial

    with open_dataset(heldout_file) as data:
        trial = Trial(load_world(runs), Episodes.of(data, 2), clips=2, context=2, seed=0, sampling=Sampling())
        found = sections.rollouts(trial)
        assert found["ceiling"]["psnr"]["1"] > 0
        assert set(sections.genie(trial)["tokenizer"]) == {"psnr", "ssim"}
