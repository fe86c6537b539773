"""The verb `synthesize`: a trained upsampler and a number of rows -> a folder of shards that reads as one dataset."""

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from dreamloom import __version__
from dreamloom.datasets.shards import Plan, read_manifest, shard_numbers, write_index
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.curation import Rule, RuleName, fit_rules, parse_rules
from dreamloom.diffusion.solvers import Euler, SDEDPMSolver, Solver, StochasticHeun
from dreamloom.diffusion.upsampler import ALLOWED, Upsampler, load_upsampler
from dreamloom.nn.build import build
from dreamloom.nn.parts import checkpoint_at, read_checkpoint
from dreamloom.train.cli import quiet_lightning
from dreamloom.train.generation import ShardGenerator, ShardWriter, one_thread

SolverName = Literal["sde_dpm", "stochastic_heun", "euler"]
SOLVERS: dict[SolverName, type[Solver]] = {"sde_dpm": SDEDPMSolver, "stochastic_heun": StochasticHeun, "euler": Euler}


def synthesize(
    checkpoint: Path,
    *,
    n: int,
    out: Path,
    seed: int = 0,
    shard_rows: int = 250_000,
    batch_size: int = 8192,
    solver: SolverName | None = None,
    steps: int | None = None,
    condition: float | tuple[float, float] | None = None,
    guidance: float = 2.0,
    curate: str = "",
    real: Path | None = None,
    quantile: float = 0.99,
    accelerator: str = "auto",
    devices: int | Literal["auto"] = "auto",
    num_nodes: int = 1,
) -> None:
    """Generates rows with a trained upsampler, into a folder of shards that reads as one dataset.

    A row depends on the checkpoint, the seed and its number alone, so any number of processes share the work and give the
    same data. A stopped command goes on where it was, and a greater --n adds rows, when it is run again.

    Example:
        dreamloom synthesize runs/replay/transitions/version_0 --n 5000000 --out data/cheetah_synth
        dreamloom synthesize runs/replay/transitions/version_0 --n 5000000 --out data/cheetah_kept
            --curate range,dynamics --real data/cheetah.hdf5

    Args:
        checkpoint: a checkpoint of `dreamloom fit`, the folder of its run, or of a recipe's runs, of which the newest counts.
        n: rows to generate.
        out: folder of the shards.
        seed: of the stream of rows.
        shard_rows: rows of a shard.
        batch_size: rows that are generated at once, for each device or CPU core.
        solver: sde_dpm, stochastic_heun (SynthER's) or euler; by default the checkpoint's own.
        steps: of the solver.
        condition: what rows are guided to, a value of the upsampler's condition or a range of its quantiles ([0.9, 1.0]).
        guidance: how strongly; 1 is plain conditioning.
        curate: rows to drop: range (a number outside the real data's), dynamics (a small model of the real dynamics finds the
            row wrong), or range,dynamics. Dropped rows are counted and not replaced, so there are fewer than --n.
        real: the real data, for --curate.
        quantile: of the dynamics errors of held-out real rows; rows with a greater error are dropped.
        accelerator: cpu, gpu, ... as Lightning knows them.
        devices: processes on each machine.
        num_nodes: machines, under SLURM or torchrun.
    """
    _require_sense(n=n, shard_rows=shard_rows, batch_size=batch_size)
    names = parse_rules(curate)
    if bool(names) != bool(real):
        raise ValueError("--curate and --real need each other: rows are held against the real data")
    checkpoint = checkpoint_at(checkpoint)
    upsampler, plan = load_upsampler(checkpoint), Plan(seed, n, shard_rows)
    options: dict[str, Any] = {"solver": make_solver(upsampler, solver, steps), "condition": condition, "guidance": guidance}
    example = upsampler.sample(1, **options)
    with one_thread():
        rules = fit_rules(names, _real_rows(real, example), quantile=quantile, seed=seed) if real else {}
    settings = _settings(upsampler, plan, options, rules)
    _require_place(out, plan, settings, sum(column.nbytes for column in vars(example).values() if column is not None))
    attrs = _attrs(checkpoint, settings)
    module = ShardGenerator(upsampler, out, plan, batch_size=batch_size, rules=rules, options=options)
    trainer = _run(module, ShardWriter(out, attrs, {"settings": settings}), accelerator, devices, num_nodes)
    if trainer.is_global_zero:
        finish(out, plan, attrs)


def make_solver(upsampler: Upsampler, name: SolverName | None, steps: int | None) -> Solver:
    """The solver asked for: by name, else the upsampler's own; with the number of steps asked for, else its own."""
    changed = {} if steps is None else {"steps": steps}
    if name:
        return SOLVERS[name](**changed)
    init_args = upsampler.solver.config["init_args"] | changed
    solver: Any = build({**upsampler.solver.config, "init_args": init_args}, ALLOWED)
    return solver


