"""What worlds made of modules share: who they are, the actions they take, and how files tell one from another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dreamloom.datasets.store import open_dataset
from dreamloom.worldmodels.world import Sampling

# What of Procgen's settings changes its looks; a world keeps them, so that the real game beside it looks alike.
GAME_OPTIONS = frozenset({"distribution_mode", "use_backgrounds", "restrict_themes", "use_monochrome_assets", "center_agent"})


class Playable(nn.Module):
    """A World of discrete actions; a subclass adds `reset` and `step`, and says in `config` how it was built.

    Args:
        frame_shape: (c, h, w).
        actions: number of actions.
        sampling: default steps and temperature.
    """

    config: dict[str, Any]  # class path and constructor's arguments, see `dreamloom.nn.build`
    prompts: Tensor

    def __init__(self, frame_shape: tuple[int, int, int], actions: int, sampling: Sampling):
        super().__init__()
        self.frame_shape, self.sampling = frame_shape, sampling
        self.action_space = gymnasium.spaces.Discrete(actions)
        self.register_buffer("prompts", torch.zeros(0, 1, *frame_shape, dtype=torch.uint8))
        self.introduce()

    def introduce(
        self,
        *,
        name: str = "world",
        action_names: Sequence[str] | None = None,
        game: str | None = None,
        game_options: Mapping[str, str | bool] | None = None,
        fps: float = 15.0,
        train_levels: Sequence[str] = (),
        train_cpu_s: float | None = None,
        train_wall_s: float | None = None,
        prompts: UInt8[Tensor, "p t c h w"] | None = None,
    ) -> None:
        """Says who this world is.

        Args:
            name: short name.
            action_names: one label an action; "action i" where None.
            game: Procgen game that this imitates, or None.
            game_options: how the game looked in the data; see `GAME_OPTIONS`.
            fps: frames a second of the training data.
            train_levels: ranges LO:HI of the levels trained on (HI excluded), as far as they are known.
            train_cpu_s: processor time of its training, all parts together, s; None where it is not known.
            train_wall_s: seconds of its training by the clock, likewise.
            prompts: frames to start from.

        Raises:
            ValueError: the names do not fit the actions, or an option is none of `GAME_OPTIONS`.
        """
        actions = int(self.action_space.n)
        names = list(action_names or [f"action {i}" for i in range(actions)])
        if len(names) != actions:
            raise ValueError(f"need {actions} action names, got {len(names)}: {names}")
        if unknown := set(game_options or {}) - GAME_OPTIONS:
            raise ValueError(f"game options are {sorted(GAME_OPTIONS)}, got {sorted(unknown)}")
        self.name, self.action_names, self.game, self.fps = name, names, game, fps
        self.game_options, self.train_levels = dict(game_options or {}), list(train_levels)
        self.train_cpu_s, self.train_wall_s = train_cpu_s, train_wall_s
        if prompts is not None:
            self.prompts = prompts

    @property
    def identity(self) -> dict[str, Any]:
        """What `introduce` was told, and the default sampling, as plain data; of the prompts the shape."""
        told = ("name", "action_names", "game", "game_options", "fps", "train_levels", "train_cpu_s", "train_wall_s")
        sampling = {"steps": self.sampling.steps, "temperature": self.sampling.temperature}
        return {**{key: getattr(self, key) for key in told}, **sampling, "prompts": list(self.prompts.shape)}

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Takes on what `identity` gave; prompts are zeros of that shape, until weights are loaded."""
        told = {key: value for key, value in identity.items() if key not in ("steps", "temperature", "prompts")}
        self.introduce(**told, prompts=torch.zeros(identity["prompts"], dtype=torch.uint8))
        self.sampling = Sampling(identity["steps"], identity["temperature"])

    @property
    def device(self) -> torch.device:
        """Where the world computes."""
        return self.prompts.device

    def checked(self, action: int | Tensor, b: int) -> Int[Tensor, "b"]:
        """Actions of b worlds, given for each or one for all.

        Raises:
            ValueError: there are more or fewer of them, or one is out of range.
        """
        actions, count = torch.as_tensor(action, device=self.device).long(), int(self.action_space.n)
        if actions.shape not in ((), (1,), (b,)) or not bool(((actions >= 0) & (actions < count)).all()):
            raise ValueError(f"actions must be 0 to {count - 1}, one or {b} of them, got {actions.tolist()}"[:300])
        return actions.expand(b)

    def asked(self, sampling: Sampling) -> tuple[int, float]:
        """Steps and temperature: those asked for, else the world's own.

        Raises:
            ValueError: they are out of range.
        """
        steps = self.sampling.steps if sampling.steps is None else sampling.steps
        temperature = self.sampling.temperature if sampling.temperature is None else sampling.temperature
        assert steps is not None
        assert temperature is not None
        if steps < 1 or not 0 <= temperature < float("inf"):
            raise ValueError(f"need steps >= 1 and a finite temperature >= 0, got steps {steps} and temperature {temperature}")
        return steps, temperature


def identity_of_data(data: Path, stride: int) -> dict[str, Any]:
    """What a dataset tells of a world that is trained on it: `introduce`'s game, game_options and fps.

    Args:
        data: the dataset.
        stride: rows from one frame of the world to the next.
    """
    with open_dataset(data) as dataset:
        attrs = dataset.attrs
        source = attrs.get("source")
        recorded = source.get("env", {}) if attrs.get("game") and isinstance(source, dict) else {}
        options = {key: recorded[key] for key in sorted(GAME_OPTIONS & set(recorded))}
        return {"game": attrs.get("game"), "game_options": options, "fps": float(attrs.get("fps", 15.0)) / stride}


def to_bytes(frames: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Frames in [0, 1] as they are shown."""
    return (frames * 255).round().to(torch.uint8)
