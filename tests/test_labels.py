"""Names of latent actions, from true actions and from moving pictures."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_game import MOVES, write_toy

from dreamloom.datasets.clips import ClipSource
from dreamloom.worldmodels import labels


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "toy.hdf5")


def test_names_follow_what_an_action_makes_likelier() -> None:
    """Three quarters of all frames go right, so the majority would name every action "right"."""
    random = np.random.default_rng(0)
    names = ["right", "left", "right-up", "none"]
    chance = {0: [0.97, 0.01, 0.01, 0.01], 1: [0.45, 0.45, 0.05, 0.05], 2: [0.3, 0, 0.7, 0], 3: [0.4, 0.05, 0.05, 0.5]}
    inferred = random.choice(5, 6000, p=[0.4, 0.2, 0.2, 0.1, 0.1]) % 4
    true = np.array([random.choice(4, p=chance[k]) for k in inferred])
    shown = labels.motions_of_actions(names, "coinrun")[true]
    found = labels.name_actions(inferred, shown, np.zeros((6000, 2)), 6, platformer=True)
    assert [label.name for label in found] == ["right", "left", "jump right", "stand", "action 4", "action 5"]
    assert found[1].confidence == pytest.approx(0.45, abs=0.05)
    assert len({label.name for label in found}) == 6


def test_equal_names_are_numbered_by_confidence() -> None:
    shown = np.zeros((400, 6), bool)
    shown[:100, 0], shown[100:180, 0], shown[200:, 1] = True, True, True
    found = labels.name_actions(np.repeat([1, 0, 2, 2], 100), shown, np.zeros((400, 2)), 3)
    assert [label.name for label in found] == ["right 2", "right", "left"]


@pytest.mark.parametrize(
    ("moved", "name"),
    [
        ((-5, 1), "fall right"),
        ((6, 2), "jump right"),
        ((0, 1), "slow right"),
        ((0, 9), "fast right"),
        ((0, 3), "right 2"),
        ((0, -4), "right 2"),  # what is asked for is one thing, what happens another
    ],
)
def test_equal_names_are_told_apart_by_what_the_picture_does(moved: tuple[int, int], name: str) -> None:
    shown = np.zeros((300, 6), bool)
    shown[:100, 0], shown[100:190, 0], shown[200:, 1] = True, True, True
    pixels = np.repeat([(0.0, 4.0), moved, (0.0, -4.0)], 100, axis=0)
    found = labels.name_actions(np.repeat([0, 1, 2], 100), shown, pixels, 3, platformer=True)
    assert [label.name for label in found] == ["right", name, "left"]


def test_a_picture_that_never_moves_names_nothing() -> None:
    moved = np.zeros((200, 2))
    found = labels.name_actions(np.arange(200) % 2, labels.motions_of_moves(moved), moved, 2)
    assert [label.name for label in found] == ["action 0", "action 1"]


@settings(max_examples=20)
@given(up=st.integers(-10, 10), right=st.integers(-10, 10), scale=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_the_camera_is_seen_to_move_though_the_player_stays_in_the_middle(up: int, right: int, scale: int, seed: int) -> None:
    scenery = np.random.default_rng(seed).integers(0, 256, (3, 22, 22), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    views = [scenery[:, y : y + 64, x : x + 64].copy() for y, x in ((12, 12), (12 - up, 12 + right))]
    for view in views:
        view[:, 26:38, 26:38] = 255
    frames = torch.from_numpy(np.stack(views).repeat(scale, -2).repeat(scale, -1))[None]
    assert labels.camera_moves(frames).tolist() == [[up * scale, right * scale]]


def test_procgens_names_are_motions() -> None:
    table = labels.motions_of_actions(["left-down", "none", "right-up", "D", "A"], "coinrun")
    words = [[m for m, on in zip(labels.MOTIONS, row, strict=True) if on] for row in table]
    assert words == [["left", "down"], ["stand"], ["right", "up"], ["stand"], ["stand"]]
    armed = labels.motions_of_actions(["D", "A"], "starpilot")
    assert [labels.MOTIONS[i] for i in np.flatnonzero(armed[0])] == ["fire"]
    assert not armed[1].any()


def test_motion_is_read_from_unlabelled_video(toy_file: Path) -> None:
    clip = ClipSource(toy_file, length=20).sample(0, 0, 12)
    shown = labels.motions_of_moves(labels.camera_moves(clip.frames).numpy())
    truth = labels.motions_of_actions(["stand", "right", "left"])[clip.actions[:, :-1].flatten().numpy()]
    assert (shown == truth).all(1).mean() > 0.95


@pytest.mark.parametrize("labelled", [True, False])
def test_label_actions_finds_the_names_again(labelled: bool, toy_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "toy.hdf5"
    path.write_bytes(toy_file.read_bytes())
    if not labelled:
        with h5py.File(path, "a") as file:
            del file["actions"], file.attrs["action_names"]

    def infer(frames: Tensor) -> Tensor:  # a latent action model that tells the toy's actions apart, under its own numbers
        x, y = frames[:, :-1], frames[:, 1:]
        fits = [(torch.roll(x, tuple(move.tolist()), (-2, -1)) - y).abs().flatten(2).sum(-1) for move in MOVES]
        return torch.tensor([2, 0, 1])[torch.stack(fits).argmin(0)]

    world = SimpleNamespace(
        latent_actions=SimpleNamespace(infer=infer),
        fps=15.0,
        device=torch.device("cpu"),
        name="toy",
        action_space=gymnasium.spaces.Discrete(3),
    )
    found = labels.label_actions(world, path, clips=16)
    assert [label.name for label in found] == ["right", "left", "stand"]
    assert min(label.confidence for label in found) > 0.9
