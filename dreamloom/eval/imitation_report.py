"""A study of imitation as `study.json`, `report.md` and a plot: shares of levels solved, interquartile means with intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dreamloom.eval.study_cells import Cell
from dreamloom.eval.study_report import iqm, save_study, summary

_SIDES = (("train", "levels of the clips", "#9ecae1", -0.17), ("test", "levels not seen", "#3182bd", 0.17))


def write_imitation(out: Path, settings: Mapping[str, Any], cells: Mapping[Cell, Mapping[str, Any]]) -> None:
    """Writes `study.json`, `report.md` and a plot for each learner.

    Args:
        out: the folder.
        settings: of the study.
        cells: (environment, learner, arm) -> scores on levels not seen, `train` on levels seen, and cost.
    """
    study = summary(settings, cells)
    for learners in study["results"].values():
        for arms in learners.values():
            for cell in arms.values():
                cell["train"] = {**cell["train"], **iqm(np.array(cell["train"]["scores"])[:, None])}
    save_study(out, study, report=report, plot=plot)


def report(study: Mapping[str, Any]) -> str:
    """`report.md`."""
    lines = [f"# Imitation: {', '.join(study['settings']['environments'])}", "", _conditions(study), ""]
    for learner in study["overall"]:
        lines += [f"## {learner}", "", f"![{learner}]({learner}.png)", ""]
        for environment, learners in study["results"].items():
            lines += [f"### {environment}", "", *_table(learners[learner]), ""]
    return "\n".join(lines)


def _conditions(study: Mapping[str, Any]) -> str:
    settings, machine = study["settings"], study["machine"]
    seeds = {
        len(cell["scores"]) for learners in study["results"].values() for arms in learners.values() for cell in arms.values()
    }
    counts = "/".join(map(str, sorted(seeds)))
    return (
        f"Policies clone labels of expert clips of levels `{settings['levels']}` (frame -> label) and act by a table label -> "
        f"true action. Latent actions are those of `{settings['latent_actions']}`, over {settings['stride']} rows; inverse "
        f"models are ensembles of {settings['members']} that saw the true actions of {settings['share']:.0%} of the rows. "
        f"{settings['updates']:,} updates of batch {settings['batch_size']}, {counts} seeds, each with a draw of labelled rows "
        f"of its own. Shares of levels solved, %: {settings['episodes']} whole episodes a seed on levels of the clips, as many "
        f"on `{settings['test']}`, the same for every arm. Brackets: 95% stratified bootstrap interval of the interquartile "
        "mean over seeds. `labels right`: how often acting by the labels is what the expert did, on the rows that are cloned; "
        f"actions that ask for the same motion are one. {machine['cpu']}, {machine['device']}, threads {machine['threads']}, "
        f"torch {machine['torch']}; commit {study['commit']}."
    )


def _table(arms: Mapping[str, Any]) -> list[str]:
    head = ["arm", "rows", "labels right", "levels of the clips", "levels not seen", "return, not seen", "cost, s"]
    rows = [head, ["-"] * len(head)]
    for arm, cell in arms.items():
        solved = [f"{part['iqm']:.1f} [{part['low']:.1f}, {part['high']:.1f}]" for part in (cell["train"], cell)]
        returns = f"{np.mean(cell['returns']):.2f} ± {np.std(cell['returns']):.2f}"
        right = f"{np.mean(cell['right']):.0%}"
        rows.append([arm, f"{np.mean(cell['rows']):,.0f}", right, *solved, returns, f"{cell['wall_s']:.0f}"])
    return ["| " + " | ".join(row) + " |" for row in rows]


def plot(study: Mapping[str, Any], learner: str) -> Figure:
    """Interquartile means with intervals, an arm a line, an environment a panel; dots are seeds."""
    results, arms = study["results"], list(study["overall"][learner])
    figure = Figure(figsize=(4.6 * len(results) + 1.8, 1.4 + 0.45 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (environment, learners) in zip(panels, results.items(), strict=True):
        for key, label, colour, shift in _SIDES:
            cells = [cell["train"] if key == "train" else cell for cell in learners[learner].values()]
            places = np.arange(len(cells)) + shift
            panel.hlines(places, [c["low"] for c in cells], [c["high"] for c in cells], colour, linewidth=6, alpha=0.6)
            panel.plot([c["iqm"] for c in cells], places, "|", color=colour, markersize=13, markeredgewidth=3, label=label)
            for place, cell in zip(places, cells, strict=True):
                panel.plot(cell["scores"], [place] * len(cell["scores"]), ".", color="#333333", markersize=3)
        panel.set_title(environment)
        panel.set_xlabel("levels solved, %")
        panel.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(arms)), arms)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize="small")
    figure.suptitle(f"{learner}: interquartile mean, 95% interval, seeds")
    return figure
