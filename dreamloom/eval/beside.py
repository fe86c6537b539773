"""Several worlds in one table: reports of `dreamloom eval world` on the same clips, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What must be equal, or figures cannot stand in one row.
_EQUAL = ("data", "clips", "context", "stride", "seed", "inverse_data", "level_range")
# The same of long rollouts, where both reports have them.
_EQUAL_STEADY = ("rollouts", "length")
# Row -> key in metrics.json (dots descend), and how to print it.
_ROWS = {
    "actions": ("world.actions", "{}"),
    "weights, M": ("world.parameters", "{:.2f}"),
    "training, CPU minutes": ("world.train_cpu_s", "{:.1f}"),
    "training, minutes by the clock": ("world.train_wall_s", "{:.1f}"),
    "steps a frame": ("settings.sampling.steps", "{}"),
    "rollout PSNR, 1 ahead, dB": ("rollout.psnr.1", "{:.2f}"),
    "rollout PSNR, 4 ahead, dB": ("rollout.psnr.4", "{:.2f}"),
    "rollout PSNR, 16 ahead, dB": ("rollout.psnr.16", "{:.2f}"),
    "rollout PSNR, 64 ahead, dB": ("rollout.psnr.64", "{:.2f}"),
    "pooled PSNR, 1 ahead, dB": ("rollout.psnr_pooled.1", "{:.2f}"),
    "pooled PSNR, 4 ahead, dB": ("rollout.psnr_pooled.4", "{:.2f}"),
    "pooled PSNR, 16 ahead, dB": ("rollout.psnr_pooled.16", "{:.2f}"),
    "pooled PSNR, 64 ahead, dB": ("rollout.psnr_pooled.64", "{:.2f}"),
    "... of the last frame repeated, 1 ahead, dB": ("copy_last.psnr.1", "{:.2f}"),
    "... of the last frame repeated, 16 ahead, dB": ("copy_last.psnr.16", "{:.2f}"),
    "... pooled, 1 ahead, dB": ("copy_last.psnr_pooled.1", "{:.2f}"),
    "... pooled, 16 ahead, dB": ("copy_last.psnr_pooled.16", "{:.2f}"),
    "ceiling of codes or latents, dB": ("tokenizer.psnr", "{:.2f}"),
    "EffNet-FD of dreams": ("effnet_fd.both", "{:.1f}"),
    "delta_4 PSNR, dB": ("delta4_psnr.mean", "{:.2f}"),
    "... its 95% interval, from": ("delta4_psnr.low", "{:.2f}"),
    "... to": ("delta4_psnr.high", "{:.2f}"),
    "action-swap accuracy": ("action_swap.accuracy", "{:.1%}"),
    "steady frames, median": ("steady.frames.median", "{:.0f}"),
    "... of their 95% interval, from": ("steady.frames.low", "{:.0f}"),
    "... of their 95% interval, to": ("steady.frames.high", "{:.0f}"),
    "... of the real game, frames": ("steady_real.frames.median", "{:.0f}"),
    "blank frames": ("steady.blank.mean", "{:.1%}"),
    "... of the real game, blank": ("steady_real.blank.mean", "{:.1%}"),
    "stuck steps": ("steady.stuck.mean", "{:.1%}"),
    "... of the real game, stuck": ("steady_real.stuck.mean", "{:.1%}"),
    "a frame, median, ms": ("latency_ms.p50", "{:.0f}"),
    "frames a second, 16 worlds side by side": ("latency_ms.side_by_side.frames_per_s", "{:.0f}"),
}
_UNITS = {"world.parameters": 1e-6, "world.train_cpu_s": 1 / 60, "world.train_wall_s": 1 / 60}


def read_reports(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The metrics in folders that `dreamloom eval world` wrote.

    Raises:
        ValueError: a folder holds none.
    """
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            raise ValueError(f"--beside: {folder} holds no metrics.json of `dreamloom eval world`")
    return [json.loads((folder / "metrics.json").read_text()) for folder in folders]


def require_alike(worlds: Sequence[dict[str, Any]]) -> None:
    """Figures can stand in one row only if they are of the same clips.

    Args:
        worlds: contents of their `metrics.json`.

    Raises:
        ValueError: they are not.
    """
    for world in worlds:
        for key in _EQUAL:
            seen, wanted = world["settings"][key], worlds[-1]["settings"][key]
            if seen != wanted:
                raise ValueError(f"--beside: the report of {world['world']['name']} has {key} {seen}, this one {wanted}")
        for key in _EQUAL_STEADY if "steady" in world and "steady" in worlds[-1] else ():
            seen, wanted = world["steady"][key], worlds[-1]["steady"][key]
            if seen != wanted:
                raise ValueError(f"--beside: the report of {world['world']['name']} has steady {key} {seen}, this one {wanted}")


def table_of_worlds(worlds: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, one column a world; "-" where a world has no such figure.

    Args:
        worlds: contents of their `metrics.json`.
    """
    names = [world["world"]["name"] for world in worlds]
    rows = [["", *names], ["-"] * (len(names) + 1)]
    for title, (key, form) in _ROWS.items():
        cells = [_cell(world, key, form) for world in worlds]
        if set(cells) != {"-"}:
            rows.append([title, *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(metrics: dict[str, Any], key: str, form: str) -> str:
    value: Any = metrics
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "-" if value is None else form.format(value * _UNITS[key] if key in _UNITS else value)
