"""The verb `synthesize`: an upsampler or a world, and a number of rows -> a folder of shards that reads as one dataset."""

import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dreamloom import __version__
from dreamloom.datasets.atomic import require_folder, require_space
from dreamloom.datasets.shards import Plan, read_manifest, shard_numbers, write_index
from dreamloom.train.cli import quiet_lightning
from dreamloom.train.generation import ShardGenerator, ShardWriter, require_at_least_1
from dreamloom.train.imagined import imagined
from dreamloom.train.upsampled import SolverName, upsampled
from dreamloom.worldmodels.bundle import is_bundle
from dreamloom.worldmodels.starts import StartAt


def synthesize(
    checkpoint: str | Path,
    *,
    n: int,
    out: Path,
    seed: int = 0,
    shard_rows: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    curate: str = "",
    quantile: float = 0.99,
    solver: SolverName | None = None,
    condition: float | tuple[float, float] | None = None,
    guidance: float | None = None,
    real: Path | None = None,
    policy: str | None = None,
    starts: str | None = None,
    start_at: StartAt | None = None,
    context: int | None = None,
    horizon: int | None = None,
    temperature: float | None = None,
    outcomes: Path | None = None,
    rewards: str | None = None,
    penalty: float | None = None,
    accelerator: str = "auto",
    devices: int | Literal["auto"] = "auto",
    num_nodes: int = 1,
) -> None:
    """Generates rows with a trained upsampler or in a world, into a folder of shards that reads as one dataset.

    A row depends on the checkpoint, the seed and its number alone, so any number of processes share the work and give the
    same data. A stopped command goes on where it was, and a greater --n adds rows, when it is run again.

    Example:
        dreamloom synthesize runs/replay/transitions/version_0 --n 5000000 --out data/cheetah_synth
        dreamloom synthesize runs/replay/transitions/version_0 --n 5000000 --out data/cheetah_kept
            --curate range,dynamics --real data/cheetah.hdf5
        dreamloom synthesize worlds/coinrun --policy random --starts data/coinrun.hdf5 --n 500000 --horizon 32
            --out data/imagined

    Args:
        checkpoint: of an upsampler: what `dreamloom fit` wrote, the folder of its run, or of a recipe's runs, of which the
            newest counts. Of a world, with --policy: whatever `dreamloom play` plays.
        n: rows to generate.
        out: folder of the shards.
        seed: of the stream of rows.
        shard_rows: rows of a shard; 250,000, in a world 8,192 by default.
        batch_size: rows, in a world rollouts, that are generated at once, for each device or CPU core; 8,192 and 64 by default.
        steps: of the solver, or of the world's sampler, a frame.
        curate: rows to drop: range (a number outside the real data's), dynamics (a small model of the real dynamics finds the
            row wrong), or range,dynamics; in a world, uncertainty (a rollout ends before the world is less sure than it is of
            first steps from real frames). Dropped rows are counted and not replaced, so there are fewer than --n.
        quantile: of the dynamics errors of held-out real rows, or of the uncertainties of first steps; more is dropped.
        solver: sde_dpm, stochastic_heun (SynthER's) or euler; by default the checkpoint's own.
        condition: what rows are guided to, a value of the upsampler's condition or a range of its quantiles ([0.9, 1.0]).
        guidance: how strongly, 2 by default; 1 is plain conditioning.
        real: the real data, for --curate of an upsampler's rows.
        policy: who acts in a world: random, data (the actions that followed in --starts), or the checkpoint of an agent.
        starts: dataset that rollouts start from; the world's own prompts by default.
        start_at: uniform (the default, anywhere), first (episodes' first frames) or backward (their ends).
        context: frames that a rollout starts from; as many as the world's prompts have by default.
        horizon: steps of a rollout, 32 by default; one more row closes it.
        temperature: of the world's sampler.
        outcomes: checkpoint of heads that tell rewards and endings (recipes/coinrun/outcomes.yaml).
        rewards: module:callable that tells rewards from frames (b, 2, c, h, w), before and after each step.
        penalty: how much of its uncertainty (`infos/uncertainty`) is taken off a reward in a world.
        accelerator: cpu, gpu, ... as Lightning knows them.
        devices: processes on each machine.
        num_nodes: machines, under SLURM or torchrun.
    """
    of_upsamplers: dict[str, Any] = {"solver": solver, "condition": condition, "guidance": guidance, "real": real}
    of_worlds: dict[str, Any] = {"starts": starts, "start_at": start_at, "context": context, "horizon": horizon}
    of_worlds |= {"temperature": temperature, "outcomes": outcomes, "rewards": rewards, "penalty": penalty}
    shard_rows = (250_000 if policy is None else 8192) if shard_rows is None else shard_rows
    batch_size = (8192 if policy is None else 64) if batch_size is None else batch_size
    require_at_least_1(n=n, shard_rows=shard_rows, batch_size=batch_size)
    require_folder(out)
    shared: dict[str, Any] = {"seed": seed, "steps": steps, "batch_size": batch_size, "curate": curate, "quantile": quantile}
    if policy is None:
        _require_unset(of_worlds, "a world, which needs --policy")
        if is_bundle(str(checkpoint)):
            raise ValueError(f"{checkpoint} is a world: --policy says who acts in it")
        made = upsampled(Path(checkpoint), **shared, **of_upsamplers)
    else:
        _require_unset(of_upsamplers, "an upsampler: leave out --policy")
        made = imagined(str(checkpoint), policy=policy, **shared, **given(of_worlds))
    plan = Plan(seed, n, shard_rows)
    settings = json.loads(json.dumps({"seed": seed, "shard_rows": shard_rows, **made.settings}))  # as it reads back
    attrs = {**made.attrs, "source": {**made.attrs["source"], "dreamloom": __version__, **settings}}
    _require_place(out, plan, settings, made.row_bytes)
    writer = ShardWriter(out, attrs, {"settings": settings})
    trainer = _run(ShardGenerator(made.source, out, plan), writer, accelerator, devices, num_nodes)
    if trainer.is_global_zero:
        finish(out, plan, attrs)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _require_unset(options: Mapping[str, Any], what: str) -> None:
    if names := [f"--{name.replace('_', '-')}" for name in given(options)]:
        raise ValueError(f"{', '.join(names)}: for {what}")


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
    require_space(folder, needed)


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
        with _ends_at_sigterm():
            trainer.predict(module, return_predictions=False)
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    trainer.strategy.barrier()  # the index is written when the last rank is done
    return trainer


@contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """SIGTERM ends the process; Lightning, which keeps a handler that is there, would only note it and generate on."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
