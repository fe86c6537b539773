"""The report of `eval replay`: metrics.json for scripts, report.md and plots for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamloom.datasets.atomic import atomic_path
from dreamloom.eval.fidelity import plots
from dreamloom.eval.fidelity.neighbours import COPY
from dreamloom.eval.fidelity.scores import Findings
from dreamloom.eval.plots import save_plot

# Key in metrics.json -> heading in the report.
ROWS = {"floor": "floor (real)", "synthetic": "synthetic", "copula": "copula", "baseline": "noise copies"}
METRICS = {
    "ks.mean": "KS, mean over columns",
    "ks.max": "KS, worst column",
    "wasserstein.mean": "Wasserstein-1, sd",
    "js.mean": "Jensen-Shannon, bits",
    "correlation.distance": "correlation distance",
    "dynamics.mse": "dynamics MSE",
    "dynamics.median": "dynamics, median row",
    "dynamics.reward_mse": "reward MSE in the simulator",
    "dynamics.terminal_agreement": "terminals that the simulator agrees with",
    "nearest.ratio": "distance to nearest, ratio",
    "nearest.copies": "near-copies",
    "c2st.auc": "C2ST, AUC",
    "terminal.rate": "terminal rate",
    "reward.mean": "reward, mean",
    "reward.sd": "reward, sd",
}
READING = f"""\
- **floor**: real training rows against real rows of other episodes; what is made from them cannot be expected to be nearer.
- **copula**: the right columns and their correlations, and nothing else. **noise copies**: what repeating the data gives, small
  errors and nothing new.
- **KS** (0 to 1), **Wasserstein** (in standard deviations) and **Jensen-Shannon** (0 to 1 bit): one column at a time; at the
  floor is as good as real.
- **correlation distance**: mean absolute difference of the correlations between columns; at the floor is as good as real.
- **dynamics MSE**: the real simulator is set to each row's state and takes its action; mean of ((s' - s'_sim) / sd)^2 over rows
  and dimensions, sd of the real training rows; the reward likewise. 0 obeys physics, which marginals cannot show; the median
  tells whether a few rows make the mean.
- **distance to nearest, ratio**: median distance to the nearest training row over that of held-out real rows. Near 0 is
  memorised, 1 is as new as other episodes, far above 1 is beside the data. **near-copies**: share within {COPY:g} of that
  distance.
- **C2ST**: can boosted trees tell the rows from real ones of the same episodes? 0.5 they cannot, 1 always. Very sharp: small
  noise is found out, so read it beside the others."""


def write_report(out: Path, metrics: dict[str, Any], found: Findings) -> None:
    """Writes `metrics.json`, `report.md` and the plots.

    Args:
        out: the folder; made if it is not there, files of the same names are replaced.
        metrics: what metrics.json shall hold.
        found: what the plots are made of.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures = plots.all_plots(found)
    for name, figure in figures.items():
        save_plot(out / f"{name}.png", figure)
    for name in plots.NAMES - set(figures):
        (out / f"{name}.png").unlink(missing_ok=True)  # of an earlier report
    _write(out / "report.md", report(metrics, list(figures)))
    _write(out / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def table(metrics: dict[str, Any]) -> str:
    """The figures as a Markdown table; what could not be measured is left out."""
    lines = [("metric", *ROWS.values()), *_lines(metrics)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]])


def _lines(metrics: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for key, title in METRICS.items():
        section, name = key.split(".")
        values = [metrics[row][section].get(name) for row in ROWS]
        if any(value is not None for value in values):
            yield title, *(_text(value) for value in values)


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 else f"{value:.4g}"


def report(metrics: dict[str, Any], pictures: list[str]) -> str:
    """`report.md`.

    Args:
        metrics: as in metrics.json.
        pictures: names of the plots.
    """
    settings, machine = metrics["settings"], metrics["machine"]
    worst = max(metrics["synthetic"]["ks"]["columns"].items(), key=lambda item: item[1])
    lines = [
        f"# {settings['synthetic']}: fidelity to {settings['real']}",
        "",
        f"{metrics['synthetic']['rows']} synthetic rows; {settings['training_rows']} real training rows and "
        f"{settings['heldout_rows']} held out, of {settings['heldout'] or 'the same file'}; seed {settings['seed']}. "
        f"Noise copies have {settings['noise_sd']:g} standard deviations of noise. {machine['cpu']}, "
        f"{machine['threads']} thread(s); commit {metrics['commit']}.",
        "",
        table(metrics),
        "",
        f"Worst column by KS: {worst[0]} ({worst[1]:.3f}). {_seen(settings)}",
        "",
        *[f"`{key}` is not measured: {reason}.\n" for key, reason in metrics["notes"].items()],
        "How to read it:",
        "",
        READING,
        "",
        *[f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures],
    ]
    return "\n".join(lines) + "\n"


def _seen(settings: dict[str, Any]) -> str:
    """Whether the held-out rows are new to the upsampler."""
    trained = (settings["upsampler"] or {}).get("trained_on")
    if heldout := settings["heldout"]:
        known = f"The upsampler was trained on {trained}" if trained else "What the upsampler was trained on is not recorded"
        return f"Held-out rows are those of {heldout}. {known}."
    if trained == settings["real"]:
        seen = f"The upsampler was trained on {settings['upsampler']['trained_rows']} rows of that file and may have seen them"
    else:
        seen = "An upsampler that was trained on all of it has seen them"
    return (
        f"Held-out rows are whole episodes of the real file itself. {seen}: they still show how far apart real episodes are, "
        "but a copy of one of them is not noticed as a copy. --heldout takes rows that it has not seen."
    )
