"""A study's cells as `study.json`, `report.md` and plots: interquartile means with stratified bootstrap intervals."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dreamloom.datasets.atomic import atomic_path
from dreamloom.eval.plots import save_plot
from dreamloom.eval.provenance import provenance
from dreamloom.eval.study_cells import Cell, compute_device
from dreamloom.eval.study_gap import gap_plot, gap_report, missing_cells, with_gaps

REPETITIONS = 5_000  # of the bootstrap


PROVENANCE = ("machine", "commit", "dreamloom")


def write_study(
    out: Path, settings: Mapping[str, Any], cells: Mapping[Cell, Mapping[str, Any]], missing: Sequence[Cell] = ()
) -> None:
    """Writes `study.json`, `report.md` and a plot for each learner.

    Args:
        out: the folder.
        settings: of the study.
        cells: (environment, learner, arm) -> scores and cost, as `study.measure` gives them.
        missing: cells that were not measured; the report names them.

    Raises:
        ValueError: there is no cell to tell of.
    """
    frames = "pixels" in settings
    if frames:  # nothing is said of a gap that is not known
        alone = [cell for cell in cells if (*cell[:2], settings["pixels"]["baseline"]) not in cells]
        cells, missing = {cell: found for cell, found in cells.items() if cell not in alone}, [*missing, *alone]
    if not cells:
        raise ValueError(f"{out}: no cell has been measured that a report could tell of")
    study = summary(settings, cells) | ({"missing": [" / ".join(cell) for cell in missing]} if missing else {})
    if frames:
        study = with_gaps(study)
    save_study(out, study, report=gap_report if frames else report, plot=gap_plot if frames else plot)


def save_study(out: Path, study: dict[str, Any], *, report: Callable[..., str], plot: Callable[..., Figure]) -> None:
    """Writes `study.json`, and what is told of it: `report.md` and a plot for each learner.

    Args:
        out: the folder.
        study: see `summary`.
        report: makes the text, of the study.
        plot: makes the plot, of the study and a learner.
    """
    for learner in study["overall"]:
        save_plot(out / f"{learner}.png", plot(study, learner))
    for name, text in (("report.md", report(study)), ("study.json", json.dumps(study, indent=2) + "\n")):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def summary(settings: Mapping[str, Any], cells: Mapping[Cell, Mapping[str, Any]]) -> dict[str, Any]:
    """`study.json`: `results[environment][learner][arm]` and, over environments, `overall[learner][arm]`.

    Scores are normalised (100 is the published expert, 0 the published random policy). Those of agents from pixels are on
    levels that they have not seen; `train` in a cell are those on levels seen, `gaps` compares them (eval/study_gap.py).
    `overall` has the arms that were measured in every environment of a learner; `missing` names cells that were not.
    """
    results: dict[str, Any] = {}
    pooled: dict[str, dict[str, list[Sequence[float]]]] = {}
    for (environment, learner, arm), cell in cells.items():
        interval = iqm(np.array(cell["scores"])[:, None])
        found = {key: value for key, value in cell.items() if key not in PROVENANCE}
        results.setdefault(environment, {}).setdefault(learner, {})[arm] = {**found, **interval}
        pooled.setdefault(learner, {}).setdefault(arm, []).append(cell["scores"])
    overall = {}
    for learner, arms in pooled.items():
        environments = sum(learner in learners for learners in results.values())
        overall[learner] = {arm: iqm(np.array(scores).T) for arm, scores in arms.items() if len(scores) == environments}
    return {"settings": dict(settings), "results": results, "overall": overall, **measured_by(cells)}


def measured_by(cells: Mapping[Cell, Mapping[str, Any]]) -> dict[str, Any]:
    """Machine, commit and version that the cells note, which may be another than the one that writes the report.

    A copy of the code without its history has no commit to note; that of the code at hand stands in.
    """
    here = provenance(compute_device())
    noted = [{key: cell[key] for key in PROVENANCE if cell.get(key)} for cell in cells.values()]
    machines = {json.dumps(note["machine"]): note["machine"] for note in noted if "machine" in note}
    others = {"machines": list(machines.values())} if len(machines) > 1 else {}
    return {**here, **noted[-1], **others}


def iqm(scores: np.ndarray) -> dict[str, float]:
    """Interquartile mean and its 95% stratified bootstrap interval (Agarwal et al. 2021), by rliable.

    Args:
        scores: (seeds, environments).
    """
    from rliable import library, metrics

    def aggregate(values: np.ndarray) -> np.ndarray:
        return np.array([metrics.aggregate_iqm(values)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the bootstrap's library; rliable passes a RandomState on
        points, intervals = library.get_interval_estimates(
            {"arm": scores}, aggregate, reps=REPETITIONS, random_state=np.random.RandomState(0)
        )
    low, high = intervals["arm"][:, 0].tolist()
    return {"iqm": float(points["arm"][0]), "low": low, "high": high}


def report(study: Mapping[str, Any]) -> str:
    """`report.md`."""
    settings, machine = study["settings"], study["machine"]
    seeds = {
        len(cell["scores"]) for learners in study["results"].values() for arms in learners.values() for cell in arms.values()
    }
    lines = [
        f"# Study: {', '.join(settings['environments'])}",
        "",
        f"Self-collected replay. {settings['updates']:,} updates of batch {settings['batch_size']} for every learner and arm, "
        f"{'/'.join(map(str, sorted(seeds)))} seeds, {settings['episodes']} real episodes a seed after the last update; "
        f"upsamplers of {settings['upsampler_steps']:,} steps. Scores are normalised with D4RL's constants "
        "(0 random, 100 expert). Brackets: 95% stratified bootstrap interval of the interquartile mean. "
        f"{machine['cpu']}, {machine['device']}, threads {machine['threads']}, torch {machine['torch']}; "
        f"commit {study['commit']}.",
        "",
        *missing_cells(study),
    ]
    for learner, overall in study["overall"].items():
        lines += [f"## {learner}", "", *_table(study, learner, overall), "", f"![{learner}]({learner}.png)", ""]
    return "\n".join(lines)


def _table(study: Mapping[str, Any], learner: str, overall: Mapping[str, Any]) -> list[str]:
    environments = [name for name, learners in study["results"].items() if learner in learners]
    head = ["arm", *environments, "all", *(f"return, {name}" for name in environments), "cost, s"]
    rows = [head, ["-"] * len(head)]
    for arm, total in overall.items():
        cells = [study["results"][environment][learner][arm] for environment in environments]
        returns = [f"{np.mean(cell['returns']):.0f} ± {np.std(cell['returns']):.0f}" for cell in cells]
        cost = " / ".join(f"{cell['wall_s']:.0f}" for cell in cells)
        rows.append([arm, *(_interval(cell) for cell in [*cells, total]), *returns, cost])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _interval(cell: Mapping[str, Any]) -> str:
    return f"{cell['iqm']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]"


def plot(study: Mapping[str, Any], learner: str) -> Figure:
    """Interquartile means with intervals, an arm a line, an environment a panel; dots are seeds."""
    results = {name: learners for name, learners in study["results"].items() if learner in learners}
    arms = list(study["overall"][learner])
    figure = Figure(figsize=(4.6 * len(results) + 1.5, 1.2 + 0.42 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (environment, learners) in zip(panels, results.items(), strict=True):
        for line, arm in enumerate(arms):
            cell = learners[learner][arm]
            colour = f"C{line % 10}"
            panel.plot([cell["low"], cell["high"]], [line, line], color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt")
            panel.plot(cell["iqm"], line, "|", color=colour, markersize=18, markeredgewidth=3)
            panel.plot(cell["scores"], [line] * len(cell["scores"]), ".", color="#333333", markersize=4)
        panel.set_title(environment)
        panel.set_xlabel("normalised score")
        panel.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    figure.suptitle(f"{learner}: interquartile mean, 95% interval, seeds")
    return figure
