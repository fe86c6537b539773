"""`dreamloom eval replay`: is synthetic replay faithful? Its rows beside real ones, and beside cheap ways to make rows."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamloom.datasets.atomic import require_folder
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.baselines import NOISE
from dreamloom.eval.fidelity.report import table, write_report
from dreamloom.eval.fidelity.sampling import draw, episode_numbers, heldout_mask, sample_rows
from dreamloom.eval.fidelity.scores import Findings, Real, compare
from dreamloom.eval.provenance import provenance


def eval_replay(
    synth: str,
    *,
    real: str,
    out: Path,
    heldout: str | None = None,
    rows: int = 20_000,
    env: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures how faithful synthetic replay is, and writes metrics.json, report.md and plots.

    Every metric, its formula and how to read it are in docs/evaluation.md.

    Args:
        synth: the synthetic transitions: a folder of shards, an HDF5 or npz file, minari:NAME or d4rl:NAME.
        real: the real ones that they were made from, likewise.
        out: folder for the report.
        heldout: real transitions that the upsampler has not seen; by default one in five episodes of `real`, which it
            has seen if it was trained on all of `real`.
        rows: at most so many rows of each are compared.
        env: Gymnasium id of the MuJoCo environment to check the dynamics in; by default the one that `real` names.
        seed: of all that is drawn.

    Examples:
        dreamloom eval replay data/cheetah_synth --real data/cheetah.hdf5 --out reports/fidelity
    """
    require_folder(out)
    metrics, found = evaluate(synth, real=real, heldout=heldout, rows=rows, env=env, seed=seed)
    write_report(out, metrics, found)
    print(table(metrics))
    print(f"wrote {out}/metrics.json, report.md and plots in {metrics['seconds']:.0f} s")
    return metrics


def evaluate(
    synth: str, *, real: str, heldout: str | None = None, rows: int = 20_000, env: str | None = None, seed: int = 0
) -> tuple[dict[str, Any], Findings]:
    """`eval_replay` without its files.

    Args:
        synth: see `eval_replay`.
        real: see `eval_replay`.
        heldout: see `eval_replay`.
        rows: see `eval_replay`.
        env: see `eval_replay`.
        seed: see `eval_replay`.

    Returns:
        The content of `metrics.json`, and what the plots are made of.

    Raises:
        ValueError: a file cannot be read, or they do not fit one another or the environment.
    """
    if rows < 100:
        raise ValueError(f"--rows {rows}: must be at least 100")
    began = time.perf_counter()
    generator = np.random.default_rng((seed, 2))
    about, judges = _read_real(real, heldout, env, generator)
    with open_dataset(synth) as data:
        sampled = sample_rows(data, rows, generator)
        _require_rows(synth, sampled)
        about |= {"synthetic": _name(synth), "upsampler": _upsampler(data.attrs.get("source"))}
    try:
        found = compare(draw(sampled, rows, generator), judges, rows=rows, seed=seed)
    except ValueError as error:
        raise ValueError(f"{synth}: {error}") from error
    settings = {**about, "rows": rows, "seed": seed, "noise_sd": NOISE}
    metrics = {**found.scores, "notes": found.notes, "settings": settings, **provenance(torch.device("cpu"))}
    return {**metrics, "seconds": time.perf_counter() - began}, found


def _read_real(real: str, heldout: str | None, env: str | None, generator: np.random.Generator) -> tuple[dict[str, Any], Real]:
    """The real rows, and what the report says of them."""
    with open_dataset(real) as data:
        whole, attrs = load_transitions(data), data.attrs
    _require_rows(real, whole)
    source = attrs.get("source")
    kwargs = source.get("env_kwargs") if isinstance(source, dict) and env is None else None
    about: dict[str, Any] = {"real": _name(real), "heldout": _name(heldout) if heldout else None}
    episodes = episode_numbers(whole)
    if heldout:
        with open_dataset(heldout) as data:
            training, unseen = whole, load_transitions(data)
        _require_rows(heldout, unseen)
    else:
        try:
            mask = heldout_mask(episodes, generator)
        except ValueError as error:
            raise ValueError(f"{real}: {error}") from error
        training, unseen = whole[~mask], whole[mask]
    about |= {"real_rows": len(whole), "real_episodes": int(episodes[-1]) + 1}
    about |= {"training_rows": len(training), "heldout_rows": len(unseen), "env": env or attrs.get("env")}
    return about, Real(training, unseen, whole, about["env"], kwargs)


def _upsampler(source: Any) -> dict[str, Any] | None:
    """What a synthetic dataset says of the model that made it, and of what that was trained on."""
    if not isinstance(source, dict) or not isinstance(source.get("real"), dict):
        return None
    kept = {name: source.get(name) for name in ("model", "solver", "seed", "condition", "curate")}
    return {**kept, "trained_on": _name(str(source["real"].get("path"))), "trained_rows": source["real"].get("rows")}


def _require_rows(ref: str, transitions: Transitions) -> None:
    if len(transitions) < 100:
        raise ValueError(f"{ref}: has {len(transitions)} transitions, at least 100 are needed")
    if transitions.observations.ndim != 2:
        kind = f"{transitions.observations.dtype} {transitions.observations.shape}"
        raise ValueError(f"{ref}: `observations` is {kind}, expected vectors (N, o): pixels are not compared")


def _name(ref: str) -> str:
    """What the report calls a dataset: no folders of this machine."""
    return ref if ref.startswith(("minari:", "d4rl:")) else Path(ref).name
