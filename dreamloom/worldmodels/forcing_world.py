"""A world of continuous latents: autoencoder, shortcut-forcing dynamics and latent actions behind the World protocol."""

from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.nn.build import Buildable
from dreamloom.tokenizers.autoencoder import Autoencoder
from dreamloom.worldmodels.forcing import ForcingDynamics
from dreamloom.worldmodels.genie import GenieState
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.playable import Playable, to_bytes
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Generators, Outcome, Sampling

# The frame, and two frame caches, of the dynamics and of the decoder: what a Genie's state is.
ForcingState = GenieState


class ForcingWorld(Playable, Buildable):
    """A playable world; see the World protocol for `reset` and `step`. Rollouts stay in latents.

    Args:
        autoencoder: frames to latents and back.
        dynamics: draws the next frame's latents.
        latent_actions: labels frames with latent actions; None where the dynamics takes the dataset's true actions.
        steps: default steps a frame.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        dynamics: ForcingDynamics,
        latent_actions: LatentActions | None = None,
        *,
        steps: int = 4,
    ):
        if (dynamics.latent, dynamics.tokens) != (autoencoder.latent, autoencoder.tokens):
            raise ValueError(
                f"dynamics (latent {dynamics.latent}, tokens {dynamics.tokens}) does not fit "
                f"autoencoder (latent {autoencoder.latent}, tokens {autoencoder.tokens})"
            )
        if latent_actions is not None and latent_actions.actions != dynamics.actions:
            raise ValueError(f"{latent_actions.actions} latent actions do not fit dynamics with {dynamics.actions}")
        shape = (autoencoder.channels, autoencoder.size, autoencoder.size)
        super().__init__(shape, dynamics.actions, Sampling(steps, 1.0))
        self.autoencoder, self.dynamics, self.latent_actions = autoencoder, dynamics, latent_actions

    @torch.inference_mode()
    def reset(self, prompt: Any) -> ForcingState:
        """Starts worlds from frames of any size; see `World.reset`.

        Raises:
            ValueError: if the prompt is not uint8 frames of a known shape.
        """
        frames = to_prompt(prompt, self.frame_shape).to(self.device).float() / 255
        latents, led = self.autoencoder.encode(frames), self._led(frames)
        b = len(frames)
        past, drawn = self.dynamics.empty_cache(b), self.autoencoder.decoder.empty_cache(b, self.autoencoder.tokens)
        for t in range(frames.shape[1]):
            past = self.dynamics.observe(latents[:, t], led[:, t], past)
            shown, drawn = self.autoencoder.decode_frame(latents[:, t : t + 1], drawn)
        return ForcingState(to_bytes(shown[:, 0]), past, drawn)

    def _led(self, frames: Float[Tensor, "b t c h w"]) -> Int[Tensor, "b t"]:
        """The action that led to each frame of a prompt: inferred where that is possible, else "no action"."""
        led = torch.full(frames.shape[:2], self.dynamics.no_action, device=self.device)
        if self.latent_actions is not None and frames.shape[1] > 1:
            led[:, 1:] = self.latent_actions.infer(frames)
        return led

    @torch.inference_mode()
    def step(
        self,
        state: ForcingState,
        action: int | Int[Tensor, "b"],
        generator: Generators = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> tuple[ForcingState, Outcome]:
        """One new frame for every world; see `World.step`. The temperature scales the noise that a frame begins with.

        Raises:
            ValueError: if an action, the number of steps or the temperature is out of range.
        """
        led = self.checked(action, len(state.frame))
        steps, temperature = self.asked(sampling)
        latents, past = self.dynamics.imagine(led, state.dynamics, steps=steps, temperature=temperature, generator=generator)
        shown, drawn = self.autoencoder.decode_frame(latents[:, None], state.decoder)
        frame = to_bytes(shown[:, 0])
        return ForcingState(frame, past, drawn), Outcome(frame)

    @torch.inference_mode()
    def reconstruct(self, frames: UInt8[Tensor, "b t c h w"]) -> UInt8[Tensor, "b t c h w"]:
        """What the autoencoder keeps of frames: the ceiling of any dynamics over its latents."""
        shown = self.autoencoder.decode(self.autoencoder.encode(frames.to(self.device).float() / 255))
        return (shown * 255).round().to(torch.uint8)
