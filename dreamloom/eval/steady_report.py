"""The report's part on long rollouts: rows of the table, the plot of distances over frames, and the strips of frames."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from dreamloom.datasets.atomic import atomic_path
from dreamloom.eval.plots import grid_frames

Row = tuple[str, str, str]
_COLOURS = {"real": "#7f7f7f", "own actions": "#1f77b4", "held": "#ff7f0e"}
_LABELS = {"real": "real game", "own actions": "dream, actions of the data", "held": "dream, one action held"}


def steady_rows(m: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of the table: the dream under the data's actions, the real game beside it, then held actions."""
    dream, real = m["steady"], m["steady_real"]
    for who, scores, beside in (("", dream, real), (", one action held", dream["held"], None)):
        if scores["frames"]["median"] is not None:
            value = f"{scores['frames']['median']:.0f} of {dream['length']}"
            yield f"steady frames{who}, median", value, _beside(scores["frames"], beside and beside["frames"], "{:.0f}")
        for key, text in (("blank", "blank frames"), ("stuck", "stuck steps")):
            if scores[key]["mean"] is not None:
                yield f"{text}{who}", f"{scores[key]['mean']:.1%}", _beside(scores[key], beside and beside[key], "{:.1%}")


def _beside(interval: Mapping[str, float], real: Mapping[str, float] | None, form: str) -> str:
    text = f"95% interval {form.format(interval['low'])} to {form.format(interval['high'])}"
    value = None if real is None else real.get("median", real.get("mean"))
    return text if value is None else f"{text}; real {form.format(value)}"


def steady_lines(m: Mapping[str, Any]) -> list[str]:
    """The section "Steadiness" of `report.md`."""
    dream = m["steady"]
    moving = ", ".join(dream["moving_actions"]) or "none"
    return [
        "",
        "## Steadiness",
        "",
        f"{dream['rollouts']} rollouts of {dream['length']} frames under the data's own actions, and half as many under one "
        f"held action. Actions that move things in real play: {moving}.",
        "",
        *_held_table(dream),
        *(["", "![distance to the nearest real frame](steady.png)"] if m["steady_curves"] else []),
        "",
        "One rollout a row; columns are frames 1, 2, 4, 8 and so on, doubling.",
        "",
        "![long rollouts](steady_strips.png)",
    ]


def _held_table(dream: Mapping[str, Any]) -> Iterator[str]:
    yield "| held action | rollouts | steady frames, median | blank frames | stuck steps |"
    yield "|-|-|-|-|-|"
    for name, row in dream["held"]["by_action"].items():
        frames = "-" if row["frames"] is None else f"{row['frames']:.0f}"
        stuck = "-" if row["stuck"] is None else f"{row['stuck']:.1%}"
        yield f"| {name} | {row['rollouts']} | {frames} | {row['blank']:.1%} | {stuck} |"


def plot_steadiness(curves: Mapping[str, Any]) -> Figure:
    """Distance of features to the nearest real frame over frames: medians and quartiles over rollouts."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    panel = figure.subplots()
    for kind in (kind for kind in _LABELS if kind in curves):
        row = curves[kind]
        panel.plot(row["frame"], row["median"], color=_COLOURS[kind], label=_LABELS[kind])
        panel.fill_between(row["frame"], row["low"], row["high"], color=_COLOURS[kind], alpha=0.2)
    panel.axhline(curves["far"], color="#d62728", linestyle="--", label="99% of held-out real frames are nearer")
    panel.set(xlabel="frame of the rollout", ylabel="distance to the nearest real frame")
    panel.set_title("How far long rollouts are from real frames")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def save_strips(path: Path, strips: Mapping[str, UInt8[Tensor, "n c h w"]]) -> None:
    """Writes a picture with a labelled row of frames for each rollout."""
    image = grid_frames({label: frames[:, None] for label, frames in strips.items()})[0]
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
