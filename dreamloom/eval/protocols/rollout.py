"""Rollouts: a world starts from real frames and dreams on with real actions, other actions, or one action held.

Nothing here knows which model a world is: it takes the World protocol and the actions of each clip. Each clip has a generator
of its own, so that a dream does not depend on which others share its batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from dreamloom.datasets.types import Clip
from dreamloom.eval.psnr import psnr, psnr_of, squared_error, ssim
from dreamloom.worldmodels.world import Sampling, World

HORIZONS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Take:
    """Real clips, and what a world made of their first frames and their actions.

    Attributes:
        clip: the real frames, and the true actions where the file has them.
        actions: (b, t - 1) the actions between the frames, as the world takes them.
        context: real frames that a dream starts from.
        dream: (b, s, c, h, w) uint8, what the world showed instead of the last s = t - context frames.
    """

    clip: Clip
    actions: Int[Tensor, "b u"]
    context: int
    dream: UInt8[Tensor, "b s c h w"]

    @property
    def prompt(self) -> UInt8[Tensor, "b p c h w"]:
        """The frames that the world saw."""
        return self.clip.frames[:, : self.context]

    @property
    def truth(self) -> UInt8[Tensor, "b s c h w"]:
        """The frames that it did not see."""
        return self.clip.frames[:, self.context :]

    @property
    def led(self) -> Int[Tensor, "b s"]:
        """The actions that led to them."""
        return self.actions[:, self.context - 1 :]

    @property
    def copied(self) -> UInt8[Tensor, "b s c h w"]:
        """The baseline that repeats the last frame it saw."""
        return self.prompt[:, -1:].expand_as(self.truth)


@torch.no_grad()
def rollout(
    world: World,
    prompt: UInt8[Tensor, "b p c h w"],
    actions: Int[Tensor, "b s"],
    *,
    seed: int,
    sampling: Sampling,
    batch: int = 16,
    first: int = 0,
    description: str = "dreaming",
) -> UInt8[Tensor, "b s c h w"]:
    """Dreams of b worlds, on the CPU.

    Args:
        world: any world.
        prompt: frames to start from.
        actions: what to do, step by step.
        seed: with a clip's number, of its randomness.
        sampling: how frames are drawn.
        batch: worlds stepped at once.
        first: number of the first clip.
        description: of the progress bar.
    """
    parts = []
    with tqdm(total=actions.numel(), desc=description, unit="frame", leave=False) as progress:
        for rows in torch.arange(len(prompt)).split(batch):
            generators = [torch.Generator().manual_seed(1_000_003 * seed + first + int(row)) for row in rows]
            state, frames = world.reset(prompt[rows].to(world.device)), []
            for action in actions[rows].T:
                state, outcome = world.step(state, action.to(world.device), generators, sampling)
                frames.append(outcome.frame.cpu())
                progress.update(len(rows))
            parts.append(torch.stack(frames, 1))
    return torch.cat(parts)


def random_actions(shape: tuple[int, int], count: int, *, seed: int) -> Int[Tensor, "b s"]:
    """Actions drawn uniformly from the action set."""
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def likeness(truth: UInt8[Tensor, "b s c h w"], other: UInt8[Tensor, "b s c h w"]) -> dict[str, dict[str, float]]:
    """How like the truth frames are, s steps ahead, for each of `HORIZONS` that the clips reach.

    Returns:
        For each horizon (as text), over the frames that many steps ahead: `psnr`, the mean of their PSNR; `ssim`, the mean of
        their SSIM; `psnr_pooled`, the PSNR of their mean squared error, which equal frames cannot lift.
    """
    at = [h - 1 for h in HORIZONS if h <= truth.shape[1]]
    a, b = truth[:, at], other[:, at]
    rows = {
        "psnr": psnr(a, b).mean(0),
        "psnr_pooled": psnr_of(squared_error(a, b).mean(0)),
        "ssim": ssim(a, b).mean(0),
    }
    return {name: {str(i + 1): float(x) for i, x in zip(at, row, strict=True)} for name, row in rows.items()}


def merged(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float | None]]:
    """Tables of `likeness` as one: an earlier one has precedence, a horizon that none reaches is None."""
    names = tables[0]
    return {
        name: {str(h): next((t[name][str(h)] for t in tables if str(h) in t[name]), None) for h in HORIZONS} for name in names
    }


def curve(truth: UInt8[Tensor, "b s c h w"], other: UInt8[Tensor, "b s c h w"]) -> list[float]:
    """Mean PSNR of each step ahead."""
    return psnr(truth, other).mean(0).tolist()


def drift(truth: UInt8[Tensor, "b s c h w"], dream: UInt8[Tensor, "b s c h w"]) -> dict[str, object]:
    """How dreams decay beyond what the future's uncertainty explains.

    Returns:
        `psnr_slope`: dB a frame, least squares from step 4 on; `colour`: mean distance of the mean colours (0 to 255) and
        `sharpness`: ratio of mean absolute gradients, dream to real (1 is as sharp), at each horizon.
    """
    steps = np.arange(1, truth.shape[1] + 1)
    late = steps >= min(4, len(steps))
    fall = np.array(curve(truth, dream))[late]
    at = [h - 1 for h in HORIZONS if h <= len(steps)]
    colour = (_mean_colour(truth[:, at]) - _mean_colour(dream[:, at])).abs().mean((0, 2))
    ratio = _gradient(dream[:, at]).mean(0) / _gradient(truth[:, at]).mean(0).clamp_min(1e-6)
    return {
        "psnr_slope": float(np.polyfit(steps[late], fall, 1)[0]) if late.sum() > 1 else None,
        "colour": {str(i + 1): float(x) for i, x in zip(at, colour, strict=True)},
        "sharpness": {str(i + 1): float(x) for i, x in zip(at, ratio, strict=True)},
    }


def _mean_colour(frames: Tensor) -> Float[Tensor, "b t c"]:
    return reduce(frames.float(), "b t c h w -> b t c", "mean")


def _gradient(frames: Tensor) -> Float[Tensor, "b t"]:
    x = frames.float()
    across, down = x.diff(dim=-1).abs(), x.diff(dim=-2).abs()
    return reduce(across, "b t c h w -> b t", "mean") + reduce(down, "b t c h w -> b t", "mean")
