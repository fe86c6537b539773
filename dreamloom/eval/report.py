"""Results as files: `metrics.json` for scripts, `report.md` and pictures for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dreamloom.datasets.atomic import atomic_path
from dreamloom.eval import plots
from dreamloom.eval.steady_report import plot_steadiness, save_strips, steady_lines, steady_rows

Row = tuple[str, str, str]
_ROLLOUTS = [
    "",
    "Rows: real frames; the world under the same actions; each action held from the same start.",
    "",
    "![dreams](grid.gif)",
]


def write_report(out: Path, metrics: dict[str, Any], pictures: dict[str, Any]) -> None:
    """Writes `metrics.json`, `report.md`, the plots and `grid.gif`.

    Args:
        out: the folder; made if it is not there, files of the same names are replaced.
        metrics: as `evaluate` gives them.
        pictures: likewise.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in _figures(metrics, pictures).items():
        plots.save_plot(out / name, figure)
    if "grid" in pictures:
        plots.save_grid(out / "grid.gif", pictures["grid"], fps=metrics["world"]["fps"])
    if "strips" in pictures:
        save_strips(out / "steady_strips.png", pictures["strips"])
    _write(out / "report.md", report(metrics))
    _write(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")


def _figures(m: dict[str, Any], pictures: dict[str, Any]) -> dict[str, Figure]:
    """The plots of the sections that were measured."""
    figures = {}
    if "curves" in m:
        figures["psnr.png"] = plots.plot_likeness(m["curves"])
    if "latency_ms" in m:
        figures["latency.png"] = plots.plot_latency(m["latency_ms"], m["world"]["fps"])
    if "shares" in m.get("latent_actions", {}):
        figures["latent_actions.png"] = plots.plot_latent(m["latent_actions"], pictures["names"])
    if m.get("steady_curves"):
        figures["steady.png"] = plot_steadiness(m["steady_curves"])
    return figures


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report(metrics: dict[str, Any]) -> str:
    """`report.md`."""
    world, settings, machine = metrics["world"], metrics["settings"], metrics["machine"]
    sampling = settings["sampling"]
    lines = [
        f"# {world['name']}: evaluation{_of_levels(settings['levels_trained_on'])}",
        "",
        f"{world['actions'].capitalize()} actions ({', '.join(world['action_names'])}). {settings['clips']} clips of "
        f"{settings['levels']} levels ({settings['level_range'][0]} to {settings['level_range'][1]}) of `{settings['data']}`, "
        f"{settings['context']} frame(s) of context, seed {settings['seed']}; {sampling['steps']} steps a frame, "
        f"temperature {sampling['temperature']}. {machine['device']}, {machine['cpu']}, {machine['threads']} threads, "
        f"torch {machine['torch']}; commit {metrics['commit']}.",
        "",
        table(metrics),
        "",
        *[f"- `{key}`: {reason}." for key, reason in metrics["notes"].items()],
        "",
        *(["![PSNR by steps ahead](psnr.png)"] if "curves" in metrics else []),
        *(["![latent actions](latent_actions.png)"] if "shares" in metrics.get("latent_actions", {}) else []),
        *(["![latency](latency.png)"] if "latency_ms" in metrics else []),
        *(_ROLLOUTS if "rollout" in metrics else []),
        *(steady_lines(metrics) if "steady" in metrics else []),
    ]
    return "\n".join(lines) + "\n"


def _of_levels(trained_on: int | None) -> str:
    return "" if trained_on is None else " on levels of its training" if trained_on else " on held-out levels"


def table(metrics: dict[str, Any]) -> str:
    """The figures as a Markdown table; those that could not be measured are left out."""
    rows = [("metric", "value", "beside it"), *_rows(metrics)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _rows(m: dict[str, Any]) -> Iterator[Row]:
    yield from _model_rows(m)
    yield from _rollout_rows(m)
    yield from _control_rows(m)
    if m.get("latent_actions", {}).get("usage_entropy") is not None:
        yield from _latent_rows(m["latent_actions"], m["world"]["action_names"])
    if "steady" in m:
        yield from steady_rows(m)
    if "latency_ms" in m:
        yield from _latency_rows(m["latency_ms"])


def _latency_rows(latency: dict[str, Any]) -> Iterator[Row]:
    yield "latency, ms", f"p50 {latency['p50']:.0f}", f"p95 {latency['p95']:.0f}"
    batch = latency["side_by_side"]
    yield "frames a second", f"{batch['frames_per_s']:.0f}", f"{batch['worlds']} worlds side by side"
    for n, cached in latency["by_steps"].items():
        plain = latency.get("uncached_by_steps", {}).get(n)
        beside = f"uncached p50 {plain['p50']:.0f}, {plain['p50'] / cached['p50']:.1f}x" if plain else ""
        yield f"latency, {n} steps, ms", f"p50 {cached['p50']:.0f}, p95 {cached['p95']:.0f}", beside


def _model_rows(m: dict[str, Any]) -> Iterator[Row]:
    if t := m.get("tokenizer"):
        yield "tokenizer PSNR, dB", f"{t['psnr']:.2f}", f"SSIM {t['ssim']:.3f}"
    if (t := m.get("tokenizer")) and "codes" in t:
        yield "codes in use", f"{t['code_usage']:.0%} of {t['codes']}", f"perplexity {t['code_perplexity']:.0f}"
        yield "tokens a frame", str(t["tokens_per_frame"]), ""
    if t := m.get("teacher_forced"):
        yield "next frame, cross-entropy, nats", f"{t['cross_entropy']:.3f}", f"chance {t['chance']:.2f}"
        yield "next frame, token accuracy", f"{t['accuracy']:.1%}", ""
        beside = f"{t['changed_share']:.0%} of tokens; cross-entropy {t['changed_cross_entropy']:.2f}"
        yield "... on changed tokens", f"{t['changed_accuracy']:.1%}", beside


def _rollout_rows(m: dict[str, Any]) -> Iterator[Row]:
    if "rollout" in m:
        yield from _likeness_rows(m)
    if fd := m.get("effnet_fd"):
        if fd["recon"] is not None:
            yield "EffNet-FD, recon / dream", f"{fd['recon']:.1f} / {fd['dream']:.1f}", f"{fd['frames']} frames"
        if fd["both"] is not None:
            yield "EffNet-FD, both", f"{fd['both']:.1f}", f"real to real {fd['floor']:.1f}"
    if fvd := m.get("fvd"):
        yield "FVD (I3D), both", f"{fvd['both']:.1f}", f"{fvd['clips']} clips of {fvd['frames']} frames"
    if drift := m.get("drift"):
        if drift["psnr_slope"] is not None:
            yield "drift of PSNR, dB a frame", f"{drift['psnr_slope']:+.3f}", ""
        last = list(drift["sharpness"])[-1]
        beside = f"colour off by {drift['colour'][last]:.1f}"
        yield f"sharpness {last} ahead, dream / real", f"{drift['sharpness'][last]:.2f}", beside


def _likeness_rows(m: dict[str, Any]) -> Iterator[Row]:
    for name, text in (("psnr", "PSNR, dB"), ("psnr_pooled", "pooled PSNR, dB"), ("ssim", "SSIM")):
        for horizon, value in m["rollout"][name].items():
            if value is not None:
                digits = 3 if name == "ssim" else 2
                beside = f"copy last {m['copy_last'][name][horizon]:.{digits}f}"
                if m.get("ceiling"):
                    beside += f", ceiling {m['ceiling'][name][horizon]:.{digits}f}"
                yield f"rollout {text}, {horizon} ahead", f"{value:.{digits}f}", beside


def _control_rows(m: dict[str, Any]) -> Iterator[Row]:
    d = m.get("delta4_psnr")
    if d and d["mean"] is not None:
        yield "delta_4 PSNR, dB", f"{d['mean']:.2f}", f"95% interval {d['low']:.2f} to {d['high']:.2f}, {d['clips']} clips"
    a = m.get("action_swap")
    if a and a["accuracy"] is not None:
        beside = f"on real frames {a['real_balanced_accuracy']:.1%} (balanced), chance {a['chance']:.1%}"
        yield "action-swap accuracy", f"{a['accuracy']:.1%}", beside
    if n := m.get("no_op"):
        real = "" if n["real_step_psnr"] is None else f"real {n['real_step_psnr']:.1f}"
        yield f'holding "{n["name"]}": PSNR frame to frame, dB', f"{n['step_psnr']:.1f}", real


def _latent_rows(scores: dict[str, Any], names: list[str]) -> Iterator[Row]:
    yield "latent actions, usage entropy", f"{scores['usage_entropy']:.2f}", f"{scores['in_use']} of {len(names)} in use"
    if scores["nmi"] is None:
        return
    motion = scores.get("by_motion")
    yield "NMI with true actions", f"{scores['nmi']:.3f}", f"with motions {motion['nmi']:.3f}" if motion else ""
    for size, row in (motion or scores)["map_accuracy"].items():
        what = "motion" if motion else "action"
        yield f"true {what} from {size} labels", f"{row['accuracy']:.1%}", f"majority {row['majority_accuracy']:.1%}"
