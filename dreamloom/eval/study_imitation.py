"""`eval imitation`: what latent actions are worth to who imitates clips without actions (Bruce et al. 2024, appendix E).

Expert clips are labelled, a policy learns frame -> label, and acts by a table label -> true action. Arms differ in who labels:
eval/labelers.py. They share levels, test episodes and the number of updates.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from dreamloom.agents.agent import Agent
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.relabelled import Relabelled
from dreamloom.agents.training import train
from dreamloom.agents.vision import Vision
from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.subset import overlap
from dreamloom.eval.imitation_report import write_imitation
from dreamloom.eval.inverse_labels import inverse_labels, inverse_said
from dreamloom.eval.labelers import (
    Labelled,
    Labels,
    inferred,
    latent_labels,
    load_latent_actions,
    merged_actions,
    no_labels,
    true_labels,
)
from dreamloom.eval.procgen import play_procgen, recorded_in
from dreamloom.eval.study import read_study
from dreamloom.eval.study_cells import claimed, clock, compute_device, run_cells

NUMBERS = ("latent_actions", "stride", "clip", "share", "members", "inverse_steps", "levels", "test", "updates", "batch_size")
_PLAYED = ("episodes", "seed")


class Imitation:
    """Every learner on the labels of every arm, in every environment.

    Args:
        environments: procgen:GAME -> clips of an expert.
        learners: name -> BC from single frames; its `seeds` train at once.
        arms: name -> whose labels are cloned.
        latent_actions: world with latent actions (a folder, or a name that comes with dreamloom), or a trained latent action
            model (checkpoint or folder of runs).
        stride: rows from one frame that this model sees to the next; the bundled world's saw every second row.
        clip: frames that it sees: 2 for a model of pairs.
        share: of the rows, in whole episodes, that inverse models see the true actions of.
        members: inverse models of an ensemble.
        inverse_steps: training steps of each.
        levels: that the clips are of, and that the share of levels solved is measured on.
        test: levels that no policy has seen.
        updates: of every learner, on every arm.
        batch_size: rows an update and seed.
        episodes: a seed, on `levels` and on `test` each.
        seed: fixes draws, learners and test episodes.
    """

    def __init__(
        self,
        *,
        environments: dict[str, Path],
        learners: dict[str, Agent],
        arms: dict[str, Labels],
        latent_actions: str,
        stride: int = 1,
        clip: int = 2,
        share: float = 0.1,
        members: int = 3,
        inverse_steps: int = 600,
        levels: str = "0:100",
        test: str = "100000:1000000",
        updates: int = 4000,
        batch_size: int = 256,
        episodes: int = 100,
        seed: int = 0,
    ):
        self.environments, self.learners, self.arms = environments, learners, arms
        self.latent_actions, self.stride, self.clip = latent_actions, stride, clip
        self.share, self.members, self.inverse_steps = share, members, inverse_steps
        self.levels, self.test = levels, test
        self.updates, self.batch_size, self.episodes, self.seed = updates, batch_size, episodes, seed
        self._require()

    def _require(self) -> None:
        others = [name for name in self.environments if not name.startswith("procgen:")]
        blind = [name for name, agent in self.learners.items() if not isinstance(agent.vision, Vision)]
        if others or blind:
            told = f"environments procgen:GAME, not {others[0]}" if others else f"a `vision` for learner {blind[0]}"
            raise ValueError(f"a study of imitation needs {told}")
        if overlap(self.levels, self.test):
            raise ValueError(f"levels {self.levels} reach into those of test, {self.test}")
        if self.stride < 1 or self.clip < 2 or self.members < 1 or not 0 < self.share < 1:
            told = f"stride {self.stride}, clip {self.clip}, members {self.members}, share {self.share}"
            raise ValueError(f"stride and members are at least 1, clip at least 2, share between 0 and 1; got {told}")
        for name, arm in self.arms.items():
            arm.require(name)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the results depend on, as JSON."""
        return {
            "environments": {name: str(path) for name, path in self.environments.items()},
            "learners": {name: agent.config for name, agent in self.learners.items()},
            "arms": {name: asdict(arm) for name, arm in self.arms.items()},
            **{name: getattr(self, name) for name in NUMBERS + _PLAYED},
        }

    def cells(self) -> Iterator[tuple[str, str, str]]:
        """(environment, learner, arm)."""
        for arm in self.arms:
            for environment in self.environments:
                for learner in self.learners:
                    yield environment, learner, arm


def eval_imitation(*arguments: str) -> None:
    """Imitates expert clips without actions, by latent actions, beside others who label them; a report with intervals.

    Every finished cell (environment, learner, arm) is kept in OUT/cells: a killed study goes on where it was, and the
    same command in a second terminal takes cells that the first has not begun. Every key of the recipe is an option.

    Example:
        dreamloom eval imitation -c recipes/studies/imitation.yaml --out reports/imitation
        dreamloom eval imitation -c recipes/studies/imitation.yaml --updates 500 --episodes 20 --out reports/quick
    """
    study, out = read_study(arguments, Imitation, eval_imitation)
    found = run_cells(out, study.settings, list(study.cells()), partial(measure, study, out))
    if found is not None:
        write_imitation(out, study.settings, found)
        print(f"report {out / 'report.md'}")


