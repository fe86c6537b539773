"""Where the camera went between two frames, in whole pixels, and frames seen from another place."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

_LEVELS = (0.15, 0.35, 0.6)  # of brightness
_JUMP = 2e-4  # what a pixel of change from the last shift costs: periodic scenery fits at several shifts


@torch.no_grad()
def register(frames: Float[Tensor, "b t c h w"], reach: int) -> Int[Tensor, "b s 2"]:
    """The camera's shifts (down, right) from frame to frame: the next frame at [y, x] is this one at [y + down, x + right].

    Template matching where frames overlap, for all shifts at once by Fourier transforms. Frames are compared at a few levels of
    brightness, bright or not, which is about the absolute difference: squares would let a sprite that stays in the middle pull
    the scenery. Of shifts that fit alike, the one nearest to the shift before is taken.

    Args:
        frames: in [0, 1].
        reach: largest shift in each direction, pixels; less than half of a side.

    Raises:
        ValueError: the reach leaves no middle to compare.
    """
    b, t, _, h, w = frames.shape
    if not 0 <= 2 * reach < min(h, w):
        raise ValueError(f"reach {reach} must be less than half of the frame's sides {h} x {w}")
    levels = torch.tensor(_LEVELS, device=frames.device).view(-1, 1, 1)
    bright = (frames.float().mean(2, keepdim=True) > levels).float() * 2 - 1
    offsets = torch.arange(-reach, reach + 1, device=frames.device)
    sides = (h + reach, w + reach)  # room for the shifts, so that nothing comes in again on the other side
    spectra = torch.fft.rfft2(bright, s=sides)
    alike = torch.fft.irfft2((spectra[:, :-1] * spectra[:, 1:].conj()).mean(2), s=sides)[..., offsets, :][..., offsets]
    agreement = alike / ((h - offsets.abs())[:, None] * (w - offsets.abs()))
    shifts = [torch.zeros(b, 2, dtype=torch.long, device=frames.device)]
    for i in range(t - 1):
        change = [(offsets - shifts[-1][:, k, None]).abs() for k in range(2)]
        fit = agreement[:, i] - _JUMP * (change[0][:, :, None] + change[1][:, None, :])
        best = fit.flatten(1).argmax(1)
        shifts.append(torch.stack([best // len(offsets), best % len(offsets)], 1) - reach)
    return torch.stack(shifts[1:], 1) if t > 1 else shifts[0][:, None][:, :0]


def shifted(frames: Shaped[Tensor, "n c h w"], shifts: Int[Tensor, "n 2"]) -> Shaped[Tensor, "n c h w"]:
    """Frames as a camera sees them that moved by `shifts` (down, right); beyond their edges the edge goes on."""
    h, w = frames.shape[-2:]
    rows = (shifts[:, :1] + torch.arange(h, device=frames.device)).clamp(0, h - 1)
    columns = (shifts[:, 1:] + torch.arange(w, device=frames.device)).clamp(0, w - 1)
    n = torch.arange(len(frames), device=frames.device)[:, None, None]
    picked = frames.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
