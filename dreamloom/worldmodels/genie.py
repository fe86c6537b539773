"""A Genie (Bruce et al. 2024): tokenizer, latent actions and dynamics composed behind the World protocol.

A state holds the frame to show and two frame caches, of the dynamics and of the decoder. Rollouts stay in tokens: nothing is
decoded and encoded again, and a step costs the same after a million frames as after one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dreamloom.nn.transformer import FrameCache
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Generators, Outcome, Sampling

# What of Procgen's settings changes its looks; a world keeps them, so that the real game beside it looks alike.
GAME_OPTIONS = frozenset({"distribution_mode", "use_backgrounds", "restrict_themes", "use_monochrome_assets", "center_agent"})


@dataclass(frozen=True)
class GenieState:
    """Where b imagined worlds stand.

    Attributes:
        frame: (b, c, h, w) uint8, what they show.
        dynamics: past frames as the dynamics saw them.
        decoder: past frames as the decoder saw them.
    """

    frame: UInt8[Tensor, "b c h w"]
    dynamics: FrameCache
    decoder: FrameCache


class Genie(nn.Module):
    """A playable world; see the World protocol for `reset` and `step`.

    Args:
        tokenizer: frames to tokens and back.
        dynamics: draws the next frame's tokens.
        latent_actions: labels frames with latent actions; None where the dynamics takes the dataset's true actions.
        prompts: (p, t, c, h, w) uint8 frames to start from.
        name: short name.
        action_names: one label an action; "action i" where None.
        game: Procgen game that this imitates, or None.
        game_options: how the game looked in the data; see `GAME_OPTIONS`.
        fps: frames a second of the training data.
        steps: default MaskGIT steps.
        temperature: default temperature.
        order: order of unmasking.
    """

    prompts: Tensor

    def __init__(
        self,
        tokenizer: Tokenizer,
        dynamics: Dynamics,
        latent_actions: LatentActions | None = None,
        *,
        prompts: UInt8[Tensor, "p t c h w"] | None = None,
        name: str = "genie",
        action_names: Sequence[str] | None = None,
        game: str | None = None,
        game_options: Mapping[str, str | bool] | None = None,
        fps: float = 15.0,
        steps: int = 8,
        temperature: float = 1.0,
        order: Order = "random",
    ):
        super().__init__()
        if (dynamics.codes, dynamics.tokens) != (tokenizer.codes, tokenizer.tokens):
            raise ValueError(
                f"dynamics (codes {dynamics.codes}, tokens {dynamics.tokens}) does not fit "
                f"tokenizer (codes {tokenizer.codes}, tokens {tokenizer.tokens})"
            )
        if latent_actions is not None and latent_actions.actions != dynamics.actions:
            raise ValueError(f"{latent_actions.actions} latent actions do not fit dynamics with {dynamics.actions}")
        names = list(action_names or [f"action {i}" for i in range(dynamics.actions)])
        if len(names) != dynamics.actions:
            raise ValueError(f"need {dynamics.actions} action names, got {len(names)}: {names}")
        if unknown := set(game_options or {}) - GAME_OPTIONS:
            raise ValueError(f"game options are {sorted(GAME_OPTIONS)}, got {sorted(unknown)}")
        self.game_options = dict(game_options or {})
        self.tokenizer, self.dynamics, self.latent_actions = tokenizer, dynamics, latent_actions
        self.name, self.action_names, self.game, self.fps = name, names, game, fps
        self.sampling, self.order = Sampling(steps, temperature), order
        self.frame_shape = (tokenizer.channels, tokenizer.size, tokenizer.size)
        self.action_space = gymnasium.spaces.Discrete(dynamics.actions)
        self.register_buffer("prompts", torch.zeros(0, 1, *self.frame_shape, dtype=torch.uint8) if prompts is None else prompts)

    @property
    def device(self) -> torch.device:
        """Where the world computes."""
        return self.dynamics.place.device

    @torch.inference_mode()
    def reset(self, prompt: Any) -> GenieState:
        """Starts worlds from frames of any size; see `World.reset`.

        Raises:
            ValueError: if the prompt is not uint8 frames of a known shape.
        """
        frames = to_prompt(prompt, self.frame_shape).to(self.device).float() / 255
        tokens = self.tokenizer.encode(frames)
        led = self._led(frames)
        b = len(frames)
        past, drawn = self.dynamics.empty_cache(b), self.tokenizer.decoder.empty_cache(b, self.tokenizer.tokens)
        for t in range(frames.shape[1]):
            past = self.dynamics.observe(tokens[:, t], led[:, t], past)
            shown, drawn = self.tokenizer.decode_frame(tokens[:, t : t + 1], drawn)
        return GenieState(_to_bytes(shown[:, 0]), past, drawn)

    def _led(self, frames: Float[Tensor, "b t c h w"]) -> Int[Tensor, "b t"]:
        """The action that led to each frame of a prompt: inferred where that is possible, else "no action"."""
        b, t = frames.shape[:2]
        if self.latent_actions is None or t == 1:
            return torch.full((b, t), self.dynamics.no_action, device=self.device)
        return self.dynamics.leading(self.latent_actions.infer(frames))

    @torch.inference_mode()
    def step(
        self,
        state: GenieState,
        action: int | Int[Tensor, "b"],
        generator: Generators = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> tuple[GenieState, Outcome]:
        """One new frame for every world; see `World.step`.

        Raises:
            ValueError: if an action, the number of steps or the temperature is out of range.
        """
        led = self._checked(action, len(state.frame))
        tokens, past = self.dynamics.imagine(
            led,
            state.dynamics,
            steps=self.sampling.steps if sampling.steps is None else sampling.steps,  # type: ignore[arg-type]
            temperature=self.sampling.temperature if sampling.temperature is None else sampling.temperature,  # type: ignore[arg-type]
            order=self.order,
            generator=generator,
        )
        shown, drawn = self.tokenizer.decode_frame(tokens[:, None], state.decoder)
        frame = _to_bytes(shown[:, 0])
        return GenieState(frame, past, drawn), Outcome(frame)

    def _checked(self, action: int | Tensor, b: int) -> Int[Tensor, "b"]:
        actions = torch.as_tensor(action, device=self.device).long().expand(b)
        if not bool(((actions >= 0) & (actions < self.dynamics.actions)).all()):
            raise ValueError(f"actions must be 0 to {self.dynamics.actions - 1}, got {actions.tolist()[:8]}")
        return actions


def _to_bytes(frames: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    return (frames * 255).round().to(torch.uint8)
