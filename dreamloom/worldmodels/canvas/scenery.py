"""What sprites cover: the colour that each place had before, so that it comes back exactly when they have passed."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dreamloom.worldmodels.canvas.painting import Canvas

Frames = UInt8[Tensor, "b c h w"]
_SETTLED = 4  # frames for which a colour must have stood to count as scenery


@dataclass(frozen=True)
class Scenery:
    """The last settled colours of b worlds.

    Attributes:
        canvas: these colours; its marks are the frames for which the colour shown now has stood, up to 255.
    """

    canvas: Canvas

    def restored(self, frames: Frames, base: Frames, shifts: Int[Tensor, "b 2"], tolerance: float) -> tuple["Scenery", Frames]:
        """New frames, in which places that changed to nearly the colour of the scenery have just that colour.

        Args:
            frames: the new frames as they were predicted.
            base: what the canvas showed there before.
            shifts: how the cameras went there.
            tolerance: largest difference in any colour, grey levels of 255; 0 restores nothing.

        Returns:
            The scenery after these frames, and the frames.
        """
        here = self.canvas.moved(shifts, frames.shape[-1])
        colours, age = here.view(frames.shape[-1])
        near = (frames.int() - colours.int()).abs().amax(1, keepdim=True) <= tolerance
        covered = (base != colours).any(1, keepdim=True) & (frames != base).any(1, keepdim=True) & (age > 0)
        frames = torch.where(near & covered & (tolerance > 0), colours, frames)
        changed = (frames != base).any(1, keepdim=True)
        colours = torch.where(age == 0, frames, torch.where(changed & (age >= _SETTLED), base, colours))
        age = torch.where(changed | (age == 0), 1, age.clamp(max=254) + 1).to(torch.uint8)
        return Scenery(here.painted(colours, age)), frames
