"""A world that diffuses pixels: the paper's equations written out, what the past may be, and from `fit` to the player."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_world import square_clips

from dreamloom import cli
from dreamloom.datasets.types import Clip
from dreamloom.nn.build import build
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.train.tasks import actions_between
from dreamloom.train.worlds import DiffusionWorldTask
from dreamloom.worldmodels.bundle import BundleError, load_world
from dreamloom.worldmodels.diffusion_world import DiffusionWorld, NextFrameDenoiser
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.parts import ALLOWED
from dreamloom.worldmodels.world import Sampling

TINY = {"size": 8, "context": 3, "widths": [8, 16], "depth": 1, "condition": 24}


def denoiser(*, shaken: bool = True, actions: int = 4, **settings: Any) -> NextFrameDenoiser:
    """8 x 8 frames, 3 past ones; weights large enough that every part matters."""
    torch.manual_seed(0)
    model = NextFrameDenoiser(actions, **(TINY | settings)).eval()
    for parameter in model.parameters() if shaken else []:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def diffusion_world(*, latent: bool = False, **settings: Any) -> DiffusionWorld:
    model = denoiser(**settings)
    small = {"size": 8, "patch": 4, "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1}
    actions = LatentActions(VQ(16, 4, latent=4), **small) if latent else None
    return DiffusionWorld(model, actions).eval().requires_grad_(False)


def frames(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


@torch.no_grad()
def test_preconditioning_counts_the_shared_noise_in() -> None:
    """Karras et al. 2022, table 1, with sigma^2 + 0.3^2 for sigma^2; the paper's sigma_data is 0.5."""
    model, x, past = denoiser(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 3, 8, 8)
    actions, sigma = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([0.1, 2.0])
    for i in range(2):
        total = (sigma[i] ** 2 + 0.09) ** 0.5
        spread = (total**2 + 0.25) ** 0.5
        condition = model.mix(model.noise_in(total.log()[None] / 4) + model.action_in(actions[i]).flatten()[None])
        seen = torch.cat([past[i].flatten(0, 1) / 0.5, x[i] / spread])[None]
        expected = 0.25 / spread**2 * x[i] + total * 0.5 / spread * model.network(seen, condition)[0]
        torch.testing.assert_close(model.denoise(x, sigma, past, actions)[i], expected)


@torch.no_grad()
def test_a_frame_takes_the_papers_euler_steps() -> None:
    world = diffusion_world()
    start = world.reset(frames(2, 3, 3, 8, 8))
    state, outcome = world.step(start, torch.tensor([1, 3]), [torch.Generator().manual_seed(i) for i in (5, 6)])
    sigmas = [5.0, ((5 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7, 0.002, 0.0]
    x = 5 * torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (5, 6)])
    past, actions = start.frames / 127.5 - 1, torch.tensor([[4, 4, 1], [4, 4, 3]])
    for now, after in itertools.pairwise(sigmas):
        denoised = world.denoiser.denoise(x, torch.tensor(now), past, actions).clamp(-1, 1)
        x = x + (after - now) / now * (x - denoised)
    expected = ((x.clamp(-1, 1) + 1) * 127.5).round()
    assert (outcome.frame - expected).abs().max() <= 1
    assert torch.equal(state.frames, torch.cat([start.frames[:, 1:], outcome.frame[:, None]], 1))
    assert torch.equal(state.actions, actions[:, 1:])
    assert not torch.equal(outcome.frame[0], start.frame[0])


@torch.no_grad()
def test_of_the_change_a_new_network_dreams_a_still_world() -> None:
    x, past, actions = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 3, 8, 8), torch.randint(5, (2, 3))
    plain, changing = denoiser(), denoiser(change=True)
    expected = past[:, -1] + plain.denoise(x - past[:, -1], torch.tensor(0.7), past, actions)
    torch.testing.assert_close(changing.denoise(x, torch.tensor(0.7), past, actions), expected)
    world = DiffusionWorld(denoiser(shaken=False, change=True))
    state = world.reset(frames(2, 3, 3, 8, 8))
    after, _ = world.step(state, 2, sampling=Sampling(temperature=0.0))
    assert torch.equal(after.frame, state.frame)
    world.step(after, 1, torch.Generator().manual_seed(0))


