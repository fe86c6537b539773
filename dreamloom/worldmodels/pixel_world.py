"""What worlds share that draw pixels by a denoiser: noise levels of the sampler, and the actions between frames of a prompt."""

from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.playable import Playable
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Sampling


class PixelWorld(Playable):
    """A Playable with a denoiser.

    Args:
        denoiser: has `actions`, `frame_shape` and `no_action`.
        latent_actions: labels frames with latent actions; None where the denoiser takes the dataset's true actions.
        steps: default Euler steps a frame.
        sigma_min: last noise level but 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.

    Raises:
        ValueError: the latent actions are not as many as the denoiser's.
    """

    def __init__(
        self,
        denoiser: Any,
        latent_actions: LatentActions | None,
        *,
        steps: int,
        sigma_min: float,
        sigma_max: float,
        rho: float,
    ):
        if latent_actions is not None and latent_actions.actions != denoiser.actions:
            raise ValueError(f"{latent_actions.actions} latent actions do not fit a denoiser with {denoiser.actions}")
        super().__init__(denoiser.frame_shape, denoiser.actions, Sampling(steps, 1.0))
        self.denoiser, self.latent_actions = denoiser, latent_actions
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho

    def prompted(self, prompt: Any) -> tuple[UInt8[Tensor, "b t c h w"], Int[Tensor, "b s"]]:
        """The frames of a prompt, and the t - 1 actions between them, as far as they can be inferred.

        Raises:
            ValueError: if the prompt is not uint8 frames of a known shape.
        """
        frames = to_prompt(prompt, self.frame_shape).to(self.device)
        b, t = frames.shape[:2]
        if self.latent_actions is None or t == 1:
            return frames, torch.full((b, t - 1), self.denoiser.no_action, device=self.device)
        return frames, self.latent_actions.infer(frames.float() / 255)
