"""Rows of an upsampler, as a source of `dreamloom synthesize`."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.curation import Rule, RuleName, curate, fit_rules, parse_rules
from dreamloom.diffusion.solvers import Euler, SDEDPMSolver, Solver, StochasticHeun
from dreamloom.diffusion.upsampler import ALLOWED, Upsampler, load_upsampler
from dreamloom.nn.build import build
from dreamloom.nn.parts import checkpoint_at, read_checkpoint
from dreamloom.nn.threads import one_thread
from dreamloom.train.generation import Made, Shard, fingerprint, kept_attrs

SolverName = Literal["sde_dpm", "stochastic_heun", "euler"]
SOLVERS: dict[SolverName, type[Solver]] = {"sde_dpm": SDEDPMSolver, "stochastic_heun": StochasticHeun, "euler": Euler}


class UpsampledRows(nn.Module):
    """Rows of an upsampler.

    Args:
        upsampler: the trained model.
        seed: of the stream of rows.
        batch_size: rows that are generated at once.
        rules: of curation.
        options: further arguments of `Upsampler.sample`.
    """

    def __init__(
        self,
        upsampler: Upsampler,
        *,
        seed: int,
        batch_size: int,
        rules: Mapping[RuleName, Rule],
        options: Mapping[str, Any],
    ):
        super().__init__()
        self.upsampler, self.seed, self.batch_size = upsampler, seed, batch_size
        self.rules, self.options = rules, options

    def shard(self, rows: range, workers: Executor, tell: Callable[[int], object]) -> Shard:
        """See `Source.shard`."""
        parts: list[Transitions] = []
        dropped: dict[str, int] = dict.fromkeys(self.rules, 0)
        for data, wrong in workers.map(partial(self._generate, rows.stop), rows[:: self.batch_size]):
            parts.append(data)
            for rule, count in wrong.items():
                dropped[rule] += count
            tell(len(data) + sum(wrong.values()))
        whole = Transitions.concatenate(parts)
        columns: dict[str, Any] = {name: column for name, column in vars(whole).items() if column is not None}
        # All shards of a folder have the same columns.
        return Shard({**columns, "next_known": columns.get("next_known", np.ones(len(whole), bool))}, dropped)

    @torch.inference_mode()  # which holds for one thread only
    def _generate(self, stop: int, start: int) -> tuple[Transitions, dict[RuleName, int]]:
        count = min(self.batch_size, stop - start)
        rows = self.upsampler.sample(count, seed=self.seed, start=start, batch_size=count, **self.options)
        return curate(rows, self.rules)


def upsampled(
    checkpoint: Path,
    *,
    seed: int,
    steps: int | None,
    batch_size: int,
    curate: str,
    quantile: float,
    solver: SolverName | None,
    condition: float | tuple[float, float] | None,
    guidance: float | None,
    real: Path | None,
) -> Made:
    """Rows of an upsampler; see `synthesize`."""
    names = parse_rules(curate)
    if bool(names) != bool(real):
        raise ValueError("--curate and --real need each other: rows are held against the real data")
    checkpoint = checkpoint_at(checkpoint)
    upsampler = load_upsampler(checkpoint)
    options: dict[str, Any] = {
        "solver": make_solver(upsampler, solver, steps),
        "condition": condition,
        "guidance": 2.0 if guidance is None else guidance,
    }
    example = upsampler.sample(1, **options)
    with one_thread():
        rules = fit_rules(names, _real_rows(real, example), quantile=quantile, seed=seed) if real else {}
    settings = {
        "model": fingerprint(upsampler, upsampler.config),
        **options,
        "solver": options["solver"].config,
        "curate": {name: fingerprint(rule) for name, rule in rules.items()},
    }
    source = UpsampledRows(upsampler, seed=seed, batch_size=batch_size, rules=rules, options=options)
    row_bytes = sum(column.nbytes for column in vars(example).values() if column is not None)
    return Made(source, settings, _attrs(checkpoint), row_bytes)


def make_solver(upsampler: Upsampler, name: SolverName | None, steps: int | None) -> Solver:
    """The solver asked for: by name, else the upsampler's own; with the number of steps asked for, else its own."""
    changed = {} if steps is None else {"steps": steps}
    if name:
        return SOLVERS[name](**changed)
    init_args = upsampler.solver.config["init_args"] | changed
    solver: Any = build({**upsampler.solver.config, "init_args": init_args}, ALLOWED)
    return solver


def _real_rows(path: Path, example: Transitions) -> Transitions:
    real = load_transitions(path)
    for name in ("observations", "actions"):
        have, need = getattr(real, name), getattr(example, name)
        if (have.shape[1:], have.dtype) != (need.shape[1:], need.dtype):
            raise ValueError(
                f"{path}: a row of `{name}` is {have.dtype} {have.shape[1:]}, the checkpoint's is {need.dtype} {need.shape[1:]}"
            )
    return real


def _attrs(checkpoint: Path) -> dict[str, Any]:
    """What files say of themselves: the real data's own attributes, and which data that is."""
    real = read_checkpoint(checkpoint).get("TransitionData")
    source: dict[str, Any] = {"checkpoint": str(checkpoint)}
    if not real:
        return {"synthetic": True, "source": source}
    source["real"] = {"path": real["path"], "rows": real["rows"], "source": real["attrs"].get("source")}
    return {**kept_attrs(real["attrs"]), "synthetic": True, "source": source}
