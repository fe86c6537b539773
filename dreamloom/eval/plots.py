"""Pictures of a report: plots as PNG, and the grid of dreams as GIF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dreamloom.datasets.atomic import atomic_path

# Line, colour and dash of each row of the likeness plot.
_ROWS = {
    "ceiling": ("tokenizer ceiling", "#7f7f7f", "--"),
    "rollout": ("dream, same actions", "#1f77b4", "-"),
    "copy_last": ("copy last frame", "#d62728", "-"),
    "random_actions": ("dream, random actions", "#ff7f0e", "-"),
}


def save_plot(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_likeness(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """PSNR over steps ahead: all clips near, a part of them far."""
    figure = Figure(figsize=(5.5 * len(curves), 3.8), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for panel, rows in zip(panels, curves.values(), strict=True):
        for name in [name for name in _ROWS if name in rows]:
            label, colour, dash = _ROWS[name]
            panel.plot(range(1, len(rows[name]) + 1), rows[name], dash, color=colour, label=label, marker=".")
        panel.set_xlabel("steps ahead")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("PSNR, dB")
    panels[0].legend()
    figure.suptitle("Likeness to the real frames, held-out levels")
    return figure


def plot_latent(scores: Mapping[str, Any], names: Sequence[str]) -> Figure:
    """Share of each latent action, and the true actions behind it where they are known."""
    known = "true_given_latent" in scores
    height = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(11 if known else 5, height), layout="constrained")
    panels = figure.subplots(1, 2 if known else 1, squeeze=False, width_ratios=[1, 2.4] if known else None)[0]
    labels = [f"{i}  {name}" for i, name in enumerate(names)]
    panels[0].barh(labels, scores["shares"], color="#1f77b4")
    panels[0].invert_yaxis()
    panels[0].set_xlabel("share of real frames")
    panels[0].set_title(f"usage entropy {scores['usage_entropy']:.2f}")
    if known:
        table = np.array(scores["true_given_latent"])
        _heat(panels[1], table, scores.get("true_names") or [str(i) for i in range(table.shape[1])])
        panels[1].set_title(f"true action given latent action, NMI {scores['nmi']:.2f}")
    return figure


def _heat(panel: Axes, table: np.ndarray, names: Sequence[str]) -> None:
    panel.imshow(table, cmap="Blues", vmin=0, vmax=max(0.5, table.max()), aspect="auto")
    panel.set_xticks(range(table.shape[1]), names[: table.shape[1]], rotation=45, ha="right")
    panel.set_yticks(range(len(table)))
    for (row, column), value in np.ndenumerate(table):
        if value >= 0.05:
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color="w" if value > 0.35 else "k")


def plot_latency(latency: Mapping[str, Any], fps: float) -> Figure:
    """Median and 95th percentile by refinement steps, with and without caches."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    panel = figure.subplots()
    for key, label, colour in (("by_steps", "cached", "#1f77b4"), ("uncached_by_steps", "uncached", "#d62728")):
        if key in latency:
            steps = [int(n) for n in latency[key]]
            p50, p95 = ([row[p] for row in latency[key].values()] for p in ("p50", "p95"))
            panel.plot(steps, p50, "o-", color=colour, label=label)
            panel.fill_between(steps, p50, p95, color=colour, alpha=0.2)
    panel.axhline(1000 / fps, color="#7f7f7f", linestyle="--", label=f"{fps:g} frames/s")
    panel.set(xscale="log", yscale="log", xlabel="steps a frame", ylabel="ms a frame, p50 to p95", title="Latency, one world")
    panel.set_xticks(steps, [str(n) for n in steps])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.minorticks_off()
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    return figure


def save_grid(path: Path, rows: Mapping[str, UInt8[Tensor, "b t c h w"]], *, fps: float) -> None:
    """Writes an animated GIF: a labelled row for each entry, a column for each clip.

    Args:
        path: the .gif file.
        rows: label to clips of equal shape.
        fps: frames a second.
    """
    images = grid_frames(rows)
    # One palette for all frames: with one a frame, flat areas flicker.
    sample = Image.fromarray(np.concatenate([np.asarray(image) for image in images[:: max(1, len(images) // 4)]]))
    palette = sample.quantize(256, dither=Image.Dither.NONE)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with atomic_path(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def grid_frames(rows: Mapping[str, UInt8[Tensor, "b t c h w"]]) -> list[Image.Image]:
    """The pictures of `save_grid`, one a step."""
    first = next(iter(rows.values()))
    scale = max(1, 128 // first.shape[-1])
    font = ImageFont.load_default(size=15)
    margin = 16 + max(int(font.getlength(label)) for label in rows)
    strips = [_strip(clips, scale) for clips in rows.values()]
    gap, (height, width) = 6, strips[0].shape[1:3]
    images = []
    for t in range(first.shape[1]):
        canvas = Image.new("RGB", (margin + width, (height + gap) * len(strips) - gap), "#14161a")
        draw = ImageDraw.Draw(canvas)
        for i, (label, strip) in enumerate(zip(rows, strips, strict=True)):
            top = i * (height + gap)
            canvas.paste(Image.fromarray(strip[t]), (margin, top))
            draw.text((margin - 8, top + height // 2), label, fill="#e8eaed", font=font, anchor="rm")
        images.append(canvas)
    return images


def _strip(clips: UInt8[Tensor, "b t c h w"], scale: int, gap: int = 4) -> np.ndarray:
    """Clips side by side, enlarged without blur: (t, h, w, 3)."""
    large = clips.numpy().repeat(scale, -1).repeat(scale, -2)
    padded = np.pad(large, [(0, 0)] * 4 + [(0, gap)])
    strip = rearrange(padded, "b t c h w -> t h (b w) c")[:, :, :-gap]
    return np.ascontiguousarray(np.broadcast_to(strip, (*strip.shape[:3], 3)))
