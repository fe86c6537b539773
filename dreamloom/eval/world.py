"""`dreamloom eval world`: the table that a serious reader expects of a playable world, on held-out levels."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from dreamloom.datasets.atomic import require_folder
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.eval.beside import read_reports, require_alike, table_of_worlds
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.protocols import sections
from dreamloom.eval.protocols.steady import steady
from dreamloom.eval.protocols.trial import Trial
from dreamloom.eval.provenance import provenance
from dreamloom.eval.psnr import MAX_PSNR
from dreamloom.eval.report import table, write_report
from dreamloom.nn.frame_shape import require_shape
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.world import Sampling, World

SECTIONS = ("rollout", "tokenizer", "distances", "control", "latent_actions", "latency", "steady")


def eval_world(
    world: str,
    *,
    data: Path,
    out: Path,
    clips: int = 64,
    context: int | None = None,
    steps: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    inverse_data: Path | None = None,
    i3d: Path | None = None,
    beside: list[Path] | None = None,
    sections: str = "all",
    steady_rollouts: int = 64,
    steady_frames: int = 256,
) -> dict[str, Any]:
    """Measures a world on held-out video and writes metrics.json, report.md, plots and grid.gif.

    Every metric, its formula and its source are in docs/evaluation.md.

    Args:
        world: folder of a world, its bundled name, hf://org/name; or the checkpoint (or folder of runs) of a world that is
            trained whole.
        data: recorded file with levels that the world was not trained on.
        out: folder for the report.
        clips: clips to dream of; a quarter of them to 64 steps. More of them narrow the confidence interval.
        context: real frames that a dream starts from; as many as the world's own prompts have by default.
        steps: refinement steps a frame; the world's own default if not given.
        temperature: the world's own default if not given.
        seed: of clips, dreams and random actions.
        device: where the world runs; auto is a GPU if there is one.
        inverse_data: recorded file to train the inverse model of action_swap on; by default half of the levels of `data`
            is kept for that, and all metrics are of the other half.
        i3d: TorchScript file of an I3D network; adds FVD.
        beside: reports of other worlds on the same clips; worlds.md then has them all in one table.
        sections: parts of the report to measure, with commas between: rollout, tokenizer, distances, control, latent_actions,
            latency, steady; or all.
        steady_rollouts: long rollouts with the dataset's own actions, of section steady; half as many hold one action.
        steady_frames: frames of each.

    Examples:
        dreamloom eval world worlds/coinrun --data data/coinrun_heldout.hdf5 --out reports/coinrun
        dreamloom eval world runs/coinrun/forcing --data data/coinrun_heldout.hdf5 --out reports/forcing --context 4
            --beside "[reports/coinrun, reports/diffusion]"
        dreamloom eval world worlds/coinrun --data data/coinrun_heldout.hdf5 --out reports/steady --sections steady,rollout
            --steady-rollouts 16
    """
    require_folder(out)
    if clips < 2:
        raise ValueError(f"--clips must be at least 2, got {clips}")
    others = read_reports(beside or [])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = load_world(world, device=device)
    sampling = Sampling(steps, temperature)
    metrics, pictures = evaluate(
        model,
        data=data,
        clips=clips,
        context=context,
        sampling=sampling,
        seed=seed,
        inverse_data=inverse_data,
        i3d=i3d,
        sections=sections,
        steady_rollouts=steady_rollouts,
        steady_frames=steady_frames,
    )
    write_report(out, metrics, pictures)
    print(table(metrics))
    if others:
        require_alike([*others, metrics])
        text = table_of_worlds([*others, metrics])
        (out / "worlds.md").write_text(text + "\n")
        print(text)
    if metrics["settings"]["levels_trained_on"]:
        print(f"warning: {metrics['notes']['levels']}", file=sys.stderr)
    print(f"wrote {out}/metrics.json, report.md, plots and grid.gif in {metrics['seconds']:.0f} s")
    return metrics


def evaluate(
    world: World,
    *,
    data: Path,
    clips: int = 64,
    context: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    seed: int = 0,
    inverse_data: Path | None = None,
    i3d: Path | None = None,
    sections: str = "all",
    steady_rollouts: int = 64,
    steady_frames: int = 256,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`eval_world` of a world in memory.

    Args:
        world: any world of discrete actions.
        data: see `eval_world`.
        clips: see `eval_world`.
        context: see `eval_world`.
        sampling: how frames are drawn.
        seed: see `eval_world`.
        inverse_data: see `eval_world`.
        i3d: see `eval_world`.
        sections: see `eval_world`.
        steady_rollouts: see `eval_world`.
        steady_frames: see `eval_world`.

    Returns:
        The content of `metrics.json`, and what the pictures of the report are made of.

    Raises:
        ValueError: the file does not fit the world.
    """
    began = time.perf_counter()
    context = max(1, world.prompts.shape[1]) if context is None else context
    chosen = _sections(sections)
    least = {"context": (context, 1), "steady-rollouts": (steady_rollouts, 2), "steady-frames": (steady_frames, 4)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"--{name} must be at least {bound}, got {value}")
    with open_dataset(data) as file, open_dataset(inverse_data or data) as other:
        for one in (file, other):
            _, h, w, c = one.frames.shape
            require_shape((c, h, w), world, one.ref)
        episodes = Episodes.of(file, _stride(file, world))
        train, test = (Episodes.of(other, _stride(other, world)), episodes) if inverse_data else episodes.halves()
        if not len(test.starts):
            train, test = test, episodes
        trial = Trial(world, test, clips, context, seed, sampling)
        metrics = {"world": _about(trial), "settings": {**_settings(trial, inverse_data), "sections": chosen}}
        pictures: dict[str, Any] = {"names": list(world.action_names)}
        todo = _todo(trial, train, i3d, pictures, steady_rollouts, steady_frames)
        metrics.update(_run({name: todo[name] for name in chosen}))
        metrics["notes"].update(_levels_note(metrics["settings"]))
    return {**metrics, **provenance(world.device), "seconds": time.perf_counter() - began}, pictures


