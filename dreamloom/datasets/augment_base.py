"""What all augmentations of frames share (datasets/augment.py), and what they do to the names of actions."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.nn.build import Buildable

Drawn = dict[str, Tensor]  # what is random of an augmentation, one row a picture
Names = Sequence[str] | Literal["procgen"] | None

_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, 1), "down": (0, -1), "none": (0, 0)}
_KEYS = set("DAWSQE")  # Procgen's special actions (fire, throw, ...), which have no direction on the picture


class Augmentation(nn.Module, Buildable):
    """Changes pictures at random, each in its own way, and all frames of a stack in the same way.

    What is random is drawn beforehand, so that s and s' can share it, and a test can fix it.
    """

    def __init__(self) -> None:
        super().__init__()

    def draw(self, batch: int, generator: torch.Generator, *, device: torch.device | str, size: tuple[int, int]) -> Drawn:
        """Draws what is random, for so many pictures.

        Args:
            batch: number of pictures.
            generator: the only source of randomness; on any device.
            device: where the pictures are.
            size: their height and width.
        """
        return {}

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        """Frames in [0, 1] with c = 3 times the stack, changed as drawn; they stay in [0, 1]."""
        raise NotImplementedError

    def actions(self, actions: Tensor, drawn: Drawn) -> Tensor:
        """What the actions are called on the changed pictures: (b,) or (b, ...) int64, or (b, a) float.

        Raises:
            ValueError: an action would change its meaning, and it is not known what to.
        """
        return actions


class Identity(Augmentation):
    """Leaves the pictures as they are."""

    def forward(self, frames: Float[Tensor, "b c h w"], drawn: Drawn) -> Float[Tensor, "b c h w"]:
        return frames


class Moved(Augmentation):
    """An augmentation that turns or mirrors the picture, and with it the directions that actions have.

    Args:
        action_names: of the discrete actions, as files hold them (`action_names`); "procgen" for Procgen's 15.
    """

    def __init__(self, action_names: Names = None):
        super().__init__()
        self.action_names: list[str] | None = None
        if action_names is not None:
            self.name_actions(action_names)

    def name_actions(self, action_names: Names) -> None:
        """Tells what the actions are called, where that was not known before."""
        if action_names == "procgen":
            from dreamloom.datasets.procgen import ACTION_NAMES

            action_names = ACTION_NAMES
        self.action_names = None if action_names is None else list(action_names)

    def _renamed(self, actions: Tensor, which: Tensor, moves: Sequence[Callable[[int, int], tuple[int, int]]]) -> Tensor:
        """Discrete actions under the move that each picture made, by their names.

        Args:
            actions: (b,) or (b, ...) int64.
            which: (b,) int64, number of the picture's move.
            moves: what each move does to a direction (x to the right, y upwards).
        """
        name = type(self).__name__
        if actions.is_floating_point():
            raise ValueError(
                f"{name} would change what continuous actions mean, and how is not known; choose another augmentation"
            )
        if self.action_names is None:
            raise ValueError(
                f"{name} changes what actions mean; give it action_names (a file's attribute `action_names`, or 'procgen')"
            )
        table = torch.tensor([renaming(self.action_names, move, name) for move in moves], device=actions.device)
        return table[which.view(-1, *[1] * (actions.ndim - 1)), actions]


def renaming(names: Sequence[str], move: Callable[[int, int], tuple[int, int]], what: str) -> list[int]:
    """For each action the number of the one that it becomes under a move of the picture.

    Args:
        names: of the actions: directions such as "left" or "right-up", "none", or Procgen's letters, which stay.
        move: what becomes of a direction (x, y).
        what: who asks, for messages.

    Raises:
        ValueError: a name is no direction, or there is no action for what becomes of it.
    """
    directions: dict[int, tuple[int, int]] = {}
    for number, name in enumerate(names):
        direction = _direction(name)
        if direction is not None:
            directions[number] = direction
        elif name not in _KEYS:
            raise ValueError(f"{what}: it is not known what becomes of action {name!r}; known are {', '.join(_STEPS)}")
    numbers = {direction: number for number, direction in directions.items()}
    found = list(range(len(names)))
    for number, direction in directions.items():
        moved = move(*direction)
        if moved not in numbers:
            raise ValueError(f"{what}: action {names[number]!r} becomes one that there is not (directions {sorted(numbers)})")
        found[number] = numbers[moved]
    return found


def _direction(name: str) -> tuple[int, int] | None:
    words = re.split(r"[-_ ]", name.lower())
    if not set(words) <= set(_STEPS):
        return None
    return sum(_STEPS[word][0] for word in words), sum(_STEPS[word][1] for word in words)


def uniform(shape: Sequence[int], low: float, high: float, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Uniform numbers, drawn where the generator is."""
    return (low + (high - low) * torch.rand(*shape, generator=generator, device=generator.device)).to(device)


def whole(shape: Sequence[int], low: int, high: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Whole numbers from low to high, high excluded, drawn where the generator is."""
    return torch.randint(low, high, tuple(shape), generator=generator, device=generator.device).to(device)


def as_pictures(frames: Tensor) -> tuple[Tensor, int]:
    """The frames of all stacks as pictures (b k 3 h w), and k."""
    if frames.shape[1] % 3:
        raise ValueError(f"frames have {frames.shape[1]} channels; augmentations need RGB, 3 for each frame of a stack")
    pictures = rearrange(frames, "b (k rgb) h w -> b k rgb h w", rgb=3)
    return pictures, pictures.shape[1]
