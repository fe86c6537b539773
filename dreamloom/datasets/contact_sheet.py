"""A grid of frames, to see at a glance what a dataset of pictures holds."""

import numpy as np
from PIL import Image, ImageDraw

from dreamloom.datasets.store import Dataset

_ROWS, _COLUMNS = 8, 12  # episodes, and frames of each, on the contact sheet
_TILE = 96  # smallest side of a frame on the sheet, in pixels


def contact_sheet(data: Dataset) -> Image.Image:
    """A grid of frames: a row is one episode in time order from its first frame to its last, captioned.

    The episodes are spread evenly over the file.
    """
    starts, ends = data.episodes
    chosen = np.unique(np.linspace(0, len(starts) - 1, _ROWS).round().astype(int))
    height, width = data.frames.shape[1:3]
    scale = -(-_TILE // min(height, width))
    tile, caption, gap = (width * scale, height * scale), 16, 2
    sheet = Image.new("RGB", (_COLUMNS * (tile[0] + gap) + gap, len(chosen) * (tile[1] + caption + gap)), "#181818")
    draw = ImageDraw.Draw(sheet)
    for line, episode in enumerate(chosen.tolist()):
        top = line * (tile[1] + caption + gap)
        start, end = int(starts[episode]), int(ends[episode])
        draw.text((gap, top + 2), _caption(data, episode, start, end), fill="#c8c8c8")
        rows = np.unique(np.linspace(start, end - 1, _COLUMNS).round().astype(int))
        for column, frame in enumerate(data.frames[rows]):
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
