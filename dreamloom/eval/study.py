"""`eval study`: learners trained on real, synthetic and mixed replay, acting in the real environment, over seeds.

Cells of agents from pixels are made in eval/study_pixels.py.
"""

import argparse
import copy
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.training import train
from dreamloom.agents.units import Units
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.scores import normalized_score
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.eval.agent import evaluate_agent
from dreamloom.eval.arms import Arm, noisy_copies, reward_scale, share_of
from dreamloom.eval.study_cells import cell_path, claimed, clock, compute_device, note_settings, run_cells, write_json
from dreamloom.eval.study_pixels import Pixels, measure_pixels
from dreamloom.eval.study_report import write_study
from dreamloom.recipes import with_packaged_recipes
from dreamloom.suggest import explained

# Of a study's settings.
NUMBERS = ("upsampler_steps", "upsampler_batch", "upsampler_lr", "updates", "batch_size", "episodes", "noise", "seed")


class Study:
    """Every learner on every arm of every environment.

    Args:
        environments: Gymnasium id -> its real dataset.
        learners: name -> agent; its `seeds` train at once.
        arms: name -> what the learner is given.
        upsampler: fitted anew on every share of real rows that an arm upsamples.
        upsampler_steps: training steps of each upsampler.
        upsampler_batch: rows of such a step.
        upsampler_lr: its first learning rate.
        updates: of every learner, on every arm.
        batch_size: rows an update and seed.
        episodes: real episodes a seed after the last update.
        noise: standard deviation of the noisy copies, in standard deviations of each column.
        pixels: where learners look at frames: what is frozen and retrained, and on which levels they are tested.
        seed: fixes the shares, the upsamplers, the learners and the test episodes.
    """

    def __init__(
        self,
        *,
        environments: dict[str, Path],
        learners: dict[str, Agent],
        arms: dict[str, Arm],
        upsampler: Upsampler,
        upsampler_steps: int = 10_000,
        upsampler_batch: int = 256,
        upsampler_lr: float = 3e-4,
        updates: int = 50_000,
        batch_size: int = 256,
        episodes: int = 10,
        noise: float = 0.05,
        pixels: Pixels | None = None,
        seed: int = 0,
    ):
        self.environments, self.learners, self.arms, self.upsampler = environments, learners, arms, upsampler
        self.upsampler_steps, self.upsampler_batch, self.upsampler_lr = upsampler_steps, upsampler_batch, upsampler_lr
        self.updates, self.batch_size = updates, batch_size
        self.episodes, self.noise, self.seed = episodes, noise, seed
        self.pixels = pixels
        for name, arm in arms.items():
            arm.require(name, pixels=pixels is not None)
        if pixels is not None:
            pixels.require(environments, learners, arms, updates)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the results depend on, as JSON."""
        return {
            "environments": {name: str(path) for name, path in self.environments.items()},
            "learners": {name: agent.config for name, agent in self.learners.items()},
            "arms": {name: arm.settings(pixels=self.pixels is not None) for name, arm in self.arms.items()},
            "upsampler": self.upsampler.config,
            **{name: getattr(self, name) for name in NUMBERS},
            **({} if self.pixels is None else {"pixels": self.pixels.settings}),
        }

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """(environment, learner, arm): a learner's are all measured before the next one's."""
        for learner in self.learners:
            for arm in self.arms:
                for environment in self.environments:
                    yield environment, learner, arm


class _Help(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of the description."""


def eval_study(*arguments: str) -> None:
    """Compares learners on real, synthetic and mixed data: a recipe in, a report with intervals out.

    Every finished cell (environment, learner, arm) is kept in OUT/cells: a killed study goes on where it was, and the
    same command in a second terminal takes cells that the first has not begun. Every key of the recipe is an option.
    With --partial nothing is measured: the report is written from the cells that are there, and names those that are not.

    Example:
        dreamloom eval study -c recipes/studies/synther_halfcheetah.yaml --out reports/study
        dreamloom eval study -c recipes/studies/synther_halfcheetah.yaml --updates 1000 --out reports/quick
    """
    words = [word for word in arguments if word != "--partial"]
    (run_study if len(words) == len(arguments) else tell_study)(*read_study(words))


def read_study(arguments: Sequence[str], kind: type = Study, verb: Callable[..., None] = eval_study) -> tuple[Any, Path]:
    """The study that the words of the command line describe, and its folder.

    Args:
        arguments: the words.
        kind: the study's class, whose parameters are the keys of the recipe.
        verb: whose name and docstring the help shows.

    Raises:
        ValueError: an unknown key, or a study that cannot be.
    """
    parser = ArgumentParser(
        prog=f"dreamloom {verb.__name__.replace('_', ' ')}",
        description=inspect.getdoc(verb),
        formatter_class=_Help,
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action="config", help="recipe of the study")
    parser.add_argument("--out", type=str, required=True, help="folder for study.json, report.md and the plots")
    parser.add_class_arguments(kind)
    try:
        config = parser.parse_args(with_packaged_recipes(list(arguments)))
    except argparse.ArgumentError as error:
        raise ValueError(explained(str(error), [action.dest for action in parser._actions])) from error
    built = parser.instantiate_classes(config).as_dict()
    out = Path(built.pop("out"))
    built.pop("config", None)
    return kind(**built), out


