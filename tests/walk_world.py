"""A hand-written world: a square walks along a line to its right end, where a reward is paid and the walk ends."""

from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from dreamloom.worldmodels.maskgit import draw
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Generators, Outcome, Sampling

SIDE = 8


@dataclass(frozen=True)
class WalkState:
    """`frame` (b, c, h, w) uint8, and `place` (b,) of the square, 0 to 7."""

    frame: Tensor
    place: Tensor


class WalkWorld:
    """A step fails now and then. Actions: left or right, or by how much of a step, from -1 to 1.

    Args:
        continuous: whether actions are amounts.
        slips: chance of a step that fails.
        rewards: whether the world predicts rewards and endings.
    """

    frame_shape = (3, SIDE, SIDE)
    fps, game, device = 15.0, None, torch.device("cpu")

    def __init__(self, *, continuous: bool = False, slips: float = 0.2, rewards: bool = True):
        self.continuous, self.slips, self.rewards, self.name = continuous, slips, rewards, "walk"
        self.action_names = [] if continuous else ["left", "right"]
        box, discrete = gymnasium.spaces.Box(-1.0, 1.0, (1,)), gymnasium.spaces.Discrete(2)
        self.action_space = box if continuous else discrete
        self.prompts = drawn(torch.arange(4))[:, None]

    def reset(self, prompt: Any) -> WalkState:
        frame = to_prompt(prompt, self.frame_shape)[:, -1]
        return WalkState(frame, frame[:, 0].float().sum(1).argmax(-1))

    def step(
        self, state: WalkState, action: Any, generator: Generators = None, sampling: Sampling | None = None
    ) -> tuple[WalkState, Outcome]:
        move = self._moves(action, len(state.place))
        fails = draw((len(state.place),), generator, self.device) < self.slips
        place = (state.place + move * ~fails).clamp(0, SIDE - 1)
        there, frame = place == SIDE - 1, drawn(place)
        return WalkState(frame, place), Outcome(frame, there.float(), there) if self.rewards else Outcome(frame)

    def _moves(self, action: Any, b: int) -> Tensor:
        actions = torch.as_tensor(action)
        actions = actions.expand(b, *actions.shape) if actions.ndim == self.continuous else actions
        if len(actions) != b or not all(self.action_space.contains(one.numpy()) for one in actions):
            raise ValueError(f"need {b} actions of {self.action_space}, got {actions.tolist()[:8]}")
        return actions[:, 0].round().long() if self.continuous else 2 * actions - 1


def drawn(place: Tensor) -> Tensor:
    """Frames (b, 3, 8, 8) of squares at places (b,)."""
    column = torch.nn.functional.one_hot(place, SIDE).to(torch.uint8) * 255
    return column[:, None, None].expand(-1, 3, SIDE, SIDE).contiguous()
