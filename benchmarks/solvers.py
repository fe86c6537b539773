"""Fidelity against network calls: which solver is the cheapest at the published sampler's own fidelity?

For each seed one upsampler with EDM's objective and one with flow matching are trained on real rows; every solver then draws
the same number of rows from the same noise. Fidelity: mean Kolmogorov-Smirnov statistic of the columns and distance of the
correlations to held-out real rows, and the dynamics error in the real simulator. The paper's setting is 128 steps of stochastic
Heun (255 calls); a solver is `within` where the means of all three figures are no worse than the worst seed of that setting.

    python benchmarks/solvers.py --data data/cheetah.hdf5 --out benchmarks/solvers.json --plot docs/solvers.png
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.objectives import EDM, FlowMatching
from dreamloom.diffusion.solvers import Euler, SDEDPMSolver, Solver, StochasticHeun
from dreamloom.diffusion.upsampler import Upsampler, load_upsampler
from dreamloom.eval.fidelity.dynamics import dynamics_error
from dreamloom.eval.fidelity.marginals import correlation_distance, ks
from dreamloom.eval.plots import save_plot
from dreamloom.eval.provenance import publish

PAPER = "stochastic Heun, as published/255"
FIGURES = {"ks": "KS, mean", "correlation": "correlation distance", "dynamics": "dynamics MSE"}
OBJECTIVES = {"edm": EDM(), "flow": FlowMatching()}


def solvers() -> dict[str, list[tuple[str, Solver]]]:
    """Name of a curve -> (objective, solver) of each of its points."""
    narrow = {"sigma_min": 0.01, "sigma_max": 10.0}
    wide = {"sigma_min": 0.002, "sigma_max": 80.0}
    return {
        "stochastic Heun, as published": [("edm", StochasticHeun(n)) for n in (128, 32, 16)],
        "deterministic Heun": [("edm", StochasticHeun(n, S_churn=0.0)) for n in (32, 16)],
        "DPM-Solver++ 2M": [("edm", SDEDPMSolver(n, eta=0.0, **wide)) for n in (32, 16)],
        "SDE-DPM-Solver++ 2M": [("edm", SDEDPMSolver(n, eta=1.0, **wide)) for n in (32, 16)],
        "the same, sigma in [.01, 10], eta 2": [("edm", SDEDPMSolver(n, eta=2.0, **narrow)) for n in (48, 32, 24, 16, 8)],
        "flow matching, Euler": [("flow", Euler(n, **wide)) for n in (64, 32)],
        "flow matching, SDE-DPM, eta 2": [("flow", SDEDPMSolver(n, eta=2.0, **narrow)) for n in (32, 16)],
    }


def trained(args: argparse.Namespace, real: Transitions, objective: str, seed: int) -> Upsampler:
    """The upsampler of a seed; one that was trained before is read from its file."""
    path = args.models / f"{args.data.stem}_{objective}_width{args.width}_steps{args.steps}_seed{seed}.ckpt"
    if not path.exists():
        settings = {"width": args.width, "objective": OBJECTIVES[objective], "precision": args.precision}
        model = Upsampler(**settings).fit(real, steps=args.steps, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        with atomic_path(path) as temporary:
            torch.save({"model_config": model.config, "state_dict": weights}, temporary)
    return load_upsampler(path)


def table(rows: Transitions) -> np.ndarray:
    """All float columns side by side."""
    return np.concatenate([rows.observations, rows.actions, rows.rewards[:, None], rows.next_observations], 1)


def fidelity(made: Transitions, unseen: Transitions, env: str) -> dict[str, float]:
    """The three figures of drawn rows, beside real rows that no model saw."""
    dynamics = dynamics_error(env, made, scale=unseen).summary()["mse"]
    assert dynamics is not None
    columns, real = table(made), table(unseen)
    scale = np.where(real.std(0) > 0, real.std(0), 1)
    return {
        "ks": float(ks(real, columns).mean()),
        "correlation": correlation_distance(real / scale, columns / scale),
        "dynamics": float(dynamics),
    }


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """curve/calls -> calls and every figure by seed."""
    whole = load_transitions(args.data)
    order = np.random.default_rng(0).permutation(len(whole))
    real, unseen = whole[np.sort(order[args.rows :])], whole[order[: args.rows]]
    found: dict[str, dict[str, Any]] = {}
    for seed in range(args.seeds):
        models = {objective: trained(args, real, objective, seed) for objective in OBJECTIVES}
        points = [(curve, objective, solver) for curve, some in solvers().items() for objective, solver in some]
        for curve, objective, solver in tqdm(points, desc=f"seed {seed}"):
            made = models[objective].sample(args.rows, seed=seed, solver=solver, batch_size=1024)
            entry = found.setdefault(f"{curve}/{solver.calls}", {"curve": curve, "calls": solver.calls})
            for name, value in fidelity(made, unseen, args.env).items():
                entry.setdefault(name, []).append(round(value, 5))
    return found


def judge(found: dict[str, dict[str, Any]]) -> str:
    """Marks what lies within the paper setting's own spread, and names the cheapest."""
    for entry in found.values():
        entry["within"] = all(statistics.mean(entry[name]) <= max(found[PAPER][name]) for name in FIGURES)
    return min((key for key, entry in found.items() if entry["within"]), key=lambda key: found[key]["calls"])


def plot(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> Figure:
    """A panel a figure: mean over seeds against calls, with the range of the seeds; the paper's range as a band."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(1, 3), FIGURES.items(), strict=True):
        for curve in solvers():
            points = sorted((e["calls"], e[name]) for e in found.values() if e["curve"] == curve)
            calls, values = [c for c, _ in points], [v for _, v in points]
            means = [statistics.mean(v) for v in values]
            spread = [
                [m - min(v) for m, v in zip(means, values, strict=True)],
                [max(v) - m for m, v in zip(means, values, strict=True)],
            ]
            panel.errorbar(calls, means, spread, marker="o", markersize=4, capsize=2, linewidth=1.2, label=curve)
        paper = found[PAPER][name]
        panel.axhspan(min(paper), max(paper), color="0.85", zorder=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks([8, 16, 32, 64, 128, 256], [8, 16, 32, 64, 128, 256])
        panel.set(xlabel="network calls a row", title=title, ylim=(0, None))
        panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{args.env}, {args.seeds} seeds; grey: the range of the published setting")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cheetah.hdf5"))
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--models", type=Path, default=Path("runs/solvers"), help="folder that keeps the trained upsamplers")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=int, default=2000, help="drawn by each solver, and held out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    found = measure(args)
    cheapest = judge(found)
    if args.plot:
        save_plot(args.plot, plot(found, args))
    settings = {key: getattr(args, key) for key in ("env", "width", "steps", "precision", "rows", "seeds")}
    publish({"benchmark": "solvers", **settings, "solvers": found, "cheapest": cheapest}, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
