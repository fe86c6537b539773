"""Cells of a study of agents from pixels: learners from frames, heads on real and synthetic latents, levels seen and unseen.

Guzel, Bogunovic and Parker-Holder (2025), at equal budgets: every arm makes `updates`. Arms without latents make them all from
frames. In the others the last `head_updates` are made by new heads on the latents of the encoder, which is frozen; what there
is beside the real latents is drawn by an upsampler that saw these alone. Each seed has an encoder, latents, an upsampler and
heads of its own. Arms of the same frames share the updates up to there, which are made once.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from dreamloom.agents.agent import Agent
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.training import train
from dreamloom.agents.vision import Combination, Vision
from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.augment import Augment
from dreamloom.datasets.bandit import UCBDrAC
from dreamloom.datasets.scores import normalized_score
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.subset import overlap, subset
from dreamloom.eval.arms import Arm
from dreamloom.eval.procgen import play_procgen, recorded_in
from dreamloom.eval.study_cells import claimed, clock, compute_device
from dreamloom.eval.study_imagined import imagined_rows, rates, world_seconds
from dreamloom.eval.study_latents import Players, with_heads

if TYPE_CHECKING:
    from dreamloom.eval.study import Study

_JUDGED = 4096  # frames at the least, of which a bandit's rows are
_OF_UPSAMPLERS = ("guide", "guidance", "curate")


@dataclass(frozen=True)
class Pixels:
    """What a study is told when its learners look at frames. Environments are then procgen:GAME.

    Attributes:
        heads: learner's name -> agent of vectors, one seed, that is trained on latents.
        augment: how frames are changed in arms that are `augmented`; or a name of `augments`.
        augments: name -> further ways, for arms that are `augmented: NAME`.
        judge: levels by which a `UCBDrAC` judges its choices; neither trained on nor tested on.
        levels: that arms learn from unless they say otherwise, and that the return on levels seen is measured on.
        test: levels that no arm may see.
        head_updates: the last so many of all updates, in arms that have latents.
        stack: frames of an observation.
        combine: how latents are made of those of the learner's networks.
        baseline: the arm whose gap the others are measured by.
        guide: which quantiles of its `condition` an upsampler is asked for, e.g. [0.5, 1.0]; null for no guidance.
        guidance: strength of that.
        curate: which synthetic rows are dropped: range, dynamics, or both with a comma between (docs/replay.md).
        epsilon: chance of a random action at each step of the test, which frees a greedy policy that is stuck; DQN's is 0.05.
        imagined: environment -> rows imagined in a world of it, for arms that have such rows (`dreamloom synthesize`).
    """

    heads: dict[str, Agent]
    augment: Augment | str | None = None
    augments: dict[str, Augment] = field(default_factory=dict)
    judge: str | None = None
    levels: str = "train"
    test: str = "test"
    head_updates: int = 1000
    stack: int = 1
    combine: Combination = "sum"
    baseline: str = "baseline"
    guide: list[float] | None = None
    guidance: float = 2.0
    curate: str = ""
    epsilon: float = 0.0
    imagined: dict[str, Path] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """All that results depend on, as JSON."""
        heads = {name: agent.config for name, agent in self.heads.items()}
        augment = self.augment.config if isinstance(self.augment, Augment) else self.augment
        augments = {name: one.config for name, one in self.augments.items()}
        names = ("judge", "levels", "test", "head_updates", "stack", "combine", "baseline", "epsilon", *_OF_UPSAMPLERS)
        imagined = {name: str(path) for name, path in self.imagined.items()}
        parts = {"heads": heads, "augment": augment, "augments": augments, "imagined": imagined}
        return {**parts, **{name: getattr(self, name) for name in names}}

    def augmentation(self, arm: Arm) -> Augment | None:
        """How the frames of an arm are changed, each time a new copy; None where they are not.

        Raises:
            ValueError: there is none of that name.
        """
        chosen = self.augment if arm.augmented is True else arm.augmented or None
        if isinstance(chosen, str) and chosen not in self.augments:
            raise ValueError(f"no augmentation {chosen!r} in pixels.augments, only {', '.join(self.augments) or 'nothing'}")
        return copy.deepcopy(self.augments[chosen] if isinstance(chosen, str) else chosen)

    def require(
        self, environments: Mapping[str, Path], learners: Mapping[str, Agent], arms: Mapping[str, Arm], updates: int
    ) -> None:
        """Refuses what cannot be measured.

        Raises:
            ValueError: other environments, learners of vectors, no heads for one, arms that see the test's levels, no baseline.
        """
        others = [name for name in environments if not name.startswith("procgen:")]
        blind = [name for name, agent in learners.items() if not isinstance(agent.vision, Vision)]
        if others or blind:
            told = f"environments procgen:GAME, not {others[0]}" if others else f"a `vision` for learner {blind[0]}"
            raise ValueError(f"a study with `pixels` needs {told}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"pixels.epsilon is a chance, got {self.epsilon}")
        if not 0 < self.head_updates < updates:
            raise ValueError(f"pixels.head_updates are a part of all {updates} updates, got {self.head_updates}")
        if self.judge is None and any(isinstance(self.augmentation(arm), UCBDrAC) for arm in arms.values()):
            raise ValueError("pixels.augment is a UCBDrAC, which judges its choices by levels: pixels.judge LO:HI")
        if self.judge is not None and overlap(self.judge, self.test):
            raise ValueError(f"pixels.judge {self.judge} reaches into the levels of pixels.test, {self.test}")
        if self.baseline not in arms:
            raise ValueError(f"pixels.baseline: there is no arm {self.baseline!r}, only {', '.join(arms)}")
        for name, arm in arms.items():
            self._require_arm(name, arm, learners)
            if arm.imagined and (missing := sorted(environments.keys() - self.imagined)):
                raise ValueError(f"arm {name} has imagined rows: pixels.imagined has none for {missing[0]}")

    def _require_arm(self, name: str, arm: Arm, learners: Mapping[str, Agent]) -> None:
        levels = arm.levels or self.levels
        for kind, others in (("test", self.test), ("judge", self.judge)):
            if others is not None and overlap(levels, others):
                raise ValueError(f"arm {name}: levels {levels} reach into those of pixels.{kind}, {others}")
        if self.augmentation(arm) is None and arm.augmented:
            raise ValueError(f"arm {name} is augmented, and there is no pixels.augment")
        missing = [learner for learner in learners if learner not in self.heads]
        if arm.heads and missing:
            raise ValueError(f"arm {name} trains heads on latents: pixels.heads has none for {missing[0]}")
        if any(self.heads[learner].seeds != 1 for learner in learners if learner in self.heads):
            raise ValueError("pixels.heads have one seed each: those of the learner decide how many are trained")


def measure_pixels(study: "Study", out: Path, environment: str, learner: str, name: str) -> dict[str, Any]:
    """One cell of frames: trains all seeds of a learner on an arm and lets them act on levels seen and unseen."""
    arm, pixels = study.arms[name], study.pixels
    assert pixels is not None
    began = clock()
    buffer = _frames(study, environment, arm)
    agent, shared = _learner(study, out, environment, learner, arm, buffer)
    prepared = clock()
    made = (with_heads if arm.heads else _from_frames)(study, learner, arm, agent, buffer)
    if arm.imagined:
        dreamt = pixels.imagined[environment]
        made.seconds |= world_seconds(dreamt)
        made.notes["imagined"] = rates(dreamt, study.environments[environment], arm.levels or pixels.levels)
    trained = clock()
    seen, unseen = (_returns(study, environment, made.agents, levels) for levels in (pixels.levels, pixels.test))
    evaluated = clock()
    seconds = {"frames": shared, **made.seconds, "prepare": prepared - began, "evaluate": evaluated - trained}
    return {
        **_scored(environment, unseen),
        "train": _scored(environment, seen),
        "rows": len(buffer),
        "bytes_per_transition": round(buffer.bytes_per_transition, 1),
        **made.notes,
        "wall_s": shared + sum(made.seconds.values()),  # without what was measured
        "seconds": seconds,
    }


def _scored(environment: str, returns: Float[np.ndarray, "s episodes"]) -> dict[str, Any]:
    scores = np.asarray(normalized_score(environment, returns.mean(1)))
    return {"scores": scores.tolist(), "returns": returns.mean(1).tolist(), "episode_returns": returns.tolist()}


def _frames(study: "Study", environment: str, arm: Arm) -> FrameBuffer:
    """The frames of an arm: whole episodes on its levels, drawn with the study's seed until they have its share of the rows."""
    assert study.pixels is not None
    levels = arm.levels or study.pixels.levels
    data = subset(study.environments[environment], levels=levels)
    if arm.real < 1:
        data = subset(data, rows=max(1, round(arm.real * len(data))), seed=study.seed)
    augment = study.pixels.augmentation(arm)
    judge = None
    settings: dict[str, Any] = {"stack": study.pixels.stack, "device": compute_device()}
    if study.pixels.judge is not None and augment is not None:
        choose = {"levels": study.pixels.judge, "rows": _JUDGED, "seed": study.seed}
        judge = FrameBuffer(study.environments[environment], choose=choose, **settings)
    with data:
        parts = [data]
        if arm.imagined:
            some: dict[str, Any] = {"rows": arm.imagined, "levels": levels, "test": study.pixels.test, "seed": study.seed}
            parts.append(imagined_rows(study.pixels.imagined[environment], data, **some))
        return FrameBuffer(parts, augment=augment, judge=judge, **settings)


