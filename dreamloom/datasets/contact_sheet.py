"""A grid of frames, to see at a glance what a dataset of pictures holds."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from dreamloom.datasets.store import Dataset

if TYPE_CHECKING:  # which loads torch
    from dreamloom.datasets.augment import Augmentation

_ROWS, _COLUMNS = 8, 12  # episodes, and frames of each, on the contact sheet
_TILE = 96  # smallest side of a frame on the sheet, in pixels


def contact_sheet(data: Dataset) -> Image.Image:
    """A grid of frames: a row is one episode in time order from its first frame to its last, captioned.

    The episodes are spread evenly over the file.
    """
    starts, ends = data.episodes
    chosen = np.unique(np.linspace(0, len(starts) - 1, _ROWS).round().astype(int))
    lines = []
    for episode in chosen.tolist():
        start, end = int(starts[episode]), int(ends[episode])
        rows = np.unique(np.linspace(start, end - 1, _COLUMNS).round().astype(int))
        lines.append((_caption(data, episode, start, end), data.frames[rows]))
    return _sheet(lines)


def augmentation_sheet(data: Dataset, seed: int = 0) -> Image.Image:
    """A grid of frames spread evenly over the file: a row is one augmentation of them, captioned; the first is none."""
    import torch
    from einops import rearrange

    rows = np.unique(np.linspace(0, len(data) - 1, _COLUMNS).round().astype(int))
    frames = rearrange(torch.from_numpy(data.frames[rows]), "b h w c -> b c h w") / 255
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for one in every_augmentation():
        drawn = one.draw(len(frames), generator, device="cpu", size=(frames.shape[2], frames.shape[3]))
        changed = rearrange((one(frames, drawn) * 255).round().to(torch.uint8), "b c h w -> b h w c")
        settings = ", ".join(f"{k} {v}" for k, v in vars(one).items() if isinstance(v, int | float) and k != "training")
        lines.append((f"{type(one).__name__}   {settings}", changed.numpy()))
    return _sheet(lines)


def every_augmentation() -> "list[Augmentation]":
    """One of each kind, as they are by default."""
    from dreamloom.datasets import augment as a

    moved = [a.Shift(), a.Crop(), a.Flip(), a.Rotation(), a.Rotation(degrees=15.0), a.Cutout(), a.ColourCutout()]
    return [a.Identity(), *moved, a.Greyscale(), a.ColourJitter(), a.RandomConvolution(), a.Overlay()]


def _sheet(lines: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Lines of a caption and frames (n, h, w, 3)."""
    height, width = lines[0][1].shape[1:3]
    scale = -(-_TILE // min(height, width))
    tile, caption, gap = (width * scale, height * scale), 16, 2
    sheet = Image.new("RGB", (_COLUMNS * (tile[0] + gap) + gap, len(lines) * (tile[1] + caption + gap)), "#181818")
    draw = ImageDraw.Draw(sheet)
    for line, (words, frames) in enumerate(lines):
        top = line * (tile[1] + caption + gap)
        draw.text((gap, top + 2), words, fill="#c8c8c8")
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize(tile, Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + column * (tile[0] + gap), top + caption))
    return sheet


def _caption(data: Dataset, episode: int, start: int, end: int) -> str:
    parts = [f"episode {episode}", f"rows {start}-{end - 1}"]
    if "level_seed" in data.infos:
        parts.append(f"level {data.infos['level_seed'][start]}")
    if data.rewards is not None:
        parts.append(f"return {data.rewards[start:end].sum():.3g}")
    return "   ".join([*parts, "terminal" if data.terminals[end - 1] else "timed out or cut"])