def _stride(file: Dataset, world: World) -> int:
    """Rows of the file from one frame of the world to the next."""
    stride = round(file.fps / world.fps)
    if stride < 1 or abs(file.fps / world.fps - stride) > 0.05:
        raise ValueError(f"{file.path} has {file.fps:g} frames/s, {world.name} {world.fps:g}: the first must be a multiple")
    return stride


def _sections(text: str) -> list[str]:
    """The sections that are asked for, in the order in which they are measured."""
    asked = {word.strip() for word in text.split(",")}
    if unknown := sorted(asked - {"all", *SECTIONS}):
        raise ValueError(f"--sections {text}: {', '.join(map(repr, unknown))} is none of {', '.join(SECTIONS)}, all")
    return [name for name in SECTIONS if name in asked or "all" in asked]


def _todo(
    trial: Trial, train: Episodes, i3d: Path | None, pictures: dict[str, Any], rollouts: int, length: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """All sections by name; those that draw put what the report shows into `pictures`."""

    def rollout() -> dict[str, Any]:
        pictures["grid"] = sections.grid(trial)
        return sections.rollouts(trial)

    def long() -> dict[str, Any]:
        found, pictures["strips"] = steady(trial, train, rollouts=rollouts, length=length)
        return found

    return {
        "rollout": rollout,
        "tokenizer": lambda: sections.genie(trial),
        "distances": lambda: sections.distances(trial, i3d),
        "control": lambda: sections.control(trial, train),
        "latent_actions": lambda: sections.latent_actions(trial),
        "latency": lambda: sections.latency(trial),
        "steady": long,
    }


def _run(todo: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """Sections, each a dict of its own keys; what could not be measured is None and has its reason under `notes`."""
    metrics: dict[str, Any] = {"notes": {}}
    with tqdm(todo.items(), unit="part") as progress:
        for name, section in progress:
            progress.set_description(name)
            found = section()
            metrics["notes"].update(found.pop("notes", {}))
            metrics.update(found)
    return metrics


def _about(trial: Trial) -> dict[str, Any]:
    world, module = trial.world, trial.without_heads
    parameters = sum(p.numel() for p in module.parameters()) if isinstance(module, torch.nn.Module) else None
    return {
        "name": world.name,
        "game": world.game,
        "actions": "latent" if trial.latent is not None else "true",
        "action_names": list(world.action_names),
        "frame_shape": list(world.frame_shape),
        "fps": world.fps,
        "parameters": parameters,
        "train_cpu_s": getattr(world, "train_cpu_s", None),
        "train_wall_s": getattr(world, "train_wall_s", None),
    }


def _settings(trial: Trial, inverse_data: Path | None) -> dict[str, Any]:
    levels = trial.test.levels
    return {
        "data": trial.test.data.path.name,
        "source": trial.test.data.attrs.get("source"),
        "episodes": len(levels),
        "levels": len(set(levels.tolist())),
        "level_range": [int(levels.min()), int(levels.max())],
        "train_levels": list(getattr(trial.world, "train_levels", [])),
        "levels_trained_on": _levels_trained_on(trial),
        "clips": trial.clips,
        "context": trial.context,
        "stride": trial.test.stride,
        "seed": trial.seed,
        "sampling": {**asdict(trial.effective), "order": getattr(trial.world, "order", None)},
        "inverse_data": inverse_data.name if inverse_data else "the other half of the levels of data",
        "max_psnr": MAX_PSNR,
    }


def _levels_trained_on(trial: Trial) -> int | None:
    """How many of the evaluated levels the world may know from training; None where that cannot be told."""
    data, world = trial.test.data, trial.world
    if "level_seed" not in data.infos or not (ranges := getattr(world, "train_levels", [])):
        return None
    if data.attrs.get("game") != world.game:
        return 0
    bounds = [tuple(map(int, one.split(":"))) for one in ranges]
    return sum(any(low <= level < high for low, high in bounds) for level in set(trial.test.levels.tolist()))


def _levels_note(settings: dict[str, Any]) -> dict[str, str]:
    """What to say of the levels where they are not known to be held out."""
    known, ranges = settings["levels_trained_on"], ", ".join(settings["train_levels"])
    if known is None:
        what = "the file does not tell its levels" if ranges else "the world does not tell the levels it was trained on"
        return {"levels": f"{what}, so whether these are held out is not known"}
    if not known:
        return {}
    said = f"{known} of {settings['levels']} evaluated levels lie in the ranges that the world was trained on ({ranges})"
    return {"levels": f"{said}: these figures are not of held-out levels"}