def _learner(study: "Study", out: Path, environment: str, learner: str, arm: Arm, buffer: FrameBuffer) -> tuple[Agent, float]:
    """The learner when the updates are made that all arms of these frames share, and the seconds that these took."""
    assert study.pixels is not None
    kept = {name: value for name, value in asdict(arm).items() if name in ("real", "levels", "augmented", "imagined")}
    words = "--".join([environment, learner, *(f"{name}_{value}" for name, value in kept.items())])
    path = out / "learners" / f"{words}.pt"
    agent = copy.deepcopy(study.learners[learner])
    agent.prepare(buffer, seed=study.seed)
    agent.to(buffer.device)
    with claimed(path, wait=True):
        if not path.exists():
            began = clock()
            updates = study.updates - study.pixels.head_updates
            train(agent, buffer, updates=updates, batch_size=study.batch_size, seed=study.seed, horizon=study.updates)
            _save(path, agent, buffer, clock() - began)
    return agent, _load(path, agent, buffer)


def _save(path: Path, agent: Agent, buffer: FrameBuffer, seconds: float) -> None:
    assert agent.optimizer is not None
    state = {"agent": agent.state_dict(), "optimizer": agent.optimizer.state_dict(), "seconds": seconds}
    if buffer.augment is not None:
        state["augment"] = buffer.augment.state_dict()  # what a bandit has found out
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _load(path: Path, agent: Agent, buffer: FrameBuffer) -> float:
    assert agent.optimizer is not None
    state = torch.load(path, map_location=agent.device, weights_only=True)
    agent.load_state_dict(state["agent"])
    agent.optimizer.load_state_dict(state["optimizer"])
    if buffer.augment is not None:
        buffer.augment.load_state_dict(state["augment"])
    return float(state["seconds"])


def _from_frames(study: "Study", learner: str, arm: Arm, agent: Agent, buffer: FrameBuffer) -> Players:
    """The learner goes on to the end."""
    began = clock()
    left = study.updates - agent.updates
    train(agent, buffer, updates=left, batch_size=study.batch_size, seed=study.seed, horizon=study.updates)
    return Players([agent], {"train": clock() - began})


def _returns(study: "Study", environment: str, agents: list[Agent], levels: str) -> Float[np.ndarray, "s episodes"]:
    """Returns of whole episodes; every seed of every arm plays the same levels."""
    with open_dataset(study.environments[environment]) as data:
        _, options = recorded_in(data.attrs)
    # Far from those that anything was trained or tuned with.
    settings: dict[str, Any] = {"episodes": study.episodes, "seed": 1_000_000 + study.seed, "options": options}
    assert study.pixels is not None
    settings["epsilon"] = study.pixels.epsilon
    game = environment.removeprefix("procgen:")
    return play_procgen(agents, game, levels, **settings)
