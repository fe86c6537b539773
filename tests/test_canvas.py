"""A world that paints on a canvas: registration and canvas exact, the paper's equations written out, and what is never lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_world import square_clips

from dreamloom import cli
from dreamloom.nn.build import build
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.canvas.camera import Camera
from dreamloom.worldmodels.canvas.denoiser import CanvasDenoiser
from dreamloom.worldmodels.canvas.painting import Canvas
from dreamloom.worldmodels.canvas.registration import register, shifted
from dreamloom.worldmodels.canvas.scenery import Scenery
from dreamloom.worldmodels.canvas.world import CanvasWorld
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.parts import ALLOWED
from dreamloom.worldmodels.world import Sampling

TINY: dict[str, Any] = {"size": 16, "reach": 4, "widths": [8, 16], "patch": 4, "condition": 16, "unroll": 2}


def denoiser(*, shaken: bool = True, actions: int = 4, **settings: Any) -> CanvasDenoiser:
    """16 x 16 frames; weights large enough that every part matters."""
    torch.manual_seed(0)
    model = CanvasDenoiser(actions, **(TINY | settings)).eval()
    for parameter in model.parameters() if shaken else []:
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def canvas_world(*, latent: bool = False, **settings: Any) -> CanvasWorld:
    small = {"size": 16, "patch": 4, "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1}
    model = denoiser(**settings)  # first, as it sets the seed
    actions = LatentActions(VQ(16, 4, latent=4), **small) if latent else None
    return CanvasWorld(model, actions, least_change=1.0).eval().requires_grad_(False)


def scenery(side: int, seed: int) -> torch.Tensor:
    """A picture (3 side side) of blocks of 3 pixels, bright or dark at random."""
    cells = torch.rand(1, 3, side // 3 + 1, side // 3 + 1, generator=torch.Generator().manual_seed(seed))
    return cells.repeat_interleave(3, 2).repeat_interleave(3, 3)[0, :, :side, :side].mean(0, keepdim=True).expand(3, -1, -1)


moves = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=6)


@settings(max_examples=20)
@given(moves, st.integers(0, 99))
def test_registration_finds_every_shift_of_the_camera(shifts, seed):
    world, place, clip = scenery(120, seed), torch.tensor([44, 44]), []
    for move in [(0, 0), *shifts]:
        place = place + torch.tensor(move)
        clip.append(world[:, place[0] : place[0] + 32, place[1] : place[1] + 32].clone())
        clip[-1][:, 14:18, 14:18] = 1.0  # a sprite that stays in the middle
    assert register(torch.stack(clip)[None], 6)[0].tolist() == [list(move) for move in shifts]


def test_registration_of_a_featureless_frame_is_no_shift():
    assert register(torch.zeros(2, 3, 3, 16, 16), 4).tolist() == [[[0, 0]] * 2] * 2
    with pytest.raises(ValueError, match="less than half"):
        register(torch.zeros(1, 2, 3, 16, 16), 8)


def test_a_shifted_frame_is_what_the_moved_camera_sees():
    frame = torch.arange(36.0).view(1, 1, 6, 6).repeat(2, 1, 1, 1)
    moved = shifted(frame, torch.tensor([[1, 2], [-1, 0]]))
    assert torch.equal(moved[0, 0, :5, :4], frame[0, 0, 1:, 2:])
    assert torch.equal(moved[1, 0, 1:], frame[1, 0, :5])
    assert torch.equal(moved[1, 0, 0], frame[1, 0, 0]), "the edge goes on"


@settings(max_examples=30)
@given(moves, st.integers(0, 99))
def test_a_canvas_shows_again_what_was_painted(shifts, seed):
    """However the camera walks, also beyond the edge: what is known is right, and the last view is known entirely."""
    world, place = (scenery(120, seed) * 255).to(torch.uint8), torch.tensor([52, 52])
    canvas = Canvas.blank(1, 3, 8, 16, torch.device("cpu")).painted(world[None, :, 52:60, 52:60])
    for move in shifts:
        place = place + torch.tensor(move)
        canvas = canvas.moved(torch.tensor([move]), 8)
        seen, known = canvas.view(8)
        truth = world[None, :, place[0] : place[0] + 8, place[1] : place[1] + 8]
        assert torch.equal(torch.where(known > 0, seen, 0), torch.where(known > 0, truth, 0))
        overlap = (8 - min(8, abs(move[0]))) * (8 - min(8, abs(move[1])))
        assert (known > 0).sum() >= overlap
        canvas = canvas.painted(truth)
    seen, known = canvas.view(8)
    assert known.all()
    assert torch.equal(seen, truth)


def test_the_camera_chooses_fractions_and_carries_them():
    camera = Camera(3, size=16, condition=4, reach=3)
    right = torch.full((1, 7), -50.0)
    right[0, 4:6] = torch.tensor([0.0, torch.log(torch.tensor(3.0)).item()])  # 1 with .25, 2 with .75
    down = torch.nn.functional.one_hot(torch.tensor([1]), 7) * 50.0
    carried, walked = torch.zeros(1, 2), torch.zeros(1, 2)
    for _ in range(8):
        whole, carried = camera.choose((down, right), carried)
        walked += whole
    torch.testing.assert_close(walked, torch.tensor([[-16.0, 14.0]]))
    expected = -torch.tensor(0.75).log().item()
    assert camera.loss((down, right), torch.tensor([[-2, 2]])).item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_the_network_predicts_the_change_and_sees_noise_only_where_it_diffuses():
    for diffuse in ("unseen", "all"):
        world = canvas_world(diffuse=diffuse)
        view = world.reset(torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)).view
        shift, action = torch.tensor([[1, 2], [0, -3]]), torch.tensor([3, 0])
        look = world.denoiser.look(view, view.canvas.moved(shift, 16), shift, action)
        x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 2.0])
        noisy = torch.ones(2, 1, 16, 16, dtype=torch.bool)
        if diffuse == "unseen":
            noisy = view.canvas.moved(shift, 16).view(16)[1] == 0
        for i in range(2):
            spread, base = (sigma[i] ** 2 + 0.25) ** 0.5, look.base[i]
            told = world.denoiser.mix(world.denoiser.noise_in(sigma[i].log()[None] / 4) + look.condition[i : i + 1])
            change = (x[i] - base) * noisy[i]
            out = world.denoiser.network(torch.cat([change / spread, look.seen[i]])[None], told)[0]
            expected = base + torch.where(noisy[i], 0.5, 0.15) * out
            torch.testing.assert_close(world.denoiser.denoise(x, sigma, look)[i], expected)


@torch.no_grad()
def test_a_new_network_shows_the_scenery_where_the_camera_is_and_forgets_none_of_it():
    """An untrained change is none, so all that is shown comes from the canvas: the camera goes away and comes back."""
    world = CanvasWorld(denoiser(shaken=False)).eval()
    picture = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    state = world.reset(picture)
    out = world.denoiser.camera.out  # type: ignore[union-attr]
    for way, expected in ((4, -4), (-4, 0)):
        torch.nn.init.zeros_(out.weight)
        bias = torch.full((18,), -50.0)
        bias[[4, 9 + 4 + way]] = 50.0
        out.bias.copy_(bias)
        state, outcome = world.step(state, 1, torch.Generator().manual_seed(0), Sampling(temperature=0.0))
        if expected:
            assert torch.equal(outcome.frame[..., :12], picture[..., 4:])
    assert torch.equal(outcome.frame, picture)


def test_what_a_sprite_covered_comes_back_exactly():
    """A sprite passes over scenery and leaves a faint trace: the scenery comes back; what is really new stays."""
    picture = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    scenery = Scenery(Canvas.blank(1, 3, 8, 16, torch.device("cpu")).painted(picture))
    still, shown = torch.zeros(1, 2, dtype=torch.long), picture
    sprite, trace, new = picture.clone(), picture.clone(), picture.clone()
    sprite[..., 2:4, 2:4] ^= 128
    trace[..., 2:4, 2:4] = (trace[..., 2:4, 2:4].int() + 30).clamp(max=255).to(torch.uint8)
    new[..., 5, 5] ^= 128
    for frame, expected in ((sprite, sprite), (sprite, sprite), (trace, picture), (new, new), (new, new)):
        scenery, shown = scenery.restored(frame, shown, still, 40.0)
        assert torch.equal(shown, expected)
    _, untouched = scenery.restored(trace, shown, still, 0.0)
    assert torch.equal(untouched, trace)


@torch.no_grad()
def test_more_steps_change_only_what_comes_into_view():
    """Where all was seen before, one call of the network is all; else its first prediction stands wherever it was seen."""
    for reach, expected in ((0, 1), (4, 3)):
        world, calls = canvas_world(reach=reach), []
        world.denoiser.network.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        start = world.reset(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)[None])
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        one, many = (world.step(start, 1, g, Sampling(n)) for g, n in zip(generators, (1, 3), strict=True))
        shift = many[0].view.shifts[:, -1]
        known = (start.view.canvas.moved(shift, 16).view(16)[1] > 0).expand(-1, 3, -1, -1)
        assert len(calls) == 1 + expected
        assert torch.equal(one[1].frame[known], many[1].frame[known])
        assert known.all() == (expected == 1)


@torch.no_grad()
def test_what_would_hardly_change_stays_as_it_is():
    prompt = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    shown = []
    for least in (0.0, 300.0):
        world = CanvasWorld(denoiser(reach=0), least_change=least).eval()
        shown.append(world.step(world.reset(prompt), 0, torch.Generator().manual_seed(0))[1].frame)
    assert not torch.equal(shown[0], prompt)
    assert torch.equal(shown[1], prompt)


def test_a_longer_clip_is_predicted_from_predictions():
    model = denoiser(reach=0, context_noise=0.0, forget=0.0)
    clip, seen = torch.rand(1, 5, 3, 16, 16), []
    model.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.loss(clip, torch.randint(4, (1, 4)), torch.Generator().manual_seed(0))
    first, second = (one[:, 3:6] for one in seen)
    given = ((clip * 255).round() / 127.5 - 1)[:, 2:4]
    torch.testing.assert_close(first, given[:, 0])
    assert not torch.allclose(second, given[:, 1], atol=0.05)
    assert not second.requires_grad
    assert ((second + 1) * 127.5 - ((second + 1) * 127.5).round()).abs().max() < 1e-3


def test_it_learns_a_world_that_is_known():
    """A square on a torus moves as the action says, under a camera that stands: a trained step is right nearly always."""
    torch.manual_seed(0)
    small: dict[str, Any] = {"size": 8, "reach": 0, "widths": [32], "patch": 2, "condition": 64, "unroll": 1}
    model = CanvasDenoiser(4, **small, sigma_data=0.5, forget=0.0, context_noise=0.0)
    optimizer, random = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(300):
        loss, _ = model.loss(*square_clips(32, 3, random), random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    world = CanvasWorld(model.eval())
    clips, actions = square_clips(64, 3, random)
    state = world.reset((clips[:, :2] * 255).to(torch.uint8))
    right = {}
    for what, action in (("taken", actions[:, 1]), ("another", (actions[:, 1] + 1) % 4)):
        shown = world.step(state, action, torch.Generator().manual_seed(0))[1].frame
        right[what] = ((shown / 255 - clips[:, 2]).abs().amax((1, 2, 3)) < 0.5).float().mean().item()
    assert right["taken"] > 0.9
    assert right["another"] < 0.1


def test_the_camera_learns_to_follow_its_action():
    """A camera over still scenery that goes where the action says: its cross-entropy falls far below chance, 2 ln 9."""
    torch.manual_seed(0)
    model, random = denoiser(shaken=False, unroll=1), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ways, world = torch.tensor([[-3, 0], [3, 0], [0, -3], [0, 3]]), scenery(60, 0)
    for _ in range(60):
        actions = torch.randint(4, (16, 2), generator=random)
        place = 22 + torch.cat([torch.zeros(16, 1, 2, dtype=torch.long), ways[actions].cumsum(1)], 1)
        clip = torch.stack([torch.stack([world[:, y : y + 16, x : x + 16] for y, x in row]) for row in place.tolist()])
        loss, metrics = model.loss(clip, actions, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["camera"] < 0.5 < 4.39
    assert metrics["copied"] > 10, "most of each frame was on the canvas"


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="multiple of 8"):
        CanvasDenoiser(4, **(TINY | {"size": 20}))
    latent = canvas_world(latent=True).latent_actions
    with pytest.raises(ValueError, match="4 latent actions do not fit"):
        CanvasWorld(denoiser(actions=5), latent)


def test_a_built_world_is_the_same_world():
    world = canvas_world(latent=True)
    twin = build(world.config, ALLOWED)
    assert twin.config == world.config
    assert twin.least_change == 1.0


def test_from_fit_to_a_bundle(coinrun_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[1] / "recipes/coinrun/canvas.yaml"
    model = {"size": 64, "reach": 8, "widths": "[8,16]", "patch": 8, "condition": 16, "unroll": 2}
    options = [f"--model.model.init_args.{key}={value}" for key, value in model.items()]
    data = [f"--data.path={coinrun_file}", "--data.length=4", "--data.batch_size=2", "--data.val_batches=1"]
    trainer = ["--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    assert cli.main(["fit", "-c", str(recipe), *options, *data, *trainer]) == 0
    assert (
        cli.main(["bundle", "runs/coinrun/canvas", "--data", str(coinrun_file), "--out", "worlds/tiny", "--prompts", "2"]) == 0
    )
    world = load_world("worlds/tiny")
    assert world.sampling == Sampling(4, 1.0)
    assert world.action_names[7] == "right"
    state = world.reset(world.prompts)
    state, outcome = world.step(state, 7, torch.Generator().manual_seed(0))
    assert outcome.frame.shape == (2, 3, 64, 64)
