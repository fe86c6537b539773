"""Augmentations: drawn by seed, alike for all frames of a stack, in range, and true to what actions mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from dreamloom import cli
from dreamloom.datasets.augment import (
    Augment,
    ColourCutout,
    ColourJitter,
    Crop,
    Cutout,
    Flip,
    Greyscale,
    Identity,
    Overlay,
    RandomConvolution,
    Rotation,
    Shift,
)
from dreamloom.datasets.bandit import UCB
from dreamloom.datasets.contact_sheet import every_augmentation
from dreamloom.datasets.procgen import ACTION_NAMES

EVERY = [
    Identity(),
    Shift(),
    Crop(),
    Flip(action_names="procgen"),
    Rotation(action_names="procgen"),
    Rotation(degrees=15.0),
    Cutout(),
    ColourCutout(),
    Greyscale(),
    ColourJitter(),
    RandomConvolution(),
    Overlay(),
]
each = pytest.mark.parametrize("one", EVERY, ids=lambda one: type(one).__name__)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(b=6, k=1, side=16, seed=0):
    return torch.rand(b, 3 * k, side, side, generator=seeded(seed))


def draw(one, x, seed=0):
    return one.draw(len(x), seeded(seed), device=x.device, size=tuple(x.shape[2:]))


@each
def test_it_is_seeded_and_stays_in_range(one):
    x = frames()
    kept = x.clone()
    first, again, other = (one(x, draw(one, x, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert torch.equal(x, kept)
    assert first.shape == x.shape
    assert first.min() >= 0
    assert first.max() <= 1
    if not isinstance(one, Identity | Greyscale):
        assert not torch.equal(first, other)
        assert not torch.equal(first, x)


@each
def test_all_frames_of_a_stack_are_changed_alike_and_each_picture_in_its_own_way(one):
    x = frames(b=6)
    stacked = one(x.repeat(1, 3, 1, 1), drawn := draw(one, x))
    torch.testing.assert_close(stacked, one(x, drawn).repeat(1, 3, 1, 1))
    alike = one(frames(b=1).expand(6, -1, -1, -1), drawn)
    if not isinstance(one, Identity | Greyscale):
        assert len({tuple(picture.flatten().tolist()) for picture in alike}) > 1


@each
def test_a_picture_does_not_depend_on_the_others_of_its_batch(one):
    x = frames(b=6)
    whole, drawn = one(x, draw(one, x)), draw(one, x)
    for row in range(6):
        alone = one(x[row : row + 1], {name: value[row : row + 1] for name, value in drawn.items()})
        torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)


@given(st.integers(-4, 4), st.integers(-4, 4))
def test_a_shift_repeats_the_border(dy, dx):
    x = frames(b=1, side=9)
    shifted = Shift()(x, {"shift": torch.tensor([[dy, dx]])})
    for row in range(9):
        for column in range(9):
            source = x[0, :, min(max(row + dy, 0), 8), min(max(column + dx, 0), 8)]
            assert torch.equal(shifted[0, :, row, column], source)


def test_shifts_go_everywhere_equally():
    drawn = Shift(pad=2).draw(5000, seeded(), device="cpu", size=(8, 8))["shift"]
    counts = torch.bincount((drawn[:, 0] + 2) * 5 + drawn[:, 1] + 2, minlength=25)
    assert counts.min() > 140
    assert counts.max() < 260


def dot(x, y, side=9):
    """A picture that is bright where something is moved to from the middle (y upwards)."""
    picture = torch.zeros(1, 3, side, side)
    picture[0, :, side // 2 - y, side // 2 + x] = 1
    return picture


STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1), "right-up": (1, 1), "left-down": (-1, -1)}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flipped", [False, True])
def test_an_action_goes_where_the_picture_goes(name, turns, flipped):
    one, drawn = (
        (Flip(action_names="procgen"), {"flip": torch.tensor([flipped])})
        if turns == 0
        else (Rotation(action_names=ACTION_NAMES), {"turns": torch.tensor([turns])})
    )
    action = one.actions(torch.tensor([ACTION_NAMES.index(name)]), drawn)
    x, y = {**STEPS, "right-down": (1, -1), "left-up": (-1, 1)}[ACTION_NAMES[int(action)]]
    torch.testing.assert_close(one(dot(*STEPS[name]), drawn), dot(x, y))


def test_other_actions_stay_and_a_renaming_is_undone_by_another():
    every = torch.arange(15)
    flip, both = Flip(action_names="procgen"), {"flip": torch.ones(15, dtype=torch.bool)}
    mirrored = flip.actions(every, both)
    assert mirrored.tolist() == [6, 7, 8, 3, 4, 5, 0, 1, 2, 9, 10, 11, 12, 13, 14]
    assert torch.equal(flip.actions(mirrored, both), every)
    rotation, turned = Rotation(action_names="procgen"), every
    for _ in range(4):
        turned = rotation.actions(turned, {"turns": torch.ones(15, dtype=torch.long)})
    assert torch.equal(turned, every)
    table = flip.actions(every.expand(2, 15), {"flip": torch.tensor([False, True])})  # for logits: (b, n)
    assert torch.equal(table, torch.stack([every, mirrored]))


def test_an_action_whose_meaning_is_lost_is_refused():
    x, actions = frames(b=4), torch.arange(4)
    for one in (Flip(), Rotation()):
        with pytest.raises(ValueError, match=f"{type(one).__name__} changes what actions mean; give it action_names"):
            one.actions(actions, draw(one, x))
        with pytest.raises(ValueError, match="continuous actions"):
            one.actions(torch.rand(4, 2), draw(one, x))
    for names, words in {("left", "none"): "becomes one that there is not", ("turn-left", "turn-right"): "'turn-left'"}.items():
        with pytest.raises(ValueError, match=words):
            Flip(action_names=names).actions(torch.zeros(4, dtype=torch.long), draw(Flip(), x))
    small = Rotation(degrees=15.0)
    assert torch.equal(small.actions(actions, draw(small, x)), actions)
    with pytest.raises(ValueError, match=r"22\.5"):
        Rotation(degrees=45.0)
    with pytest.raises(ValueError, match="square"):
        Rotation().draw(2, seeded(), device="cpu", size=(4, 5))


def test_small_angles_are_torchvisions():
    x = frames(b=1, side=32)
    x = functional.gaussian_blur(x, 9)
    found = Rotation(degrees=20.0)(x, {"angle": torch.tensor([17.0])})
    expected = functional.rotate(x, 17.0, interpolation=functional.InterpolationMode.BILINEAR)
    torch.testing.assert_close(found[..., 10:22, 10:22], expected[..., 10:22, 10:22], atol=1e-3, rtol=0)


def neutral(**changes):
    drawn = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **changes}
    return {name: torch.tensor([value]) for name, value in drawn.items()}


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_is_torchvisions(name, factor):
    x = frames(b=1)
    expected = getattr(functional, f"adjust_{name}")(x, factor)
    torch.testing.assert_close(ColourJitter()(x, neutral(**{name: factor})), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25, 0.5])
def test_hue_is_torchvisions(turn):
    x = frames(b=1)
    x[..., :4] = 0.3  # grey has no hue
    torch.testing.assert_close(ColourJitter()(x, neutral(hue=turn)), functional.adjust_hue(x, turn), atol=1e-4, rtol=0)


def test_boxes_have_the_asked_sides_and_lie_inside():
    x = torch.ones(200, 3, 64, 64)
    for one in (Cutout(0.2, 0.4), ColourCutout(0.2, 0.4)):
        hidden = (one(x, draw(one, x)) < 1).any(1)
        for axis in (1, 2):
            sides = hidden.any(axis).sum(1)
            assert sides.min() >= 12
            assert sides.max() <= 26
        assert hidden.any(0)[4:-4, 4:-4].all()  # every place is hidden at some time
    colour = ColourCutout()(torch.ones(2, 6, 64, 64), {**draw(Cutout(), x[:2]), "colour": torch.tensor([[0.1, 0.2, 0.3]] * 2)})
    assert {round(value, 1) for value in colour[0, 1].flatten().tolist()} == {0.2, 1.0}


def test_a_random_convolution_is_one_kernel_a_picture():
    x = frames(b=3, k=2, side=8)
    one = RandomConvolution()
    drawn = draw(one, x)
    found = one(x, drawn)
    for row in range(3):
        padded = torch.nn.functional.pad(x[row].reshape(2, 3, 8, 8), (1, 1, 1, 1), mode="replicate")
        expected = torch.sigmoid(torch.nn.functional.conv2d(padded, drawn["kernel"][row]))
        torch.testing.assert_close(found[row].reshape(2, 3, 8, 8), expected)


def test_pictures_of_a_folder_are_laid_over(tmp_path):
    Image.new("RGB", (5, 7), (255, 0, 0)).save(tmp_path / "red.png")
    one, x = Overlay(strength=1.0, path=str(tmp_path)), torch.zeros(4, 6, 8, 8)
    drawn = draw(one, x)
    found = one(x, drawn)
    torch.testing.assert_close(found[:, 3], drawn["share"].view(-1, 1, 1).expand(4, 8, 8))
    assert not found[:, [1, 2, 4, 5]].any()
    with pytest.raises(ValueError, match="no picture is in it"):
        Overlay(path=str(tmp_path / "none"))


def test_a_pair_shares_a_draw_or_has_two():
    x, actions = frames(b=8), torch.arange(8)
    shared = Augment([Shift(), ColourJitter()], combine="all")
    s, s_next, same = shared.pair(x, x, actions, seeded())
    assert torch.equal(s, s_next)
    assert torch.equal(same, actions)
    apart = Augment([Shift(), ColourJitter()], shared=False, combine="all")
    s, s_next, _ = apart.pair(x, x, actions, seeded())
    assert not torch.equal(s, s_next)
    jittered = [*shared.augmentations][1]
    first = Shift().draw(8, g := seeded(), device="cpu", size=(16, 16))
    expected = jittered(Shift()(x, first), jittered.draw(8, g, device="cpu", size=(16, 16)))
    assert torch.equal(shared.pair(x, x, actions, seeded())[0], expected)


def test_each_picture_has_one_augmentation_and_all_have_equal_shares():
    x, actions = torch.ones(12, 3, 16, 16), torch.full((12,), 7)
    augment = Augment([Identity(), Cutout(), Flip(p=1.0, action_names="procgen")])
    s, s_next, renamed = augment.pair(x, x, actions, seeded())
    cut = (s < 1).flatten(1).any(1)
    assert torch.equal(s, s_next)
    assert cut.sum() == (renamed == 1).sum() == 4
    assert not (cut & (renamed == 1)).any()
    seen = {tuple(augment.pair(x, x, actions, seeded(seed))[2].tolist()) for seed in range(5)}
    assert len(seen) == 5
    single = {bool((augment.pair(x[:1], x[:1], actions[:1], seeded(seed))[0] < 1).any()) for seed in range(20)}
    assert single == {False, True}
    s, _, renamed = augment.pair(x, x, actions, seeded(), member=2)
    assert (renamed == 1).all()


def test_names_come_from_the_file_unless_they_were_given():
    augment = Augment([Flip(p=1.0), Rotation(action_names=["up", "left", "down", "right"])])
    augment.name_actions(["left", "right"])
    actions = torch.tensor([0, 1])
    assert augment.pair(frames(2), frames(2), actions, seeded(), member=0)[2].tolist() == [1, 0]
    assert augment.augmentations[1].action_names == ["up", "left", "down", "right"]
    with pytest.raises(ValueError, match="no augmentation"):
        Augment([])
    with pytest.raises(ValueError, match="4 channels"):
        Greyscale()(torch.zeros(2, 4, 8, 8), draw(Greyscale(), torch.zeros(2, 3, 8, 8)))


def test_the_bandit_is_the_papers():
    bandit = UCB(3, c=0.5, window=2)
    returns: list[list[float]] = [[], [], []]
    random, chosen = np.random.default_rng(0), []
    for t in range(60):
        index = bandit.choose()
        if t < 3:
            assert index == t
        else:  # equation 8, restated
            bounds = [np.mean(r[-2:]) + 0.5 * math.sqrt(math.log(t) / len(r)) for r in returns]
            assert index == int(np.argmax(bounds))
        value = float(random.normal([0.0, 1.0, 0.2][index], 0.1))
        returns[index].append(value)
        bandit.reward(index, value)
        chosen.append(index)
    assert chosen[-20:].count(1) > 14
    again = UCB(3, c=0.5, window=2)
    again.load_state_dict(bandit.state_dict())
    assert again.choose() == bandit.choose()
    with pytest.raises(ValueError, match="3 arms, this one has 2"):
        UCB(2).load_state_dict(bandit.state_dict())


@pytest.mark.gpu
@each
def test_it_is_the_same_on_a_gpu(one):
    x = frames()
    drawn = one.draw(len(x), seeded(), device="cuda", size=(16, 16))
    torch.testing.assert_close(one(x.cuda(), drawn).cpu(), one(x, draw(one, x)), atol=1e-4, rtol=0)
    generator = torch.Generator("cuda").manual_seed(0)
    s, *_ = Augment([one, Identity()]).pair(x.cuda(), x.cuda(), torch.arange(6, device="cuda"), generator)
    assert s.is_cuda


def test_a_sheet_shows_each_augmentation(coinrun_file, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert cli.main(["data", str(coinrun_file), "--augment", "--out", str(out)]) == 0
    assert f"augmentations\n  {out}" in capsys.readouterr().out
    assert {type(one) for one in EVERY} <= {type(one) for one in every_augmentation()}
    with Image.open(out) as sheet:
        pixels = np.asarray(sheet)
    rows = len(every_augmentation())
    assert pixels.shape[0] == rows * (128 + 16 + 2)
    lines = [pixels[i * 146 + 16 : i * 146 + 144] for i in range(rows)]
    assert len({line.tobytes() for line in lines}) == rows