def finish(folder: Path, plan: Plan, attrs: Mapping[str, Any]) -> None:
    """Writes the index of a folder whose shards are all there, and says what was made.

    Raises:
        ValueError: a shard is missing, or curation left no row.
    """
    manifests = [manifest for shard in range(plan.shards) if (manifest := read_manifest(folder, shard))]
    if len(manifests) < plan.shards:
        raise ValueError(f"{folder}: has {len(manifests)} of {plan.shards} shards; run the same command again")
    dropped = {rule: sum(manifest["dropped"][rule] for manifest in manifests) for rule in manifests[0]["dropped"]}
    rows = sum(manifest["rows"] for manifest in manifests)
    if not rows:
        raise ValueError(f"{folder}: curation dropped all {plan.rows} rows ({dropped}); is --real what the model learnt from?")
    write_index(folder, manifests, attrs, generated=plan.rows, dropped=dropped)
    why = "".join(f"; {rule} dropped {count:,} ({count / plan.rows:.2%})" for rule, count in dropped.items())
    print(f"saved {folder}: {rows:,} rows in {plan.shards} shards{why}", file=sys.stderr)


def fingerprint(module: nn.Module, config: Any = None) -> str:
    """sha256 of a module's weights, and of what else it is made of."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
    return total.hexdigest()


def _require_sense(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: expected at least 1")


def _real_rows(path: Path, example: Transitions) -> Transitions:
    real = load_transitions(path)
    for name in ("observations", "actions"):
        have, need = getattr(real, name), getattr(example, name)
        if (have.shape[1:], have.dtype) != (need.shape[1:], need.dtype):
            raise ValueError(
                f"{path}: a row of `{name}` is {have.dtype} {have.shape[1:]}, the checkpoint's is {need.dtype} {need.shape[1:]}"
            )
    return real


def _settings(upsampler: Upsampler, plan: Plan, options: Mapping[str, Any], rules: Mapping[RuleName, Rule]) -> dict[str, Any]:
    """All that rows depend on, as it reads back from JSON."""
    settings = {
        "seed": plan.seed,
        "shard_rows": plan.shard_rows,
        "model": fingerprint(upsampler, upsampler.config),
        **options,
        "solver": options["solver"].config,
        "curate": {name: fingerprint(rule) for name, rule in rules.items()},
    }
    return json.loads(json.dumps(settings))


def _attrs(checkpoint: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every file says of itself: the real data's own attributes, and how the rows were made."""
    real = read_checkpoint(checkpoint).get("TransitionData")
    source = {"checkpoint": str(checkpoint), "dreamloom": __version__, **settings}
    if not real:
        return {"synthetic": True, "source": source}
    kept = {name: value for name, value in real["attrs"].items() if name not in ("format", "format_version", "source")}
    source["real"] = {"path": real["path"], "rows": real["rows"], "source": real["attrs"].get("source")}
    return {**kept, "synthetic": True, "source": source}


def _require_place(folder: Path, plan: Plan, settings: Mapping[str, Any], row_bytes: int) -> None:
    """The folder holds nothing but shards of this plan, and the disk has room for the others."""
    made = shard_numbers(folder)
    for shard in made:
        before = (read_manifest(folder, shard) or {}).get("settings", {})
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            was = ", ".join(f"{key}={_brief(before.get(key))} (now {_brief(settings[key])})" for key in changed)
            raise ValueError(f"{folder}: holds shards with other settings: {was}; choose another --out, or delete the folder")
    if made and made[-1] >= plan.shards:
        raise ValueError(f"{folder}: holds {made[-1] + 1} shards, --n {plan.rows} asks for {plan.shards}; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    needed = row_bytes * (plan.rows - sum(len(plan.rows_of(shard)) for shard in made))
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(f"{folder}: needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free")


def _brief(setting: Any) -> str:
    text = json.dumps(setting)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _run(module: ShardGenerator, writer: ShardWriter, accelerator: str, devices: int | str, num_nodes: int) -> Trainer:
    quiet_lightning()
    for advice in (
        "Couldn't infer the batch indices",
        "The 'predict_dataloader' does not have many workers",
        "Total length of",
    ):
        warnings.filterwarnings("ignore", advice)
    silent: dict[str, Any] = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    try:
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            callbacks=[writer],
            use_distributed_sampler=False,  # the plan says which rank makes which shard
            **silent,
        )
        trainer.predict(module, return_predictions=False)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    trainer.strategy.barrier()  # the index is written when the last rank is done
    return trainer
