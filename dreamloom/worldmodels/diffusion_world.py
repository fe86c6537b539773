"""A world that diffuses its next frame in pixels, after DIAMOND (Alonso et al. 2024, arXiv 2405.12399); no tokens.

A U-Net, preconditioned as in EDM, denoises the next frame beside the last few ones, under the actions between them; a frame
takes a few Euler steps. It differs from the paper where the past is short: frames before the prompt are its first one repeated,
actions that nobody knows are "no action", and some training clips are made so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dreamloom.diffusion.denoisers import NoiseEmbedding
from dreamloom.diffusion.noise import lognormal_sigma
from dreamloom.diffusion.preconditioning import loss_weight, precondition
from dreamloom.diffusion.solvers import Euler
from dreamloom.nn.build import Buildable
from dreamloom.nn.frame_shape import require_frames
from dreamloom.nn.unet import UNet
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import draw
from dreamloom.worldmodels.pixel_world import PixelWorld
from dreamloom.worldmodels.playable import to_bytes
from dreamloom.worldmodels.world import Generators, Outcome, Sampling

Frames = Float[Tensor, "b c h w"]
Past = Float[Tensor, "b t c h w"]
FRAMES_STD = 0.5  # about the standard deviation of frames in [-1, 1]


class NextFrameDenoiser(nn.Module, Buildable):
    """D(x; sigma | past frames, actions) of a next frame; frames in [-1, 1].

    Args:
        actions: number of actions.
        size: height and width of a frame, pixels.
        channels: colour channels.
        context: past frames that are seen.
        widths: channels of the U-Net's levels.
        depth: blocks a level.
        fold: side of the patches of pixels that the U-Net takes for one; 1 is the paper's, 2 costs a third.
        condition: size of the embedding of noise level and actions.
        change: whether the change from the last frame is diffused, not the frame, which learns faster: a still scene is right
            from the start. False is the paper's.
        sigma_data: standard deviation of what is diffused.
        offset_noise: standard deviation of noise that all pixels of a colour share, in training (sigma_offset_noise).
        P_mean: mean of ln sigma in training.
        P_std: standard deviation of ln sigma in training.
        forget: share of training clips whose oldest frames are hidden, and of those whose oldest actions are.
        context_noise: largest standard deviation of noise on past frames in training, each clip's another one, so that a world
            takes its own errors away instead of adding to them (after Valevski et al. 2024, GameNGen, who tell the network
            how much). 0 is the paper's.
    """

    def __init__(
        self,
        actions: int = 15,
        *,
        size: int = 64,
        channels: int = 3,
        context: int = 4,
        widths: Sequence[int] = (64, 64, 64, 64),
        depth: int = 2,
        fold: int = 1,
        condition: int = 256,
        change: bool = False,
        sigma_data: float = 0.5,
        offset_noise: float = 0.3,
        P_mean: float = -0.4,
        P_std: float = 1.2,
        forget: float = 0.1,
        context_noise: float = 0.0,
    ):
        super().__init__()
        if context < 1 or condition % context:
            raise ValueError(f"context must be at least 1 and divide condition, got context {context}, condition {condition}")
        self.network = UNet(channels * (context + 1), channels, condition=condition, widths=widths, depth=depth, fold=fold)
        if size % self.network.shrinks:
            raise ValueError(f"size must be a multiple of {self.network.shrinks} (fold and levels), got {size}")
        self.actions, self.size, self.channels, self.context = actions, size, channels, context
        self.sigma_data, self.offset_noise, self.P_mean, self.P_std = sigma_data, offset_noise, P_mean, P_std
        self.change, self.forget, self.context_noise = change, forget, context_noise
        self.action_in = nn.Embedding(actions + 1, condition // context)  # the last one stands for "no action"
        self.noise_in = NoiseEmbedding(condition, 64)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(condition, condition))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a frame."""
        return self.channels, self.size, self.size

    @property
    def no_action(self) -> int:
        """Index that stands for an action that nobody knows."""
        return self.actions

    def denoise(self, x: Frames, sigma: Float[Tensor, "*b"], past: Past, actions: Int[Tensor, "b t"]) -> Frames:
        """The expected next frame.

        Args:
            x: next frame plus noise.
            sigma: standard deviation of the noise, (b,) or a scalar.
            past: the last `context` frames.
            actions: the actions taken at them; the last one leads to the new frame.
        """
        total = (sigma**2 + self.offset_noise**2).sqrt()  # the shared noise is noise too
        c_skip, c_out, c_in, c_noise = precondition(total, self.sigma_data)
        told = rearrange(self.action_in(actions), "b t k -> b (t k)")
        condition = self.mix(self.noise_in(c_noise) + told)
        seen = rearrange(past, "b t c h w -> b (t c) h w") / FRAMES_STD
        base = self.base(past)
        x = x - base
        out = self.network(torch.cat([seen, _wide(c_in) * x], 1), condition)
        return base + _wide(c_skip) * x + _wide(c_out) * out.float()

    def base(self, past: Past) -> Frames:
        """What the diffused change is added to: the last frame, or nothing."""
        return past[:, -1] if self.change else torch.zeros_like(past[:, -1])

    def loss(
        self, frames: Past, actions: Int[Tensor, "b s"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """EDM's weighted error of next frames (Karras et al. 2022, equation 2), with the paper's noise levels.

        Of t frames the last t - context are predicted one after the other, and what was predicted is seen as the past of the
        ones after it (the paper's autoregressive training); at least one is, after the first frame repeated.

        Args:
            frames: in [0, 1].
            actions: the t - 1 actions between them.
            generator: randomness of noise, its levels and what is forgotten.

        Returns:
            The loss, and metrics over all noise levels: `error`, the mean squared error of pixels in [0, 1], and `psnr` (dB).
        """
        require_frames(frames, self)
        x, actions = self.filled(frames * 2 - 1, actions, self.context + 1)
        losses, errors = [], []
        for i in range(x.shape[1] - self.context):
            past, led = self._forgetful(x[:, i : i + self.context], actions[:, i : i + self.context], generator)
            past = self._worn(past, generator) if self.context_noise else past
            loss, error, denoised = self._loss_of_one(x[:, i + self.context], past, led, generator)
            losses.append(loss)
            errors.append(error)
            shown = (denoised.detach().clamp(-1, 1) * 127.5).round() / 127.5  # as it is seen at play: whole grey levels
            x = torch.cat([x[:, : i + self.context], shown[:, None], x[:, i + self.context + 1 :]], 1)
        error = torch.stack(errors).mean()
        return torch.stack(losses).mean(), {"error": error, "psnr": -10 * error.log10()}

    def _loss_of_one(
        self, target: Frames, past: Past, actions: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, c, device = *target.shape[:2], target.device
        sigma = lognormal_sigma(b, self.P_mean, self.P_std, generator=generator, device=device)
        noise = torch.randn(target.shape, generator=generator, device=device)
        shared = torch.randn(b, c, 1, 1, generator=generator, device=device)
        denoised = self.denoise(target + _wide(sigma) * noise + self.offset_noise * shared, sigma, past, actions)
        total = (sigma**2 + self.offset_noise**2).sqrt()
        error = (denoised - target).square().mean((1, 2, 3))
        return (loss_weight(total, self.sigma_data) * error).mean(), error.detach().mean() / 4, denoised

    def filled(self, frames: Any, actions: Int[Tensor, "b s"], length: int) -> tuple[Any, Int[Tensor, "b u"]]:
        """Frames (b t c h w) of any type and the actions between them, lengthened into the past to at least `length` frames."""
        short = max(0, length - frames.shape[1])
        frames = torch.cat([frames[:, :1].expand(-1, short, -1, -1, -1), frames], 1)
        return frames, nn.functional.pad(actions, (short, 0), value=self.no_action)

    def _forgetful(
        self, past: Past, actions: Int[Tensor, "b t"], generator: torch.Generator | None
    ) -> tuple[Past, Int[Tensor, "b t"]]:
        """Some clips as they are after a prompt: older frames are the first one repeated, older actions are not known."""
        b, t, device = *actions.shape, actions.device
        which, known = (torch.rand(2, b, 1, generator=generator, device=device) for _ in range(2))
        hidden = torch.where(which < self.forget, t - 1 - (known * t).long(), 0)  # of frames, and of actions
        place = torch.arange(t, device=device)
        seen = past[torch.arange(b, device=device)[:, None], place.maximum(hidden[0])]
        return seen, actions.masked_fill(place < hidden.amax(0), self.no_action)

    def _worn(self, past: Past, generator: torch.Generator | None) -> Past:
        """Past frames as they are after a while of play: noisy, a clip more and another less."""
        levels = self.context_noise * torch.rand(len(past), 1, 1, 1, 1, generator=generator, device=past.device)
        return (past + levels * torch.randn(past.shape, generator=generator, device=past.device)).clamp(-1, 1)


@dataclass(frozen=True)
class DiffusionState:
    """Where b imagined worlds stand.

    Attributes:
        frames: (b, t, c, h, w) uint8, the last frames, newest last.
        actions: (b, t - 1) the actions between them.
    """

    frames: UInt8[Tensor, "b t c h w"]
    actions: Int[Tensor, "b s"]

    @property
    def frame(self) -> UInt8[Tensor, "b c h w"]:
        """What the worlds show."""
        return self.frames[:, -1]


class DiffusionWorld(PixelWorld, Buildable):
    """A playable world; see the World protocol for `reset` and `step`.

    Args:
        denoiser: of the next frame.
        latent_actions: labels frames with latent actions; None where the denoiser takes the dataset's true actions.
        steps: default Euler steps a frame.
        sigma_min: last noise level but 0.
        sigma_max: first noise level; far less than for images from nothing, as the past tells most of a frame.
        rho: curvature of the schedule.
    """

    def __init__(
        self,
        denoiser: NextFrameDenoiser,
        latent_actions: LatentActions | None = None,
        *,
        steps: int = 3,
        sigma_min: float = 0.002,
        sigma_max: float = 5.0,
        rho: float = 7.0,
    ):
        super().__init__(denoiser, latent_actions, steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)

    @torch.inference_mode()
    def reset(self, prompt: Any) -> DiffusionState:
        """Starts worlds from frames of any size; see `World.reset`.

        Raises:
            ValueError: if the prompt is not uint8 frames of a known shape.
        """
        frames, actions = self.prompted(prompt)
        n = self.denoiser.context
        frames, actions = self.denoiser.filled(frames, actions, n)
        return DiffusionState(frames[:, -n:], actions[:, len(actions[0]) - n + 1 :])

    @torch.inference_mode()
    def step(
        self,
        state: DiffusionState,
        action: int | Int[Tensor, "b"],
        generator: Generators = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> tuple[DiffusionState, Outcome]:
        """One new frame for every world; see `World.step`. The temperature scales the noise that a frame begins with.

        Raises:
            ValueError: if an action, the number of steps or the temperature is out of range.
        """
        b = len(state.frames)
        actions = torch.cat([state.actions, self.checked(action, b)[:, None]], 1)
        steps, temperature = self.asked(sampling)
        past = state.frames.float() / 127.5 - 1
        solver = Euler(steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        base = self.denoiser.base(past)
        x = base + solver(
            lambda x, sigma: self.denoiser.denoise(base + x, sigma, past, actions).clamp(-1, 1) - base,
            lambda _: temperature * draw((b, *self.frame_shape), generator, self.device, torch.randn),
        )
        frame = to_bytes((x / 2 + 0.5).clamp(0, 1))
        return DiffusionState(torch.cat([state.frames[:, 1:], frame[:, None]], 1), actions[:, 1:]), Outcome(frame)


def _wide(scalars: Tensor) -> Tensor:
    """(b,) as (b, 1, 1, 1), so that it scales frames; a scalar stays one."""
    return rearrange(scalars, "b -> b 1 1 1") if scalars.ndim else scalars
