"""The generalisation gap in a study of agents from pixels: its figures with bootstrap intervals, their tables and plots."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamloom.datasets.scores import normalized_score

REPETITIONS = 2_000  # of the bootstrap
_UNDEFINED = 0.025  # share of draws without a gap from which on G_perf has no interval
Played = tuple[Float[np.ndarray, "s n"], Float[np.ndarray, "s n"]]  # scores of episodes on levels seen, and unseen


def played(environment: str, cell: Mapping[str, Any]) -> Played:
    """Normalised returns of a cell's episodes."""
    tables = (np.array(part["episode_returns"], float) for part in (cell["train"], cell))
    seen, unseen = (normalized_score(environment, table) for table in tables)
    return seen, unseen


def gap_figures(arm: Sequence[Played], baseline: Sequence[Played], seed: int = 0) -> dict[str, Any]:
    """Gap and G_perf of an arm, on the mean over environments.

    G_perf = (T_test - B_test) / (B_train - B_test) (Guzel, Bogunovic and Parker-Holder 2025): the share of the baseline's gap
    that an arm closes. The 95% intervals are percentiles of a bootstrap of seeds and of episodes within each environment. Arm
    and baseline are resampled alike: they share levels, and where they see the same frames also encoders.

    Args:
        arm: of each environment, scores of episodes on levels seen and unseen.
        baseline: likewise, of as many seeds.
        seed: of the bootstrap.

    Returns:
        `train` and `test` scores, `gap` between them, `gain` over the baseline's test score, and `g_perf`, each as mean, low
        and high. Where the baseline's own gap is not surely above 0, G_perf has no interval, and without any gap no value.
    """
    drawn = np.random.default_rng(seed)
    points, draws = np.zeros(4), np.zeros((REPETITIONS, 4))
    for tables, others in zip(arm, baseline, strict=True):
        seeds = drawn.integers(0, len(tables[0]), (REPETITIONS, len(tables[0])))
        for place, (table, other) in enumerate(zip(tables, others, strict=True)):
            episodes = drawn.integers(0, table.shape[1], (REPETITIONS, table.shape[1]))
            for column, values in ((place, table), (place + 2, other)):
                points[column] += values.mean() / len(arm)
                draws[:, column] += values[seeds[:, :, None], episodes[:, None]].mean((1, 2)) / len(arm)
    train, test = (_interval(points[i], draws[:, i]) for i in (0, 1))
    gap, gain = (_interval(points[i] - points[j], draws[:, i] - draws[:, j]) for i, j in ((0, 1), (1, 3)))
    return {"train": train, "test": test, "gap": gap, "gain": gain, "g_perf": _closed(points, draws)}


def _interval(point: float, draws: np.ndarray) -> dict[str, float | None]:
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    return {"mean": float(point), "low": low, "high": high}


def _closed(points: np.ndarray, draws: np.ndarray) -> dict[str, float | None]:
    whole = draws[:, 2] - draws[:, 3]
    if points[2] <= points[3]:
        return {"mean": None, "low": None, "high": None}
    point = float((points[1] - points[3]) / (points[2] - points[3]))
    if (whole <= 0).mean() > _UNDEFINED:
        return {"mean": point, "low": None, "high": None}
    there = whole > 0
    return _interval(point, (draws[there, 1] - draws[there, 3]) / whole[there])


def with_gaps(study: dict[str, Any]) -> dict[str, Any]:
    """`study.json` of frames: each cell, and each arm over environments, with what `gap_figures` says as `gaps`."""
    baseline, results = study["settings"]["pixels"]["baseline"], study["results"]
    for learner, arms in study["overall"].items():
        cells = {name: learners[learner] for name, learners in results.items() if learner in learners}
        tables = {name: {arm: played(name, cell) for arm, cell in found.items()} for name, found in cells.items()}
        for arm in arms:
            mine, theirs = ([table[one] for table in tables.values()] for one in (arm, baseline))
            arms[arm]["gaps"] = gap_figures(mine, theirs)
        for name, found in cells.items():
            for arm, cell in found.items():
                cell["gaps"] = gap_figures([tables[name][arm]], [tables[name][baseline]])
    return study


