"""Prompts of a world: any image or frames a person has, and windows of a dataset."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from dreamloom.datasets.store import open_dataset

TRIES = 8  # windows looked at for each prompt
AHEAD = 3  # frames after a window that are to be calm too


def to_prompt(prompt: Any, frame_shape: tuple[int, int, int]) -> UInt8[Tensor, "b t c h w"]:
    """Checks frames, puts the axes in order and resizes them.

    Args:
        prompt: uint8 array or tensor: (b, t, c, h, w), (t, c, h, w), (c, h, w) or (h, w, c).
        frame_shape: (c, h, w) that the world wants.

    Raises:
        ValueError: if dtype, number of axes or channels do not fit.
    """
    frames = torch.from_numpy(np.ascontiguousarray(prompt)) if isinstance(prompt, np.ndarray) else torch.as_tensor(prompt)
    channels = frame_shape[0]
    if frames.dtype != torch.uint8 or not 3 <= frames.ndim <= 5 or frames.numel() == 0:
        raise ValueError(
            "a prompt is uint8 of shape (b, t, c, h, w), (t, c, h, w), (c, h, w) or (h, w, c); "
            f"got {frames.dtype} of shape {tuple(frames.shape)}"
        )
    if frames.ndim == 3 and frames.shape[0] != channels:
        frames = frames.permute(2, 0, 1)
    if frames.shape[-3] != channels:
        raise ValueError(f"this world has {channels} channels, the prompt has shape {tuple(prompt.shape)}")
    frames = frames.reshape((1,) * (5 - frames.ndim) + frames.shape)
    return _resized(frames, frame_shape[1:])


def _resized(frames: UInt8[Tensor, "b t c h w"], size: tuple[int, int]) -> UInt8[Tensor, "b t c height width"]:
    if frames.shape[-2:] == size:
        return frames
    flat = frames.flatten(0, 1).float()
    shrinks = flat.shape[-2] > size[0] or flat.shape[-1] > size[1]
    mode = "area" if shrinks else "nearest"  # averages photographs down, keeps pixel art sharp on the way up
    return F.interpolate(flat, size, mode=mode).round().to(torch.uint8).unflatten(0, frames.shape[:2])


def choose_prompts(
    data: Path, count: int, length: int, stride: int, seed: int, *, fewer: bool = False
) -> UInt8[Tensor, "p t c h w"]:
    """Windows of frames from different episodes, each from the episode's first half; the one with most to be seen comes first.

    Of several windows that are drawn from an episode the calmest is taken, and of several episodes those with the calmest:
    whoever starts at rest stands on the ground, while a start in mid-air shows little, and a fall goes on whatever one does.

    Args:
        data: the dataset.
        count: windows.
        length: frames of each.
        stride: rows from one frame to the next.
        seed: of the choice.
        fewer: take as many as there are where there are fewer.

    Raises:
        ValueError: too few episodes are as long as two windows.
    """
    with open_dataset(data) as dataset:
        starts, ends = dataset.episodes
        rows = length * stride
        long = np.flatnonzero(ends - starts >= 2 * rows)
        if len(long) < count and not (fewer and len(long)):
            raise ValueError(f"{data} has {len(long)} episodes of at least {2 * rows} frames; {count} prompts need as many")
        random = np.random.default_rng(seed)
        calmest: dict[int, _Start] = {}
        for episode in np.resize(random.permutation(long), max(TRIES * count, 1)).tolist():
            first = int(random.integers(starts[episode], (starts[episode] + ends[episode]) // 2 - rows + 1))
            ahead = min(AHEAD, length)
            start = _Start.of(dataset.frames[first : first + rows + ahead * stride : stride], length)
            calmest[episode] = min(start, calmest.get(episode, start), key=lambda one: one.unrest)
    chosen = _calm_and_clear(list(calmest.values()), count)
    return torch.from_numpy(np.stack([start.frames for start in chosen])).permute(0, 1, 4, 2, 3).contiguous()


class _Start(NamedTuple):
    frames: UInt8[np.ndarray, "t h w c"]
    unrest: float  # mean difference of neighbouring frames around the last one, grey levels
    detail: float  # mean difference of neighbouring pixels of the last one, grey levels

    @classmethod
    def of(cls, frames: UInt8[np.ndarray, "s h w c"], length: int) -> "_Start":
        """A window, judged with the frames that followed it."""
        grey = frames.astype(np.float32).mean(-1)
        around, last = grey[max(0, length - 2) :], grey[length - 1]
        detail = sum(np.abs(np.diff(last, axis=axis)).mean() for axis in (0, 1) if last.shape[axis] > 1)
        return cls(frames[:length], float(np.abs(np.diff(around, axis=0)).mean()), float(detail))


def _calm_and_clear(starts: list[_Start], count: int) -> list[_Start]:
    """The calmest of those with something to be seen: nothing is calmer than a black screen."""
    least = np.median([start.detail for start in starts]) / 2
    ranked = sorted(starts, key=lambda start: (start.detail < least, start.unrest))
    return sorted(ranked[:count], key=lambda start: -start.detail)
