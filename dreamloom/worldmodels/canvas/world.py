"""A playable world on a canvas; see `dreamloom.worldmodels.canvas.denoiser`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.diffusion.solvers import Euler
from dreamloom.nn.build import Buildable
from dreamloom.worldmodels.canvas.denoiser import CanvasDenoiser, Look, View
from dreamloom.worldmodels.canvas.scenery import Scenery
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import draw
from dreamloom.worldmodels.pixel_world import PixelWorld
from dreamloom.worldmodels.playable import to_bytes
from dreamloom.worldmodels.world import Generators, Outcome, Sampling


@dataclass(frozen=True)
class CanvasState:
    """Where b imagined worlds stand.

    Attributes:
        view: what they know.
        scenery: what sprites cover.
        carried: (b, 2) what is left of the camera's moves after whole pixels, pixels (down, right).
    """

    view: View
    scenery: Scenery
    carried: Float[Tensor, "b 2"]

    @property
    def frame(self) -> UInt8[Tensor, "b c h w"]:
        """What the worlds show."""
        return self.view.frames[:, -1]


class CanvasWorld(PixelWorld, Buildable):
    """A playable world; see the World protocol for `reset` and `step`.

    Args:
        denoiser: of the next frame.
        latent_actions: labels frames with latent actions; None where the denoiser takes the dataset's true actions.
        steps: default Euler steps of what is diffused in a frame.
        sigma_min: last noise level but 0.
        sigma_max: first noise level.
        rho: curvature of the schedule.
        least_change: a pixel that would change by less than this of 255 grey levels in all colours stays as it is on the
            canvas, so that what stands still cannot fade.
        restore: a pixel that would change to a colour that its place had before, within so many grey levels, takes just that
            colour, so that sprites leave no traces; 0 for none of it.
        canvas: side of the canvas, in sides of a frame.
    """

    def __init__(
        self,
        denoiser: CanvasDenoiser,
        latent_actions: LatentActions | None = None,
        *,
        steps: int = 4,
        sigma_min: float = 0.02,
        sigma_max: float = 2.0,
        rho: float = 7.0,
        least_change: float = 8.0,
        restore: float = 40.0,
        canvas: int = 4,
    ):
        super().__init__(denoiser, latent_actions, steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        self.least_change, self.restore, self.side = least_change, restore, canvas * denoiser.size

    @torch.inference_mode()
    def reset(self, prompt: Any) -> CanvasState:
        """Starts worlds from frames of any size; see `World.reset`.

        Raises:
            ValueError: if the prompt is not uint8 frames of a known shape.
        """
        frames, actions = self.prompted(prompt)
        shifts = self.denoiser.shifts_of(frames.float() / 255)
        view = self.denoiser.begin(frames, actions, shifts, side=self.side)
        return CanvasState(view, Scenery(view.canvas), torch.zeros(len(frames), 2, device=self.device))

    @torch.inference_mode()
    def step(
        self,
        state: CanvasState,
        action: int | Int[Tensor, "b"],
        generator: Generators = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> tuple[CanvasState, Outcome]:
        """One new frame for every world; see `World.step`. The temperature scales the noise that what is diffused begins with.

        Raises:
            ValueError: if an action, the number of steps or the temperature is out of range.
        """
        view, denoiser = state.view, self.denoiser
        led = self.checked(action, len(view.frames))
        steps, temperature = self.asked(sampling)
        shift, carried = self._aimed(state, led)
        canvas = view.canvas.moved(shift, denoiser.size)
        look = denoiser.look(view, canvas, shift, led)
        x = self._drawn(look, steps, lambda _: temperature * draw(tuple(look.base.shape), generator, self.device, torch.randn))
        still = (x - look.base).abs().amax(1, keepdim=True) < self.least_change / 127.5
        base = to_bytes((look.base / 2 + 0.5).clamp(0, 1))
        frame = torch.where(still, base, to_bytes((x / 2 + 0.5).clamp(0, 1)))
        scenery, frame = state.scenery.restored(frame, base, shift, self.restore)
        return CanvasState(view.followed(canvas, frame, shift, led), scenery, carried), Outcome(frame)

    def _drawn(self, look: Look, steps: int, noise: Callable[[int], Tensor]) -> Float[Tensor, "b c h w"]:
        """The new frame. Only what is diffused takes more than one step, and where nothing is, one is all."""
        regressed: list[Tensor] = []

        def denoise(change: Tensor, sigma: Tensor) -> Tensor:
            denoised = self.denoiser.denoise(look.base + change, sigma, look).clamp(-1, 1)
            regressed.append(denoised)
            return denoised - look.base

        steps = steps if look.diffused.any() else 1
        solver = Euler(steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)
        return torch.where(look.diffused, look.base + solver(denoise, noise), regressed[0])

    def _aimed(self, state: CanvasState, action: Int[Tensor, "b"]) -> tuple[Int[Tensor, "b 2"], Float[Tensor, "b 2"]]:
        if self.denoiser.camera is None:
            return torch.zeros_like(state.view.shifts[:, -1]), state.carried
        return self.denoiser.camera.choose(self.denoiser.aim(state.view, action), state.carried)