def test_what_is_shown_hangs_on_the_last_frames_and_actions_alone() -> None:
    world, prompt = diffusion_world(), frames(1, 9, 3, 8, 8)
    long, short = world.reset(prompt), world.reset(prompt[:, -3:])
    assert torch.equal(long.frames, short.frames)
    assert torch.equal(long.actions, short.actions)
    seen = [world.step(long, action, torch.Generator().manual_seed(0))[1].frame for action in range(4)]
    assert len({frame.numpy().tobytes() for frame in seen}) == 4, "each action shows in the very next frame"
    greedy = [world.step(long, 0, torch.Generator().manual_seed(i), Sampling(temperature=0.0))[1].frame for i in (0, 1)]
    assert torch.equal(*greedy)


def test_before_the_prompt_its_first_frame_stood_still() -> None:
    world, prompt = diffusion_world(), frames(2, 3, 8, 8)
    state = world.reset(prompt)
    assert torch.equal(state.frames[0], prompt[[0, 0, 1]])
    assert state.actions.tolist() == [[4, 4]]
    inferring = diffusion_world(latent=True)
    known = inferring.latent_actions.infer(prompt[None].float() / 255)  # type: ignore[union-attr]
    assert inferring.reset(prompt).actions.tolist() == [[4, int(known)]]


def test_the_loss_is_edms_on_the_clips_last_frame() -> None:
    model = denoiser(forget=0.0)
    clip, actions = torch.rand(2, 4, 3, 8, 8), torch.randint(4, (2, 3))
    loss, metrics = model.loss(clip, actions, torch.Generator().manual_seed(3))
    same = torch.Generator().manual_seed(3)
    torch.rand(2, 2, 2, 1, generator=same)  # what is forgotten: nothing
    sigma = (-0.4 + 1.2 * torch.randn(2, generator=same)).exp()
    noise, shared = torch.randn(2, 3, 8, 8, generator=same), torch.randn(2, 3, 1, 1, generator=same)
    target = clip[:, 3] * 2 - 1
    noisy = target + sigma[:, None, None, None] * noise + 0.3 * shared
    error = (model.denoise(noisy, sigma, clip[:, :3] * 2 - 1, actions) - target).square().mean((1, 2, 3))
    total = sigma**2 + 0.09
    torch.testing.assert_close(loss, ((total + 0.25) / (total * 0.25) * error).mean())
    torch.testing.assert_close(metrics["error"], error.mean() / 4)


def test_a_longer_clip_is_predicted_from_predictions() -> None:
    """The second predicted frame sees the first one as predicted: no gradient, whole grey levels, and not the true frame."""
    model = denoiser(forget=0.0)
    clip, actions = torch.rand(1, 5, 3, 8, 8), torch.randint(4, (1, 4))
    seen: list[torch.Tensor] = []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.loss(clip, actions, torch.Generator().manual_seed(0))
    first, second = seen
    newest = second[:, 6:9] * 0.5
    torch.testing.assert_close(second[:, :6] * 0.5, (clip[:, 1:3] * 2 - 1).flatten(1, 2))
    levels = newest * 127.5 + 0.5  # -127.5, -126.5, ... of 256 levels, or half a level beside them
    assert not newest.requires_grad
    assert (levels * 2 - (levels * 2).round()).abs().max() < 1e-3
    assert not torch.allclose(newest, clip[:, 3] * 2 - 1, atol=0.05)
    assert first.shape == second.shape


def test_a_short_clip_and_a_forgotten_past_look_like_a_prompt() -> None:
    model = denoiser(forget=1.0)
    past, actions = torch.rand(64, 3, 3, 8, 8), torch.randint(4, (64, 3))
    seen, led = model._forgetful(past, actions, torch.Generator().manual_seed(0))
    assert torch.equal(seen[:, -1], past[:, -1])
    assert torch.equal(led[:, -1], actions[:, -1])
    hidden = (seen != past).flatten(2).any(2)
    for i in range(64):
        first = int(hidden[i].sum())
        assert torch.equal(seen[i, :first], past[i, first : first + 1].expand(first, -1, -1, -1))
        assert (led[i, :first] == model.no_action).all()
    assert {int(row.sum()) for row in hidden} == {0, 1, 2}
    model.loss(torch.rand(2, 2, 3, 8, 8), torch.randint(4, (2, 1)))[0].backward()


