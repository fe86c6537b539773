"""Pictures of fidelity: columns, correlations, dynamics, distances, and all figures side by side."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamloom.eval.fidelity.marginals import correlation
from dreamloom.eval.fidelity.scores import Findings

# Label and colour of each set of rows.
_STYLE = {
    "floor": ("real (floor)", "#7f7f7f"),
    "synthetic": ("synthetic", "#1f77b4"),
    "copula": ("copula", "#ff7f0e"),
    "baseline": ("noise copies", "#d62728"),
}
_REAL = "#c8ccd2"
# Below it, errors in the simulator are float32's rounding of real rows.
_ROUNDING = 1e-8
# Columns in the grid of all marginals; wider data shows its worst ones.
_GRID = 64


def all_plots(found: Findings) -> dict[str, Figure]:
    """Every plot that can be made, by file name."""
    drawn = {name: plot(found) for name, plot in _PLOTS.items() if name != "dynamics" or found.dynamics}
    return drawn


def plot_summary(found: Findings) -> Figure:
    """The six figures of each set of rows."""
    panels = {
        "KS, mean": ("ks", "mean"),
        "Wasserstein, sd": ("wasserstein", "mean"),
        "correlation distance": ("correlation", "distance"),
        "dynamics MSE (log)": ("dynamics", "mse"),
        "distance to nearest, ratio": ("nearest", "ratio"),
        "C2ST, AUC": ("c2st", "auc"),
    }
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    for axes, (title, (section, name)) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        values = {key: found.scores[key][section].get(name) for key in _STYLE}
        _bars(axes, title, values)
    figure.suptitle("Lower is better; but nearest: 1 is as new as real rows, near 0 memorised; C2ST: 0.5 is indistinguishable")
    return figure


def _bars(axes: Axes, title: str, values: dict[str, float | None]) -> None:
    axes.set_title(title, size=10)
    shown = {key: value for key, value in values.items() if value is not None}
    if not shown:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#7f7f7f")
        axes.set_axis_off()
        return
    log = "log" in title
    bars = axes.bar(
        [_STYLE[key][0] for key in shown],
        [max(value, _ROUNDING) if log else value for value in shown.values()],
        color=[_STYLE[key][1] for key in shown],
    )
    axes.bar_label(bars, [f"{value:.3g}" for value in shown.values()], size=8, padding=1)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    if log:
        axes.set(yscale="log", ylim=(_ROUNDING, 10 * max(1e-3, *shown.values())))
    if "ratio" in title or "AUC" in title:
        axes.axhline(1 if "ratio" in title else 0.5, color="k", linewidth=0.8, linestyle="--")


def plot_marginals_worst(found: Findings) -> Figure:
    """The eight columns that synthetic rows get most wrong, with all sets of rows."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, column in zip(figure.subplots(2, 4).flat, _worst_first(found)[:8], strict=False):
        _histogram(axes, found, column, ["baseline", "copula", "synthetic"])
    _legend(figure, figure.axes[0], "Columns with the largest KS distance (z-scores)")
    _drop_empty(figure)
    return figure


