"""A game whose every frame is known: an action rolls the picture. Its recording, and worlds that play it well and badly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import torch
from torch import Tensor

from dreamloom.worldmodels.world import Outcome

# Pixels that the picture moves (down, right) under each action of the toy game.
MOVES = torch.tensor([[0, 0], [0, -3], [0, 3]])


def moved(frames: Tensor, actions: Tensor) -> Tensor:
    """The toy game: an action rolls the whole picture."""
    return torch.stack([torch.roll(f, tuple(MOVES[a].tolist()), (-2, -1)) for f, a in zip(frames, actions, strict=True)])


@dataclass(frozen=True)
class ToyState:
    frame: Tensor


class ToyWorld:
    """`perfect` plays the toy game, `frozen` repeats the last frame, `deaf` plays it with an action of its own choice."""

    action_space = gymnasium.spaces.Discrete(3)
    frame_shape = (3, 32, 32)
    fps, game, device = 15.0, None, torch.device("cpu")
    prompts = torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8)

    def __init__(self, kind: str):
        self.name = self.kind = kind
        self.action_names = ["stand", "right", "left"]

    def reset(self, prompt: Tensor) -> ToyState:
        return ToyState(prompt[:, -1])

    def step(self, state: ToyState, action: Any, generator: Any = None, sampling: Any = None) -> tuple[ToyState, Outcome]:
        actions = torch.as_tensor(action).expand(len(state.frame))
        if self.kind == "deaf":
            each = generator if isinstance(generator, list) else [generator] * len(actions)
            actions = torch.stack([torch.randint(3, (), generator=g) for g in each])
        frame = state.frame if self.kind == "frozen" else moved(state.frame, actions)
        return ToyState(frame), Outcome(frame)


def write_toy(path: Path) -> Path:
    """Twelve levels of the toy game, one episode of 80 frames each; a level is a texture."""
    random = np.random.default_rng(0)
    actions = torch.from_numpy(random.integers(3, size=(12, 80)))
    coarse = torch.from_numpy(random.integers(256, size=(12, 3, 8, 8), dtype=np.uint8))
    clips = [coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)]
    for t in range(79):
        clips.append(moved(clips[-1], actions[:, t]))
    ends = np.zeros((12, 80), bool)
    ends[:, -1] = True
    with h5py.File(path, "w") as file:
        file["observations"] = torch.stack(clips, 1).flatten(0, 1).permute(0, 2, 3, 1).numpy()
        file["actions"] = actions.flatten().numpy()
        file["terminals"], file["timeouts"] = ends.flatten(), np.zeros(960, bool)
        file["infos/level_seed"] = np.repeat(np.arange(12, dtype=np.int32), 80)
        file.attrs.update(format="dreamloom", format_version=1, fps=15.0)
        file.attrs["action_names"] = json.dumps(["stand", "right", "left"])
    return path