def test_it_learns_a_world_that_is_known() -> None:
    """A square on a torus moves as the action says: after training, one step is right nearly everywhere."""
    torch.manual_seed(0)
    model = NextFrameDenoiser(4, size=8, context=2, widths=[32], depth=1, fold=2, condition=64, forget=0.0)
    optimizer, random = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(300):
        loss, _ = model.loss(*square_clips(32, 3, random), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world = DiffusionWorld(model.eval())
    clips, actions = square_clips(64, 3, random)
    state = world.reset((clips[:, :2] * 255).to(torch.uint8))
    right = {}
    for what, action in (("told", actions[:, 1]), ("another", (actions[:, 1] + 1) % 4)):
        shown = world.step(state, action, torch.Generator().manual_seed(0))[1].frame
        right[what] = ((shown / 255 - clips[:, 2]).abs().amax((1, 2, 3)) < 0.5).float().mean().item()
    assert right["told"] > 0.9
    assert right["another"] < 0.1


def test_noise_on_past_frames_in_training_takes_noise_away_in_play() -> None:
    """A still scene, of which the change is diffused: it stays as noisy as it begins, or grows clean."""
    errors = []
    for context_noise in (0.0, 0.3):
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "size": 8,
            "context": 2,
            "widths": [32],
            "depth": 1,
            "fold": 2,
            "condition": 64,
            "change": True,
        }
        model = NextFrameDenoiser(4, **settings, context_noise=context_noise)
        optimizer, random = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
        for _ in range(100):
            frames, actions = square_clips(32, 3, random)
            loss, _ = model.loss(frames[:, :1].expand_as(frames), actions, random)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        still = square_clips(64, 3, random)[0][:, :1].expand(-1, 2, -1, -1, -1)
        noisy = (still + 0.1 * torch.randn(still.shape, generator=random)).clamp(0, 1)
        world = DiffusionWorld(model.eval())
        state = world.reset((noisy * 255).to(torch.uint8))
        for _ in range(3):
            state, _ = world.step(state, 0, torch.Generator().manual_seed(0))
        errors.append((state.frame / 255 - still[:, 0]).square().mean().item())
    assert errors[1] < 0.5 * errors[0], errors


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="divide condition"):
        NextFrameDenoiser(4, context=3, condition=64)
    with pytest.raises(ValueError, match="multiple of 16"):
        NextFrameDenoiser(4, size=24, widths=[8, 8, 8, 8], fold=2)
    latent = diffusion_world(latent=True).latent_actions
    with pytest.raises(ValueError, match="4 latent actions do not fit"):
        DiffusionWorld(NextFrameDenoiser(5, **TINY), latent)
    world = diffusion_world()
    with pytest.raises(ValueError, match="steps >= 1"):
        world.step(world.reset(frames(3, 8, 8)), 0, sampling=Sampling(steps=0))


NETWORK = {"widths": "[8]", "depth": 1, "fold": 8, "condition": 16}


