"""Draws the next frame over what the canvas shows where the camera goes.

A world that draws each frame anew forgets what left the picture and lets its errors grow. Here the camera's shift is predicted
first and what has been seen before is copied from a canvas, to whole pixels. One network then predicts how that changes
(sprites move) and diffuses what comes into view for the first time. Noise levels are EDM's (Karras et al. 2022). The network
predicts the frame itself, not its noise, as noise of whole patches does not fit through a narrow network (Li and He 2025,
"Back to Basics: Let Denoising Generative Models Denoise", arXiv 2511.13720). The change instead of the frame and unrolled
training are as in `dreamloom.worldmodels.diffusion_world` (after DIAMOND, Alonso et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from dreamloom.diffusion.denoisers import NoiseEmbedding
from dreamloom.diffusion.noise import lognormal_sigma
from dreamloom.nn.build import Buildable
from dreamloom.nn.frame_shape import require_frames
from dreamloom.nn.patch_unet import PatchUNet
from dreamloom.worldmodels.canvas.camera import Camera, Logits
from dreamloom.worldmodels.canvas.painting import Canvas
from dreamloom.worldmodels.canvas.registration import register, shifted

Frames = Float[Tensor, "b c h w"]
PAST = 3  # frames that the networks see, the last one among them


@dataclass(frozen=True)
class View:
    """What b worlds know when a new frame is due.

    Attributes:
        canvas: all that was seen, the camera where the last frame is.
        frames: (b, PAST, c, h, w) uint8, the last frames, newest last.
        shifts: (b, PAST, 2) the camera's moves to them, pixels (down, right).
        actions: (b, PAST - 1) the actions that led to the last frames.
    """

    canvas: Canvas
    frames: UInt8[Tensor, "b t c h w"]
    shifts: Int[Tensor, "b t 2"]
    actions: Int[Tensor, "b s"]

    def followed(self, canvas: Canvas, frame: UInt8[Tensor, "b c h w"], shift: Tensor, action: Tensor) -> "View":
        """The view one frame later."""
        frames = torch.cat([self.frames[:, 1:], frame[:, None]], 1)
        shifts = torch.cat([self.shifts[:, 1:], shift[:, None]], 1)
        return View(canvas.painted(frame), frames, shifts, torch.cat([self.actions[:, 1:], action[:, None]], 1))


@dataclass(frozen=True)
class Look:
    """What the network is shown of b worlds, the camera where the new frame will be.

    Attributes:
        seen: the base, older frames, and where the canvas is known.
        base: what the canvas shows; where it shows nothing, the last frame's edge goes on.
        diffused: (b, 1, h, w) where the frame is diffused; elsewhere the expected frame is taken.
        condition: embedding of actions and moves.
    """

    seen: Float[Tensor, "b e h w"]
    base: Float[Tensor, "b c h w"]
    diffused: Bool[Tensor, "b 1 h w"]
    condition: Float[Tensor, "b k"]


class CanvasDenoiser(nn.Module, Buildable):
    """D(x; sigma | canvas, past frames, camera, actions) of a next frame, and where the camera goes for it.

    Args:
        actions: number of actions.
        size: height and width of a frame, pixels.
        channels: colour channels.
        reach: largest shift of the camera between two frames, pixels; 0 for a camera that stands.
        widths: channels of the U-Net's levels.
        patch: side of the patches of pixels that networks take for one.
        condition: size of the embedding of noise level, actions and moves.
        unroll: frames of a training clip that are predicted one after the other, each seeing the ones predicted before.
        diffuse: what is diffused: the part of a frame that was never seen before, or all of it, where sprites are hard to
            foresee. The rest is regressed, which learns many times faster.
        sigma_data: standard deviation of what is diffused, around its base, frames in [-1, 1].
        change_std: likewise of what is regressed.
        unseen_weight: weight of the loss where a frame is diffused, which stays on the canvas for long.
        P_mean: mean of ln sigma in training.
        P_std: standard deviation of ln sigma in training.
        forget: share of training clips in which older actions are not known, as after a prompt.
        context_noise: largest standard deviation of noise on what is seen in training, another one for each clip.
    """

    def __init__(
        self,
        actions: int = 15,
        *,
        size: int = 128,
        channels: int = 3,
        reach: int = 24,
        widths: Sequence[int] = (48, 96, 160),
        patch: int = 4,
        condition: int = 192,
        unroll: int = 4,
        diffuse: Literal["unseen", "all"] = "unseen",
        sigma_data: float = 0.5,
        change_std: float = 0.15,
        unseen_weight: float = 4.0,
        P_mean: float = -0.4,
        P_std: float = 1.2,
        forget: float = 0.1,
        context_noise: float = 0.1,
    ):
        super().__init__()
        self.actions, self.size, self.channels, self.reach, self.unroll = actions, size, channels, reach, unroll
        self.diffuse, self.sigma_data, self.change_std, self.unseen_weight = diffuse, sigma_data, change_std, unseen_weight
        self.P_mean, self.P_std = P_mean, P_std
        self.forget, self.context_noise = forget, context_noise
        seen = channels * (PAST + 1) + 1  # the noisy frame, what the canvas shows, whether it is known, older frames
        self.network = PatchUNet(seen, channels, size=size, condition=condition, widths=widths, patch=patch)
        self.camera = Camera(channels * PAST, size=size, condition=condition, reach=reach, patch=patch) if reach else None
        self.action_in = nn.Embedding((actions + 1) * PAST, condition)  # the last of each place stands for "no action"
        self.move_in = nn.Linear(2 * (PAST + 1), condition)
        self.noise_in = NoiseEmbedding(condition, 64)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(condition, condition))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """The frames that it is made for, (c, h, w)."""
        return self.channels, self.size, self.size

    @property
    def no_action(self) -> int:
        """Index that stands for an action that nobody knows."""
        return self.actions

    def aim(self, view: View, action: Int[Tensor, "b"]) -> Logits:
        """Logits of the camera's next shift."""
        assert self.camera is not None, "this camera stands"
        frames = [shifted(view.frames[:, i], view.shifts[:, i + 1 :].sum(1)) for i in range(PAST)]
        return self.camera(_unit(torch.cat(frames, 1)), self._told(view, action, None))

    def denoise(self, x: Frames, sigma: Float[Tensor, "*b"], look: Look) -> Frames:
        """The expected next frame.

        Args:
            x: next frame plus noise, in [-1, 1] without it; it counts only where the frame is diffused.
            sigma: standard deviation of the noise, (b,) or a scalar.
            look: what the network is shown.
        """
        c_in = _wide((sigma**2 + self.sigma_data**2).rsqrt())
        change = torch.where(look.diffused, x - look.base, 0.0)
        told = self.mix(self.noise_in(sigma.log() / 4) + look.condition)
        out = self.network(torch.cat([c_in * change, look.seen], 1), told).float()
        return look.base + torch.where(look.diffused, self.sigma_data, self.change_std) * out

    def look(self, view: View, canvas: Canvas, shift: Tensor, action: Int[Tensor, "b"]) -> Look:
        """What the network is shown.

        Args:
            view: up to the last frame.
            canvas: the view's, the camera where the new frame will be.
            shift: (b, 2) how it went there.
            action: led there.
        """
        remembered, mark = canvas.view(self.size)
        known = mark > 0
        base = _unit(torch.where(known, remembered, shifted(view.frames[:, -1], shift)))
        moves = view.shifts.flip(1).cumsum(1).flip(1)  # of frame i - 1 to the last one
        older = [shifted(view.frames[:, i], shift + moves[:, i + 1]) for i in range(PAST - 1)]
        seen = torch.cat([base, _unit(torch.cat(older, 1)), known.float()], 1)
        diffused = ~known if self.diffuse == "unseen" else torch.ones_like(known)
        return Look(seen, base, diffused, self._told(view, action, shift))

    def _told(self, view: View, action: Tensor, shift: Tensor | None) -> Tensor:
        actions = torch.cat([view.actions, action[:, None]], 1)
        places = torch.arange(PAST, device=actions.device) * (self.actions + 1)
        shift = torch.zeros_like(view.shifts[:, :1]) if shift is None else shift[:, None]
        moves = torch.cat([view.shifts, shift], 1).flatten(1).float() / max(1, self.reach) * 2
        return self.action_in(actions + places).sum(1) + self.move_in(moves)

    def loss(
        self, frames: Float[Tensor, "b t c h w"], actions: Int[Tensor, "b s"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Squared error of next frames, in units of what they vary by, plus the camera's cross-entropy.

        Of t frames the last `unroll` are predicted; the ones before, at least one, are on the canvas. What was predicted is
        seen afterwards.
        The camera moves as it did in the clip.

        Args:
            frames: in [0, 1].
            actions: the t - 1 actions between them.
            generator: randomness of noise, its levels and what is forgotten.

        Returns:
            The loss, and metrics: `error`, the mean squared error of pixels in [0, 1] over all noise levels, `psnr` (dB),
            `camera`, the camera's cross-entropy, and `copied`, the PSNR of the canvas alone.
        """
        require_frames(frames, self)
        shifts, given = self.shifts_of(frames), (frames * 255).round().to(torch.uint8)
        first = max(1, frames.shape[1] - self.unroll)
        view = self.begin(given[:, :first], actions[:, : first - 1], shifts[:, : first - 1], side=2 * self.size)
        view = self._forgetful(view, generator)
        found = []
        for i in range(first, frames.shape[1]):
            shift, action = shifts[:, i - 1], actions[:, i - 1]
            aimed = None if self.camera is None else self.camera.loss(self.aim(view, action), shift)
            canvas = view.canvas.moved(shift, self.size)
            losses, denoised = self._loss_of_one(frames[:, i] * 2 - 1, self.look(view, canvas, shift, action), generator)
            found.append({**losses, "camera": losses["loss"].new_zeros(()) if aimed is None else aimed})
            view = view.followed(canvas, _bytes(denoised), shift, action)
        mean = {key: torch.stack([one[key] for one in found]).mean() for key in found[0]}
        psnr = {"psnr": -10 * mean["error"].log10(), "copied": -10 * mean["copied"].log10()}
        return mean["loss"] + 0.1 * mean["camera"], {"error": mean["error"], **psnr, "camera": mean["camera"].detach()}

    def shifts_of(self, frames: Float[Tensor, "b t c h w"]) -> Int[Tensor, "b s 2"]:
        """The camera's moves between frames in [0, 1]."""
        if self.camera is None:
            return torch.zeros(len(frames), frames.shape[1] - 1, 2, dtype=torch.long, device=frames.device)
        return register(frames, self.reach)

    def begin(self, frames: UInt8[Tensor, "b t c h w"], actions: Tensor, shifts: Tensor, *, side: int) -> View:
        """The view after a few frames and the t - 1 actions and shifts between them, on a canvas of `side` pixels."""
        b, t = frames.shape[:2]
        canvas = Canvas.blank(b, self.channels, self.size, side, frames.device).painted(frames[:, 0])
        for i in range(1, t):
            canvas = canvas.moved(shifts[:, i - 1], self.size).painted(frames[:, i])
        frames = torch.cat([frames[:, :1].expand(-1, max(0, PAST - t), -1, -1, -1), frames], 1)[:, -PAST:]
        shifts = nn.functional.pad(shifts, (0, 0, max(0, PAST + 1 - t), 0))[:, -PAST:]
        actions = nn.functional.pad(actions, (max(0, PAST - t), 0), value=self.no_action)[:, -(PAST - 1) :]
        return View(canvas, frames, shifts, actions)

    def _loss_of_one(self, target: Frames, look: Look, generator: torch.Generator | None) -> tuple[dict[str, Tensor], Frames]:
        b, device = len(target), target.device
        sigma = lognormal_sigma(b, self.P_mean, self.P_std, generator=generator, device=device)
        noise = torch.randn(target.shape, generator=generator, device=device)
        worn = self.context_noise * torch.rand(b, 1, 1, 1, generator=generator, device=device)
        seen = look.seen + worn * torch.randn(look.seen.shape, generator=generator, device=device)
        denoised = self.denoise(target + _wide(sigma) * noise, sigma, replace(look, seen=seen))
        weight = torch.where(look.diffused, self.unseen_weight / self.sigma_data**2, self.change_std**-2)
        error = (denoised - target).square()
        loss = (weight * error).mean()
        copied = (look.base - target).square().mean()
        return {"loss": loss, "error": error.detach().mean() / 4, "copied": copied / 4}, denoised.detach()

    def _forgetful(self, view: View, generator: torch.Generator | None) -> View:
        """Some worlds as they are after a prompt: older actions are not known."""
        hidden = torch.rand(len(view.actions), 1, generator=generator, device=view.actions.device) < self.forget
        return View(view.canvas, view.frames, view.shifts, view.actions.masked_fill(hidden, self.no_action))


def _unit(frames: UInt8[Tensor, "b c h w"]) -> Frames:
    return frames.float() / 127.5 - 1


def _bytes(frames: Frames) -> UInt8[Tensor, "b c h w"]:
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def _wide(scalars: Tensor) -> Tensor:
    return rearrange(scalars, "b -> b 1 1 1") if scalars.ndim else scalars
