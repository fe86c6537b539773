"""A picture of a dataset of vectors: rewards, returns over time, and the range of every dimension."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dreamloom.datasets.summary import Summary

_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "#9a9a9a"


def overview(
    title: str,
    columns: Mapping[str, Summary],
    *,
    returns: np.ndarray | None = None,
    constants: tuple[float, float] | None = None,
    actions: Mapping[str, int] | None = None,
) -> Figure:
    """Draws a dataset.

    Args:
        title: of the picture.
        columns: summaries of `observations`, `rewards` and, where they are continuous, `actions`.
        returns: (e,) of the episodes in order of time; None for rows that do not follow one another.
        constants: returns of a random and of an expert policy, for a second scale.
        actions: name of each discrete action -> how often it is taken.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    figure.suptitle(title)
    if returns is not None:
        _returns(panels[0, 0], returns, constants)
    else:
        _correlations(panels[0, 0], columns)
    if "rewards" in columns:
        _rewards(panels[0, 1], columns["rewards"])
    else:
        panels[0, 1].set_axis_off()
    _ranges(panels[1, 0], columns["observations"], "observations")
    if "actions" in columns:
        _shares(panels[1, 1], columns["actions"])
    elif actions:
        _bars(panels[1, 1], actions)
    else:
        panels[1, 1].set_axis_off()
    return figure


def _returns(panel: Axes, returns: np.ndarray, constants: tuple[float, float] | None) -> None:
    count = len(returns)
    panel.scatter(range(count), returns, s=8, color=_GREY, label="an episode", alpha=min(1.0, 0.2 + 300 / count))
    width = max(1, count // 20)
    if count >= 10:
        smooth = np.convolve(returns, np.ones(width) / width, mode="valid")
        panel.plot(np.arange(len(smooth)) + (width - 1) / 2, smooth, color=_RED, label=f"mean of {width}")
        panel.legend()
    panel.set_title("returns of the episodes, in order of time")
    panel.set_xlabel("episode")
    panel.set_ylabel("return")
    panel.grid(alpha=0.3)
    if constants:
        low, high = constants

        def score(returns: Any) -> Any:
            return 100 * (returns - low) / (high - low)

        def back(scores: Any) -> Any:
            return low + scores * (high - low) / 100

        panel.secondary_yaxis("right", functions=(score, back)).set_ylabel("normalised score")


def _correlations(panel: Axes, columns: Mapping[str, Summary]) -> None:
    names = [name for name in ("observations", "actions", "rewards") if name in columns]
    values = np.concatenate([columns[name].sample for name in names], axis=1)
    finite = np.isfinite(values)  # what is not counts as the mean
    counts, values = np.maximum(finite.sum(axis=0), 1), np.where(finite, values, 0)
    centred = np.where(finite, values - values.sum(axis=0) / counts, 0)
    spread = np.sqrt((centred**2).sum(axis=0) / counts)
    scaled = centred / np.where(spread > 0, spread, 1)
    table = scaled.T @ scaled / max(1, len(scaled))
    picture = panel.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
    panel.figure.colorbar(picture, ax=panel, shrink=0.8)
    edges = np.cumsum([0, *(columns[name].mean.size for name in names)])
    for edge in edges[1:-1]:
        panel.axhline(edge - 0.5, color="k", linewidth=0.6)
        panel.axvline(edge - 0.5, color="k", linewidth=0.6)
    panel.set_yticks((edges[1:] + edges[:-1] - 1) / 2, names)
    panel.set_xticks([])
    panel.set_title("correlations (rows do not follow one another)")


def _rewards(panel: Axes, rewards: Summary) -> None:
    values = rewards.sample[np.isfinite(rewards.sample)]
    panel.hist(values, bins=80, color=_BLUE)
    panel.set_yscale("log")
    panel.set_title("rewards")
    panel.set_ylabel(f"rows (of {len(values):,} drawn)")
    panel.axvline(float(rewards.mean[0]), color=_RED, label=f"mean {rewards.mean[0]:.3g}")
    panel.legend()
    panel.grid(alpha=0.3)


def _ranges(panel: Axes, column: Summary, name: str) -> None:
    """Whole range as a line, nine tenths as a bar, the median as a dash; linear near zero, so that small ones are seen."""
    d = np.arange(column.mean.size)
    low, median, high = column.quantiles(0.05, 0.5, 0.95)
    panel.vlines(d, column.low, column.high, color=_GREY, linewidth=1, label="min to max")
    panel.bar(d, high - low, bottom=low, width=0.6, color=_BLUE, alpha=0.7, label="5% to 95%")
    panel.hlines(median, d - 0.3, d + 0.3, color=_RED, label="median")
    panel.set_yscale("symlog", linthresh=max(1e-3, float(np.median(column.std))))
    panel.set_title(f"{name}: range of each dimension")
    panel.set_xlabel("dimension")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend()
    panel.grid(alpha=0.3)


def _shares(panel: Axes, column: Summary) -> None:
    """A histogram of every dimension, as a row of a heat map: most actions have bounds, and many policies sit on them."""
    finite = column.sample[np.isfinite(column.sample)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 61)
    table = np.stack([np.histogram(values[np.isfinite(values)], edges)[0] for values in column.sample.T]) / len(column.sample)
    picture = panel.imshow(table, aspect="auto", cmap="Blues", vmin=0, extent=(edges[0], edges[-1], len(table) - 0.5, -0.5))
    panel.figure.colorbar(picture, ax=panel, label="share of rows")
    panel.set_title("actions: histogram of each dimension")
    panel.set_ylabel("dimension")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(panel: Axes, actions: Mapping[str, int]) -> None:
    panel.barh(list(actions), list(actions.values()), color=_BLUE)
    panel.invert_yaxis()
    panel.set_xlabel("rows")
    panel.set_title("actions")