def plot_marginals(found: Findings) -> Figure:
    """All columns, real and synthetic."""
    columns = sorted(_worst_first(found)[:_GRID])
    rows = -(-len(columns) // 8)
    figure = Figure(figsize=(14, 1.5 * rows + 0.6), layout="constrained")
    for axes, column in zip(figure.subplots(rows, 8, squeeze=False).flat, columns, strict=False):
        _histogram(axes, found, column, ["synthetic"], size=8)
    part = "" if len(columns) == len(found.columns.names) else f": the {_GRID} worst of {len(found.columns.names)}"
    _legend(figure, figure.axes[0], f"Columns{part} (z-scores; KS distance)")
    _drop_empty(figure)
    return figure


def _worst_first(found: Findings) -> list[int]:
    distances = list(found.scores["synthetic"]["ks"]["columns"].values())
    return sorted(range(len(distances)), key=lambda column: -distances[column])


def _histogram(axes: Axes, found: Findings, column: int, names: list[str], size: int = 10) -> None:
    real = found.unseen[:, column]
    # Tails would leave the body of the distribution in a few bins.
    low, high = np.quantile(np.concatenate([real, found.rows["synthetic"][:, column]]), [0.002, 0.998])
    bins = np.linspace(low - 1e-3, high + 1e-3, 50).tolist()
    axes.hist(real.clip(low, high), bins, density=True, histtype="stepfilled", color=_REAL, label="real, held out")
    for name in names:
        label, colour = _STYLE[name]
        values = found.rows[name][:, column].clip(low, high)
        width = 1.6 if name == "synthetic" else 1
        axes.hist(values, bins, density=True, histtype="step", color=colour, label=label, linewidth=width)
    name = found.columns.names[column]
    axes.set_title(f"{name}  {found.scores['synthetic']['ks']['columns'][name]:.3f}", size=size, pad=3)
    axes.set_yticks([])
    axes.tick_params(labelsize=7, length=2)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=5, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")


def _drop_empty(figure: Figure) -> None:
    for axes in list(figure.axes):
        if not axes.has_data():
            axes.remove()


def plot_correlation(found: Findings) -> Figure:
    """Correlation matrices of real and synthetic rows, and their difference."""
    real, synthetic = correlation(found.unseen), correlation(found.rows["synthetic"])
    difference = synthetic - real
    figure = Figure(figsize=(15, 5), layout="constrained")
    limit = max(0.05, float(np.abs(difference).max()))
    panels = [("real, held out", real, 1.0), ("synthetic", synthetic, 1.0), ("synthetic - real", difference, limit)]
    for axes, (title, values, most) in zip(figure.subplots(1, 3), panels, strict=True):
        image = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        _groups(axes, found.columns.names)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, shrink=0.8)
    distance = found.scores["synthetic"]["correlation"]["distance"]
    floor = found.scores["floor"]["correlation"]["distance"]
    figure.suptitle(f"Correlations of columns: mean difference {distance:.4f}, floor {floor:.4f}")
    return figure


def _groups(axes: Axes, names: tuple[str, ...]) -> None:
    """Lines between s, a, r and s', and their names."""
    kinds = [name.rstrip("0123456789=") for name in names]
    starts = [i for i, kind in enumerate(kinds) if not i or kind != kinds[i - 1]]
    ends = [*starts[1:], len(names)]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="k", linewidth=0.6)
        axes.axvline(start - 0.5, color="k", linewidth=0.6)
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    labels = [kinds[start] for start in starts]
    axes.set_xticks(middles, labels)
    axes.set_yticks(middles, labels)
    axes.tick_params(length=0)


def plot_dynamics(found: Findings) -> Figure:
    """Share of rows below each error of the next observation, and of the reward."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for name, (label, colour) in _STYLE.items():
        error = found.dynamics[name]
        for axes, values in zip(panels, (error.observation, error.reward), strict=True):
            kept = np.sort(values[error.valid & ~np.isnan(values)]).clip(_ROUNDING)
            axes.step(kept, np.arange(1, len(kept) + 1) / max(1, len(kept)), color=colour, label=label)
    for axes, what in zip(panels, ("next observation", "reward"), strict=True):
        axes.set(xscale="log", xlabel=f"squared error of the {what} (z-scored)", ylim=(0, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of rows")
    panels[0].legend(loc="center left")
    figure.suptitle("Dynamics: each row against the real simulator")
    return figure


def plot_nearest(found: Findings) -> Figure:
    """Distances to the nearest training row."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    most = max(float(np.quantile(far, 0.99)) for far in found.nearest.values())
    bins = np.linspace(0, most, 60).tolist()
    far = found.nearest["floor"].clip(0, most)
    axes.hist(far, bins, density=True, histtype="stepfilled", color=_REAL, label="real, held out")
    for name in list(_STYLE)[1:]:
        label, colour = _STYLE[name]
        axes.hist(found.nearest[name].clip(0, most), bins, density=True, histtype="step", color=colour, label=label)
    ratio = found.scores["synthetic"]["nearest"]["ratio"]
    axes.set(xlabel="distance to the nearest training row (z-scored columns)", yticks=[])
    axes.set_title(f"Is it memorised? Median distance over that of held-out rows: {ratio:.2f}" if ratio is not None else "")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend()
    return figure


_PLOTS: dict[str, Callable[[Findings], Figure]] = {
    "summary": plot_summary,
    "marginals_worst": plot_marginals_worst,
    "marginals": plot_marginals,
    "correlation": plot_correlation,
    "dynamics": plot_dynamics,
    "nearest": plot_nearest,
}
NAMES = frozenset(_PLOTS)