@pytest.fixture(scope="module")
def runs(coinrun_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of `dreamloom fit` with a far smaller network, and one more after a stop."""
    root = tmp_path_factory.mktemp("fit")
    recipe = "recipes/coinrun/diffusion_world.yaml"
    words = ["fit", "-c", recipe, "--data.path", str(coinrun_file), "--trainer.default_root_dir", str(root)]
    words += [f"--model.model.init_args.{key}={value}" for key, value in NETWORK.items()]
    words += ["--data.batch_size=2", "--data.val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert cli.main([*words, "--trainer.max_steps=2"]) == 0
    assert cli.main([*words, "--trainer.max_steps=3", "--ckpt_path=last"]) == 0
    return root / "coinrun" / "diffusion_world"


def test_a_checkpoint_is_a_world(runs: Path, coinrun_file: Path) -> None:
    world = load_world(next(runs.glob("*/checkpoints/last.ckpt")))
    assert isinstance(world, DiffusionWorld)
    assert (world.name, world.game, world.fps, world.train_levels) == ("coinrun", "coinrun", 7.5, ["0:10"])
    assert "right-up" in world.action_names
    assert len(world.prompts) >= 1
    raw = torch.load(next(runs.glob("*/checkpoints/last.ckpt")), weights_only=True)["state_dict"]
    assert not torch.equal(raw["model.network.first.weight"], raw["world.denoiser.network.first.weight"]), "an average"
    assert torch.equal(world.denoiser.network.first.weight, raw["world.denoiser.network.first.weight"])


def test_it_is_trained_on_the_actions_of_a_frozen_model_too(tmp_path: Path) -> None:
    """The model goes into the world and its checkpoint, stays as it was, and its codes are what the denoiser is told."""
    latent = diffusion_world(latent=True).latent_actions
    assert latent is not None
    weights = {f"model.{name}": x.clone() for name, x in latent.state_dict().items()}
    torch.save({"model_config": latent.config, "state_dict": weights, "train_cpu_s": 7.0}, tmp_path / "latent.ckpt")
    task = DiffusionWorldTask(denoiser(forget=0.0), latent_actions=str(tmp_path / "latent.ckpt")).train()
    told: list[torch.Tensor] = []
    task.model.action_in.register_forward_pre_hook(lambda _, inputs: told.append(inputs[0]))
    clip = Clip(frames(2, 4, 3, 8, 8), actions=torch.zeros(2, 4, dtype=torch.long))
    task.eval().loss(clip)
    assert not told, "validation is of the averaged weights"
    task.train()
    task.compute(clip.frames.float() / 255, actions_between(clip, task.world.latent_actions))[0].backward()
    assert torch.equal(told[0], latent.infer(clip.frames.float() / 255))
    assert all(torch.equal(task.world.state_dict()[k.replace("model", "latent_actions", 1)], x) for k, x in weights.items())
    assert not any(p.requires_grad for p in task.world.parameters())
    again = build(task.world.config, ALLOWED)
    again.identify(task.world.identity)
    again.load_state_dict(task.world.state_dict())
    assert (again.latent_actions.actions, task.parts_cpu_s) == (4, 7.0)


def dreamed(world: Any) -> torch.Tensor:
    state = world.reset(world.prompts[:2])
    for action in (7, 8):
        state, outcome = world.step(state, action, torch.Generator().manual_seed(action))
    return outcome.frame


def test_a_bundle_of_it_dreams_the_same(runs: Path, coinrun_file: Path, tmp_path: Path) -> None:
    words = [
        "bundle",
        str(runs),
        "--data",
        str(coinrun_file),
        "--out",
        str(tmp_path / "world"),
        "--prompts",
        "2",
        "--stride",
        "2",
    ]
    assert cli.main([*words, "--precision", "float32", "--steps", "2"]) == 0
    bundled, trained = load_world(tmp_path / "world"), load_world(runs)
    assert (bundled.fps, bundled.sampling, bundled.train_levels) == (7.5, Sampling(2, 1.0), ["0:10"])
    bundled.sampling, trained.prompts = trained.sampling, bundled.prompts
    assert torch.equal(dreamed(bundled), dreamed(trained))
    assert "15 actions: left-down" in (tmp_path / "world" / "README.md").read_text()
    assert cli.main([*words, "--order", "halton"]) == 2
    assert cli.main(["bundle", "--data", str(coinrun_file), "--out", str(tmp_path / "none")]) == 2
    with pytest.raises(BundleError, match="no folder"):
        load_world(tmp_path / "none")


def test_eval_world_measures_it(runs: Path, heldout_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamloom.eval.protocols import sections

    monkeypatch.setattr(sections, "FRECHET_FRAMES", 24)
    monkeypatch.setattr(sections, "LATENCY_STEPS", (1, 2))
    words = ["eval", "world", str(runs), "--data", str(heldout_file), "--out", str(tmp_path / "report"), "--clips", "2"]
    assert cli.main([*words, "--sections", "rollout,latency"]) == 0
    report = (tmp_path / "report" / "report.md").read_text()
    assert "True actions" in report
    assert "3 steps a frame" in report


def test_it_is_played(runs: Path) -> None:
    from play_world import Client, serving  # late: what else is in this file needs no server

    with serving(load_world(runs)) as (address, _), Client(address) as player:
        assert player.hello["world"] == "coinrun"
        _, before = player.frame()
        player.send(type="step", action=7, id=1)
        header, after = player.frame(stamp=1)
        assert header["stamp"] == 1
        assert before.shape == after.shape == (64, 64, 3)