def measure(study: Imitation, out: Path, environment: str, learner: str, name: str) -> dict[str, Any]:
    """One cell: labels the clips, trains all seeds of a learner on the labels and lets them act on levels seen and unseen."""
    frames = _clips(study, environment)
    labelled, labelling = _labelled(study, out, (environment, learner, name), frames)
    agent, trained = _policy(study, out, (environment, learner, name), frames, labelled)
    began_to_play = clock()
    seen, unseen = (_solved(study, environment, agent, labelled, levels) for levels in (study.levels, study.test))
    seconds = {"label": labelling, "train": trained, "evaluate": clock() - began_to_play}
    return {
        **unseen,
        "train": seen,
        "rows": [len(rows) for rows in labelled.rows],
        "right": labelled.right(frames.episodes.actions),
        **labelled.notes,
        "wall_s": seconds["label"] + seconds["train"],  # without what was measured
        "seconds": seconds,
    }


def _clips(study: Imitation, environment: str) -> FrameBuffer:
    """The expert's clips; actions that ask for the same motion are one."""
    path = study.environments[environment]
    frames = FrameBuffer(path, choose={"levels": study.levels}, device=compute_device())
    merged = merged_actions(frames.action_names or ACTION_NAMES, environment.removeprefix("procgen:")).to(frames.device)
    frames.episodes = frames.episodes._replace(actions=merged[frames.episodes.actions])
    return frames


def _labelled(study: Imitation, out: Path, cell: tuple[str, str, str], frames: FrameBuffer) -> tuple[Labelled, float]:
    """The labels of an arm, and the seconds that they took; what models say of the frames is found out once."""
    environment, learner, name = cell
    arm, began, count = study.arms[name], clock(), len(ACTION_NAMES)
    seeds = range(study.seed, study.seed + study.learners[learner].seeds)
    settings: dict[str, Any]
    if arm.by == "latent":
        model = load_latent_actions(study.latent_actions).to(frames.device)
        settings = {"stride": study.stride, "clip": study.clip}
        kept = _kept(out / "labels" / f"{environment}.pt", frames, lambda: {"labels": inferred(frames, model, **settings)})
        sizes = model.actions, count
        return latent_labels(frames, kept["labels"], seeds, sizes, stride=study.stride, arm=arm), float(kept["seconds"])
    if arm.by == "inverse":
        settings = {"members": study.members, "steps": study.inverse_steps, "batch": study.batch_size, "share": study.share}
        path = out / "labels" / f"{environment}--{learner}--inverse.pt"
        said = _kept(path, frames, lambda: inverse_said(frames, count, seeds, **settings))
        return inverse_labels(frames, count, seeds, said, share=study.share, sure=arm.sure), float(said["seconds"])
    labelled = no_labels(frames, count, seeds) if arm.by == "random" else true_labels(frames, count, seeds, arm.samples)
    return labelled, clock() - began


def _kept(path: Path, frames: FrameBuffer, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What several arms share, with the `seconds` that it took: made by the first that asks, then read."""
    with claimed(path, wait=True):
        if not path.exists():
            began = clock()
            state = make()
            with atomic_path(path) as temporary:
                torch.save({**state, "seconds": clock() - began}, temporary)
    found: dict[str, Any] = torch.load(path, map_location=frames.device, weights_only=True)
    return found


def _policy(
    study: Imitation, out: Path, cell: tuple[str, str, str], frames: FrameBuffer, labelled: Labelled
) -> tuple[Agent, float]:
    """The learner, and the seconds that it trained; arms of latent actions share one, which is trained once."""
    environment, learner, name = cell
    arm = study.arms[name]
    agent = copy.deepcopy(study.learners[learner])
    buffer = Relabelled(frames, labelled.labels, labelled.rows, labelled.table.shape[1])
    agent.prepare(buffer, seed=study.seed)
    agent.to(frames.device)
    if arm.by == "random":
        return agent, 0.0

    def trained() -> dict[str, Any]:
        train(agent, buffer, updates=study.updates, batch_size=study.batch_size, seed=study.seed)
        return {"agent": agent.state_dict()}

    words = f"{environment}--{learner}--{'latent' if arm.by == 'latent' else name}"
    state = _kept(out / "learners" / f"{words}.pt", frames, trained)
    agent.load_state_dict(state["agent"])
    return agent, float(state["seconds"])


def _solved(study: Imitation, environment: str, agent: Agent, labelled: Labelled, levels: str) -> dict[str, Any]:
    """Returns of whole episodes, and the share of them that paid, %; every seed of every arm plays the same levels."""
    with open_dataset(study.environments[environment]) as data:
        _, options = recorded_in(data.attrs)
    generator = torch.Generator(agent.device).manual_seed(study.seed)
    # Far from those that anything was trained or tuned with.
    settings: dict[str, Any] = {"episodes": study.episodes, "seed": 1_000_000 + study.seed, "options": options}
    act = partial(labelled.act, generator=generator)
    returns = play_procgen(agent, environment.removeprefix("procgen:"), levels, translate=act, **settings)
    return {"scores": paid(returns), "returns": returns.mean(1).tolist(), "episode_returns": returns.tolist()}


def paid(returns: Float[np.ndarray, "s episodes"]) -> list[float]:
    """Share of episodes with a return above 0, %: of levels solved, in a game that pays at the end alone, as CoinRun does."""
    return (100 * (returns > 0).mean(1)).tolist()
