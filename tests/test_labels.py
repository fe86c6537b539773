"""Names of latent actions, from true actions and from moving pictures."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import h5py
import numpy as np
import pytest
import torch
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
    found = labels.name_actions(inferred, shown, 6, upward="jump")
    assert [label.name for label in found] == ["right", "left", "jump right", "stand", "action 4", "action 5"]
    assert found[1].confidence == pytest.approx(0.45, abs=0.05)
    assert len({label.name for label in found}) == 6


def test_equal_names_are_numbered_by_confidence() -> None:
    shown = np.zeros((400, 6), bool)
    shown[:100, 0], shown[100:180, 0], shown[200:, 1] = True, True, True
    found = labels.name_actions(np.repeat([1, 0, 2, 2], 100), shown, 3)
    assert [label.name for label in found] == ["right 2", "right", "left"]


def test_procgens_names_are_motions() -> None:
    table = labels.motions_of_actions(["left-down", "none", "right-up", "D", "A"], "coinrun")
    words = [[m for m, on in zip(labels.MOTIONS, row, strict=True) if on] for row in table]
    assert words == [["left", "down"], ["stand"], ["right", "up"], ["stand"], ["stand"]]
    armed = labels.motions_of_actions(["D", "A"], "starpilot")
    assert [labels.MOTIONS[i] for i in np.flatnonzero(armed[0])] == ["fire"]
    assert not armed[1].any()


def test_motion_is_read_from_unlabelled_video(toy_file: Path) -> None:
    clip = ClipSource(toy_file, length=20).sample(0, 0, 12)
    shown = labels.motions_of_frames(clip.frames)
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