def run_study(study: Study, out: Path) -> None:
    """Measures the cells that are not there yet, and writes the report once all are.

    Raises:
        ValueError: `out` holds another study.
    """
    of = measure if study.pixels is None else measure_pixels
    found = run_cells(out, study.settings, list(study.cells()), partial(of, study, out))
    if found is not None:
        write_study(out, study.settings, found)
        print(f"report {out / 'report.md'}")


def tell_study(study: Study, out: Path) -> None:
    """Writes the report of the cells that are there.

    Raises:
        ValueError: `out` holds another study, or no cell.
    """
    note_settings(out / "settings.json", study.settings)
    paths = {cell: cell_path(out, cell) for cell in study.cells()}
    found = {cell: json.loads(path.read_text()) for cell, path in paths.items() if path.exists()}
    write_study(out, study.settings, found, missing=[cell for cell in paths if cell not in found])
    print(f"report {out / 'report.md'}, of {len(found)} of {len(paths)} cells")


def measure(study: Study, out: Path, environment: str, learner: str, name: str) -> dict[str, Any]:
    """One cell of vectors: trains all seeds of a learner on an arm and lets them act."""
    arm = study.arms[name]
    began = clock()
    parts, cost = _parts(study, out, environment, arm)
    agent = _fresh(study.learners[learner], arm.width)
    data = Transitions.concatenate(parts)
    with open_dataset(study.environments[environment]) as source:
        units = Units.of(source.attrs)
    agent.prepare(data, seed=study.seed, units=units)
    agent.to(device := compute_device())
    buffer = Buffer([data], device=device, reward_scale=reward_scale(study.environments[environment]))
    prepared = clock()
    train(agent, buffer, updates=study.updates, batch_size=study.batch_size, seed=study.seed)
    trained = clock()
    # Seeds of the test episodes are far from those that anything was trained or tuned with.
    returns = evaluate_agent(agent, environment, episodes=study.episodes, seed=1_000_000 + study.seed)
    evaluated = clock()
    seconds = {**cost, "prepare": prepared - began, "train": trained - prepared, "evaluate": evaluated - trained}
    return {
        "scores": np.asarray(normalized_score(environment, returns.mean(1))).tolist(),
        "returns": returns.mean(1).tolist(),
        "episode_returns": returns.tolist(),
        "rows": len(data),
        "wall_s": trained - prepared + sum(cost.values()),
        "seconds": seconds,
    }


def _fresh(agent: Agent, width: int | None) -> Agent:
    if width is None:
        return copy.deepcopy(agent)
    return type(agent)(**{**agent.config["init_args"], "width": width})


def _parts(study: Study, out: Path, environment: str, arm: Arm) -> tuple[list[Transitions], dict[str, float]]:
    """The rows of an arm, and what the upsampler behind them cost, in seconds."""
    real = share_of(load_transitions(study.environments[environment]), arm.real, study.seed)
    parts = [real] if arm.keep else []
    cost: dict[str, float] = {}
    if arm.synthetic:
        more, cost = _upsampled(study, out / "synthetic" / environment, real, arm)
        parts.append(more)
    if arm.noisy:
        parts.append(noisy_copies(real, arm.noisy, study.noise, study.seed))
    return parts, cost


def _upsampled(study: Study, folder: Path, real: Transitions, arm: Arm) -> tuple[Transitions, dict[str, float]]:
    """Rows of an upsampler that saw `real` alone; made once, whichever cell comes first."""
    path = folder / f"real_{arm.real:g}_rows_{arm.synthetic}.hdf5"
    cost = path.with_suffix(".json")
    with claimed(path, wait=True):
        if not cost.exists():
            began = clock()
            upsampler = copy.deepcopy(study.upsampler).to(compute_device())
            upsampler.fit(
                real, steps=study.upsampler_steps, batch_size=study.upsampler_batch, lr=study.upsampler_lr, seed=study.seed
            )
            fitted = clock()
            made = upsampler.sample(arm.synthetic, seed=study.seed)
            path.unlink(missing_ok=True)
            save_dataset(made, path)
            write_json(cost, {"fit": fitted - began, "sample": clock() - fitted})
    return load_transitions(path), json.loads(cost.read_text())
