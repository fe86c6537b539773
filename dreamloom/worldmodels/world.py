"""The World protocol: what play, imagination, planning and bulk generation know of a world model, and no more."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import gymnasium
import torch
from jaxtyping import Bool, Float, Int, UInt8

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Outcome:
    """What one step of a batch of worlds shows.

    Attributes:
        frame: (b, c, h, w) uint8, the new frame.
        reward: (b,) float32, where the world predicts rewards.
        terminal: (b,) bool, where the world predicts endings.
        uncertainty: (b,) float32, where the world tells how unsure it was of the frame, on a scale of its own: a Genie the mean
            entropy of its tokens in nats.
    """

    frame: UInt8[torch.Tensor, "b c h w"]
    reward: Float[torch.Tensor, "b"] | None = None
    terminal: Bool[torch.Tensor, "b"] | None = None
    uncertainty: Float[torch.Tensor, "b"] | None = None


@dataclass(frozen=True)
class Sampling:
    """How a new frame is drawn. None means the world's own default.

    Attributes:
        steps: refinement steps a frame (MaskGIT or diffusion steps), at least 1.
        temperature: 0 is greedy, 1 the model's own distribution.
    """

    steps: int | None = None
    temperature: float | None = None


class State(Protocol):
    """A plain dataclass of tensors whose first axis is the batch of worlds; `frame` is what to show now."""

    frame: UInt8[torch.Tensor, "b c h w"]


@runtime_checkable
class World(Protocol):
    """A playable model: deterministic given state, action and generator; batched over worlds.

    Attributes:
        name: short name, e.g. "coinrun".
        action_space: what `step` accepts.
        action_names: one label an action, e.g. "right"; "action 3" where nothing is known.
        frame_shape: (c, h, w).
        fps: frames a second of the data it was trained on.
        prompts: (p, t, c, h, w) uint8, frames to start from.
        game: Procgen game that the world imitates, or None.
        device: where its tensors live.
    """

    name: str
    action_space: gymnasium.Space
    action_names: list[str]
    frame_shape: tuple[int, int, int]
    fps: float
    prompts: UInt8[torch.Tensor, "p t c h w"]
    game: str | None
    device: torch.device

    def reset(self, prompt: Any) -> Any:
        """Starts worlds from frames.

        Args:
            prompt: uint8 (b, t, c, h, w), (t, c, h, w), (c, h, w) or (h, w, c) of any size; resized to `frame_shape`.

        Returns:
            A state of b worlds (b = 1 where the prompt has no batch axis).
        """

    def step(
        self, state: Any, action: int | Int[torch.Tensor, "b"], generator: Generators = None, sampling: Sampling = ...
    ) -> tuple[Any, Outcome]:
        """Advances every world by one frame.

        Args:
            state: as `reset` or `step` returned it; it is not changed.
            action: one action for all, or one for each world.
            generator: randomness: one for all, or one for each world (then a batch equals its worlds one by one).
            sampling: steps and temperature.

        Returns:
            The next state, and what it shows.
        """


S = TypeVar("S")


def _tensors(state: Any) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def stack_states(states: Sequence[S]) -> S:
    """Joins states along the batch axis; they must come from the same world."""
    parts = [_tensors(state) for state in states]
    joined = {
        name: stack_states([p[name] for p in parts]) if is_dataclass(value) else torch.cat([p[name] for p in parts])
        for name, value in parts[0].items()
    }
    return type(states[0])(**joined)


def split_state(state: S) -> list[S]:
    """One state a world; the inverse of `stack_states`."""
    columns = {name: split_state(value) if is_dataclass(value) else value.split(1) for name, value in _tensors(state).items()}
    return [type(state)(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def select_states(state: S, rows: Int[torch.Tensor, "m"]) -> S:
    """Some of a batch of worlds, in any order."""
    return _changed(state, lambda value, name: value[rows.to(value.device)])


def replace_states(state: S, rows: Int[torch.Tensor, "m"], others: S) -> S:
    """A batch of worlds with others in the places `rows`."""
    new = dict(_leaves(others))
    return _changed(state, lambda value, name: value.index_copy(0, rows.to(value.device), new[name]))


def _changed(state: S, change: Callable[[torch.Tensor, str], torch.Tensor], path: str = "") -> S:
    columns = {
        name: _changed(value, change, f"{path}{name}.") if is_dataclass(value) else change(value, path + name)
        for name, value in _tensors(state).items()
    }
    return type(state)(**columns)


def _leaves(state: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in _tensors(state).items():
        if is_dataclass(value):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, value