def missing_cells(study: Mapping[str, Any]) -> list[str]:
    """Lines that name the cells that were not measured, if there are any."""
    names = study.get("missing", [])
    told = "Not measured, and so in no table"
    return [f"{told}: {'; '.join(names)}. Tables over environments have the arms that all of them have.", ""] if names else []


def gap_report(study: Mapping[str, Any]) -> str:
    """`report.md` of a study of frames."""
    lines = [f"# Generalisation gap: {', '.join(study['settings']['environments'])}", "", _conditions(study), ""]
    lines += missing_cells(study)
    for learner, overall in study["overall"].items():
        lines += [f"## {learner}", "", f"![{learner}]({learner}.png)", ""]
        if len(study["results"]) > 1:
            lines += ["### All environments", "", *_overall(overall), ""]
        for name, learners in study["results"].items():
            lines += [f"### {name}", "", *_table(learners[learner]), ""] if learner in learners else []
    return "\n".join([*lines, *_likeness(study), *_imagined(study)])


def _conditions(study: Mapping[str, Any]) -> str:
    settings, machine, pixels = study["settings"], study["machine"], study["settings"]["pixels"]
    seeds = next(len(cell["scores"]) for cell, _, _ in _cells(study))
    dreamt = ", ".join(f"`{path}`" for path in pixels.get("imagined", {}).values())
    wander = f", with a random action in {pixels['epsilon']:.0%} of the steps," if pixels.get("epsilon") else ""
    dreamt = f"Imagined rows: {dreamt}; costs count their world's training in. " if dreamt else ""
    return (
        f"Every learner and arm makes {settings['updates']:,} updates of batch {settings['batch_size']}; where heads are "
        f"trained on latents, these are the last {pixels['head_updates']:,}. Upsamplers have {settings['upsampler_steps']:,} "
        f"steps. {seeds} seeds; greedy policies{wander} play {settings['episodes']} episodes a seed on levels "
        f"`{pixels['levels']}` (train) and as many on `{pixels['test']}` (test), the same for every arm. Scores are "
        f"normalised with DGRL's constants (0 random, 100 expert). Gain is the test score above that of arm "
        f"`{pixels['baseline']}`, G_perf the share of that gap that is closed: 0 is that arm, 1 its score on levels seen. "
        "Brackets: 95%, bootstrap over seeds and episodes; G_perf has none where that gap is not surely above 0. "
        f"{dreamt}{machine['cpu']}, {machine['device']}, "
        f"threads {machine['threads']}, torch {machine['torch']}; commit {study['commit']}."
    )


def _cells(study: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    for name, learners in study["results"].items():
        for learner, arms in learners.items():
            for arm, cell in arms.items():
                yield cell, f"{name}, {learner}", arm


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["-"] * len(head), *rows)]


def _overall(arms: Mapping[str, Any]) -> list[str]:
    return _rows(
        ["arm", "train", "test", "gap", "gain", "G_perf"], [[arm, *_spans(found["gaps"])] for arm, found in arms.items()]
    )


def _table(arms: Mapping[str, Any]) -> list[str]:
    rows = []
    for arm, cell in arms.items():
        seen, unseen = cell["train"]["returns"], cell["returns"]
        returns = [f"{np.mean(values):.2f} ± {np.std(values):.2f}" for values in (seen, unseen)]
        rows.append([arm, f"{cell['rows']:,}", *_spans(cell["gaps"]), *returns, f"{cell['wall_s']:.0f}"])
    return _rows(["arm", "rows", "train", "test", "gap", "gain", "G_perf", "return, train", "return, test", "cost, s"], rows)


def _spans(gaps: Mapping[str, Any]) -> list[str]:
    return [*(_span(gaps[name], 1) for name in ("train", "test", "gap", "gain")), _span(gaps["g_perf"], 2)]


