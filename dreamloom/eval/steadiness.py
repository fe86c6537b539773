"""Steadiness of long rollouts: how long frames look like real ones, how many are blank, and how often nothing moves.

The three questions are about frames alone, so that rollouts of a world and of the real game answer them alike.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

RUNNING = 4  # frames in a row that must be far from real ones
STILL = 16  # steps in a row without motion that count as stuck
CHANGED = 16  # levels of 255 by which a pixel must differ to have changed
LEAST = 0.005  # share of the pixels that must have changed for something to have moved


def contrast(frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """Deviation over the pixels of each frame, 0 to 127.5; the root of the mean square over colour channels."""
    rows = [x.float().flatten(2).var(-1, correction=0).mean(-1).sqrt() for x in frames]  # clip by clip, to save memory
    return torch.stack(rows)


def motion(frames: UInt8[Tensor, "b t c h w"]) -> Bool[Tensor, "b s"]:
    """Whether anything moved between neighbouring frames: at least `LEAST` of the pixels changed by more than `CHANGED`."""
    shares = [(x[1:].short() - x[:-1].short()).abs().amax(1).gt(CHANGED).flatten(1).float().mean(-1) for x in frames]
    return torch.stack(shares) >= LEAST


def nearest(features: Float[Tensor, "n d"], bank: Float[Tensor, "m d"], *, part: int = 512) -> Float[Tensor, "n"]:
    """Euclidean distance of each row to the nearest row of the bank."""
    if not len(features):
        return features.new_zeros(0)
    return torch.cat([torch.cdist(rows, bank).amin(1) for rows in features.split(part)])


def departures(
    distance: Callable[[Int[Tensor, "n"], Int[Tensor, "n"]], Float[Tensor, "n"]], count: int, length: int, limit: float
) -> tuple[Int[Tensor, "b"], Float[Tensor, "b t"]]:
    """The first frame from which rollouts are far from real frames, `RUNNING` frames in a row.

    Only every fourth frame is looked at, and those around one that is far: of any four in a row, one is a fourth frame, so
    that the answer is that of all frames at little more than a quarter of the cost.

    Args:
        distance: of frames, named by rollout and place.
        count: b, rollouts.
        length: t, frames of each.
        limit: a frame is far beyond it.

    Returns:
        The number of that frame, counted from 1, or `length` where there is none; and the distances, NaN where not looked.
    """
    seen = torch.full((count, length), torch.nan)
    first = torch.full((count,), length)
    looked = torch.arange(length)[RUNNING - 1 :: RUNNING]
    _look(seen, torch.arange(count), looked, distance)
    for column in looked.tolist():
        rows = torch.nonzero((seen[:, column] > limit) & (first == length))[:, 0]
        around = torch.arange(column - RUNNING + 1, min(length, column + RUNNING))
        _look(seen, rows, around, distance)
        runs = (seen[rows][:, around] > limit).unfold(1, RUNNING, 1).all(-1)
        found = runs.any(1)
        first[rows[found]] = column - RUNNING + 2 + runs[found].int().argmax(1)
    return first, seen


def _look(seen: Tensor, rows: Tensor, columns: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Fills in the distances of these frames that are not known yet."""
    row, column = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    new = seen[row, column].isnan()
    if new.any():
        seen[row[new], column[new]] = distance(row[new], column[new])


def moving_actions(actions: Int[Tensor, "b s"], moved: Bool[Tensor, "b s"], count: int) -> Bool[Tensor, "a"]:
    """The actions that move things: something moved in at least half of the real steps that took them.

    Args:
        actions: of real steps.
        moved: whether something moved in them.
        count: number of actions.
    """
    took = torch.bincount(actions.flatten(), minlength=count)
    stirred = torch.bincount(actions.flatten(), weights=moved.flatten().double(), minlength=count)
    return (took > 0) & (stirred >= took / 2)


def stuck(moved: Bool[Tensor, "b s"], meant: Bool[Tensor, "b s"]) -> Float[Tensor, "b"]:
    """Of the steps whose action moves things, the share that lies in `STILL` or more steps without motion.

    Args:
        moved: whether something moved in a step.
        meant: whether its action is one that moves things.

    Returns:
        One share a rollout, NaN where it has no such step.
    """
    inside = torch.zeros_like(moved)
    if moved.shape[1] >= STILL:
        begun = (~moved).unfold(1, STILL, 1).all(-1).float()
        inside = F.max_pool1d(F.pad(begun, (STILL - 1, STILL - 1))[:, None], STILL, stride=1)[:, 0] > 0
    return (inside & meant).sum(1) / meant.sum(1)
