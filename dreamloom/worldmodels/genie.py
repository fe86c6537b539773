"""A Genie (Bruce et al. 2024): tokenizer, latent actions and dynamics composed behind the World protocol.

A state holds the frame to show and two frame caches, of the dynamics and of the decoder. Rollouts stay in tokens: nothing is
decoded and encoded again, and a step costs the same after a million frames as after one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.nn.transformer import FrameCache
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.playable import Playable, to_bytes
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Generators, Outcome, Sampling


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


class Genie(Playable):
    """A playable world; see the World protocol for `reset` and `step`.

    Args:
        tokenizer: frames to tokens and back.
        dynamics: draws the next frame's tokens.
        latent_actions: labels frames with latent actions; None where the dynamics takes the dataset's true actions.
        prompts: (p, t, c, h, w) uint8 frames to start from.
        name: short name.
        action_names: one label an action; "action i" where None.
        game: Procgen game that this imitates, or None.
        game_options: how the game looked in the data; see `dreamloom.worldmodels.playable.GAME_OPTIONS`.
        fps: frames a second of the training data.
        steps: default MaskGIT steps.
        temperature: default temperature.
        order: order of unmasking.
    """

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
        if (dynamics.codes, dynamics.tokens) != (tokenizer.codes, tokenizer.tokens):
            raise ValueError(
                f"dynamics (codes {dynamics.codes}, tokens {dynamics.tokens}) does not fit "
                f"tokenizer (codes {tokenizer.codes}, tokens {tokenizer.tokens})"
            )
        if latent_actions is not None and latent_actions.actions != dynamics.actions:
            raise ValueError(f"{latent_actions.actions} latent actions do not fit dynamics with {dynamics.actions}")
        shape = (tokenizer.channels, tokenizer.size, tokenizer.size)
        super().__init__(shape, dynamics.actions, Sampling(steps, temperature))
        self.tokenizer, self.dynamics, self.latent_actions, self.order = tokenizer, dynamics, latent_actions, order
        parts = {"tokenizer": tokenizer, "dynamics": dynamics, "latent_actions": latent_actions}
        configs = {key: None if part is None else part.config for key, part in parts.items()}
        self.config = {"class_path": f"{__name__}.Genie", "init_args": {**configs, "order": order}}
        self.introduce(name=name, action_names=action_names, game=game, game_options=game_options, fps=fps, prompts=prompts)

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
        return GenieState(to_bytes(shown[:, 0]), past, drawn)

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
        led = self.checked(action, len(state.frame))
        steps, temperature = self.asked(sampling)
        tokens, past, entropy = self.dynamics.imagine(
            led, state.dynamics, steps=steps, temperature=temperature, order=self.order, generator=generator
        )
        shown, drawn = self.tokenizer.decode_frame(tokens[:, None], state.decoder)
        frame = to_bytes(shown[:, 0])
        return GenieState(frame, past, drawn), Outcome(frame, uncertainty=entropy)