def _span(values: Mapping[str, float | None], digits: int) -> str:
    if values["mean"] is None:
        return "no gap"
    if values["low"] is None:
        return f"{values['mean']:.{digits}f}"
    return f"{values['mean']:.{digits}f} [{values['low']:.{digits}f}, {values['high']:.{digits}f}]"


def _likeness(study: Mapping[str, Any]) -> list[str]:
    """Synthetic latents beside the real ones, the mean over seeds."""
    rows = []
    for cell, place, arm in _cells(study):
        if "latents" in cell:
            of = {name: float(np.mean(values)) for name, values in cell["latents"].items()}
            rates = [f"{of[f'{what}_real']:.4f} / {of[f'{what}_synthetic']:.4f}" for what in ("reward", "terminals")]
            rows.append([place, arm, f"{of['js']:.3f}", f"{of['auc']:.2f}", *rates])
    head = ["cell", "arm", "Jensen-Shannon", "classifier's AUC", "reward, real / synthetic", "terminals, real / synthetic"]
    return ["## Synthetic latents", "", *_rows(head, rows), ""] if rows else []


def _imagined(study: Mapping[str, Any]) -> list[str]:
    """Imagined rows beside the real ones."""
    rows = []
    for cell, place, arm in _cells(study):
        if found := cell.get("imagined"):
            pairs = [f"{found[f'{what}_real']:.4f} / {found[f'{what}_imagined']:.4f}" for what in ("reward", "terminals")]
            rows.append([place, arm, *pairs, f"{cell['seconds'].get('world', float('nan')):.0f}"])
    head = ["cell", "arm", "reward, real / imagined", "terminals, real / imagined", "training of the world, s"]
    return ["## Imagined rows", "", *_rows(head, rows), ""] if rows else []


def gap_plot(study: Mapping[str, Any], learner: str) -> Figure:
    """Above, scores on levels seen and unseen, dots are seeds; below, G_perf. An environment a column."""
    results = {name: learners[learner] for name, learners in study["results"].items() if learner in learners}
    arms = list(study["overall"][learner])
    size = (1.6 + (0.8 + 0.55 * len(arms)) * len(results), 6.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(2, len(results), sharex="col", sharey="row", squeeze=False)
    for (above, below), (name, cells) in zip(panels.T, results.items(), strict=True):
        _bars(above, [cells[arm] for arm in arms])
        _shares(below, [cells[arm]["gaps"]["g_perf"] for arm in arms])
        above.set_title(name)
        below.set_xticks(range(len(arms)), arms, rotation=60, ha="right")
    panels[0][0].set_ylabel("normalised score")
    panels[0][0].legend(fontsize="small")
    panels[1][0].set_ylabel("G_perf")
    figure.suptitle(f"{learner}: levels seen and unseen")
    return figure


def _bars(panel: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    for shift, colour, label, key in ((-0.2, "#9ecae1", "train levels", "train"), (0.2, "#3182bd", "test levels", "test")):
        means = [cell["gaps"][key] for cell in cells]
        places = np.arange(len(cells)) + shift
        panel.bar(places, [value["mean"] for value in means], 0.4, color=colour, label=label)
        for place, cell in zip(places, cells, strict=True):
            scores = (cell["train"] if key == "train" else cell)["scores"]
            panel.plot([place] * len(scores), scores, ".", color="#333333", markersize=3)
    panel.grid(alpha=0.3, axis="y")


def _shares(panel: Axes, shares: Sequence[Mapping[str, float | None]]) -> None:
    for place, share in enumerate(shares):
        if share["mean"] is not None:
            panel.plot(place, share["mean"], "o", color="#d62728")
        if share["low"] is not None and share["high"] is not None:
            panel.plot([place, place], [share["low"], share["high"]], color="#d62728", linewidth=2)
    for line in (0, 1):
        panel.axhline(line, color="#777777", linewidth=0.8, linestyle="--")
    panel.grid(alpha=0.3, axis="y")
