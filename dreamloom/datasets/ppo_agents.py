"""Recordings by PPO: it records itself while it learns, and the agents that it leaves behind record as they are."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from tqdm import tqdm

from dreamloom.datasets.players import Part, Players
from dreamloom.datasets.policies import Act, Policy, parse_mixture, random
from dreamloom.datasets.recorder import Recorder

Quality = Literal["expert", "suboptimal", "mixed"]

_AGENTS = 10  # that are kept of a training
_SUBOPTIMAL = 0.75  # share of the best return (Mediratta et al. 2023)


class Training(Players):
    """An agent that learns from all that is played, and records it, or evenly spread parts of it.

    `OUT.part.N.pt` lets a killed recording go on; the agents in `OUT.agents` stay.

    Args:
        plan: steps, num_envs and seed of the recording.
        train_steps: to learn from, at least as many as are recorded; rounded to a multiple of them.
        device: where it computes.
        network: that looks at frames.
    """

    def __init__(self, plan: dict[str, int], *, train_steps: int, device: str, network: Literal["impala", "nature"]) -> None:
        from dreamloom.datasets.ppo import Learner

        super().__init__(parse_mixture("ppo", {"ppo": random}), plan["seed"], 15)
        self.times = max(1, round(train_steps / plan["steps"]))
        self.learner = Learner(plan["num_envs"], device=device, seed=plan["seed"], network=network)
        self.settings = {"train_steps": self.times * plan["steps"], "device": device, "network": network}

    def begin(self, recorder: Recorder, notes: dict[str, Any]) -> None:
        self._recorder, self._notes = recorder, notes
        self._folder = agents_folder(recorder.out)
        last = len(recorder.bounds) - 1
        self._kept = {round(last * share / _AGENTS) for share in range(1, _AGENTS + 1)}
        if recorder.segments.start:
            self.learner.load(self._path(recorder.segments.start))

    def parts(self, recorder: Recorder, number: int) -> Iterator[Part]:
        start, end = (int(row) for row in recorder.bounds[number : number + 2])
        for extra in range(1, self.times):
            yield Part(range(start, end), np.random.SeedSequence([self._seed, number, extra]), None)
        yield Part(range(start, end), np.random.SeedSequence([self._seed, number]), recorder)

    def start(self, lanes: int, length: int, seed: np.random.SeedSequence) -> tuple[Act, np.ndarray]:
        return self.learner.start(seed, length), np.zeros(lanes, np.int64)

    def reward(self, rewards: np.ndarray, first: np.ndarray) -> None:
        self.learner.reward(rewards, first)

    def end(self, frames: np.ndarray, first: np.ndarray) -> None:
        self.learner.update(frames, first)

    def tell(self, progress: tqdm) -> None:
        progress.set_postfix_str(f"return {self.learner.mean_return:.2f}", refresh=False)

    def save(self, segment: int) -> None:
        self.learner.save(self._path(segment))
        if segment in self._kept:
            steps = int(self._recorder.bounds[segment]) * self.times
            self.learner.keep(self._folder / f"{steps:09d}.safetensors", steps=steps, **self._notes)
        # `commit` waits for the one before, so the journal names this checkpoint or its predecessor.
        self._path(segment - 2).unlink(missing_ok=True)

    def finish(self) -> None:
        for segment in range(len(self._recorder.bounds)):
            self._path(segment).unlink(missing_ok=True)

    def _path(self, segment: int) -> Path:
        return self._recorder.part.with_name(f"{self._recorder.part.name}.{segment}.pt")


def agents_folder(out: Path) -> Path:
    """Where the agents of a recording stay: `data/a.hdf5` -> `data/a.agents`."""
    return out.with_suffix(".agents")


def agent_files(path: Path, quality: Quality) -> list[Path]:
    """The files of the agents that record.

    Args:
        path: the file itself, or a folder of agents.
        quality: which of a folder: "expert" has the highest mean return; "suboptimal" is the one that is nearest to three
            quarters of it; where no return is known, the last. "mixed" are all of them.

    Raises:
        ValueError: no agent is there.
    """
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ValueError(f"--agent {path}: no agent is there; `collect procgen --policy ppo` without --agent makes them")
    if quality == "mixed":
        return files
    returns = [notes(file)["mean_return"] for file in files]
    known = [(file, value) for file, value in zip(files, returns, strict=True) if value is not None]
    if not known:  # no episode ended while they learned
        return files[-1:]
    best = max(value for _, value in known)
    wanted = best if quality == "expert" else _SUBOPTIMAL * best
    return [min(known, key=lambda pair: abs(pair[1] - wanted))[0]]


def notes(file: Path) -> dict[str, Any]:
    """What is known of an agent: `mean_return`, `steps`, `game`, ...

    Raises:
        ValueError: no file of an agent.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {}).get("dreamloom", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"--agent {file}: not an agent that `collect procgen --policy ppo` made ({error})") from error
    if found.get("algorithm") != "ppo":
        raise ValueError(f"--agent {file}: not an agent that `collect procgen --policy ppo` made")
    return found


def named(files: Sequence[Path], policy: str) -> tuple[str, dict[str, Path]]:
    """A list of policies in which `ppo` stands for these agents in equal shares, and their names: `ppo`, or one for each.

    Args:
        files: of the agents.
        policy: `ppo`, alone or in a weighted list.
    """
    if len(files) == 1:
        return policy, {"ppo": files[0]}
    names = {f"ppo-{file.stem}": file for file in files}

    def spread(item: str) -> str:
        name, _, weight = item.strip().partition(":")
        return ",".join(f"{one}:{float(weight or 1) / len(files)}" for one in names) if name == "ppo" else item

    return ",".join(map(spread, policy.split(","))), names


def frozen(file: Path, *, device: str) -> Policy:
    """An agent that acts, drawing its actions, and learns no more.

    Raises:
        ValueError: no file of an agent.
    """
    from dreamloom.datasets.ppo import Learner, Network, weights_of

    network = notes(file).get("network", "impala")
    if network not in get_args(Network):
        raise ValueError(f"--agent {file}: its network {network!r} is not known")
    policy, weights = Learner(1, device=device, seed=0, network=network).model.policy, load_file(file)
    shapes = {name: value.shape for name, value in weights_of(policy).items()}
    if shapes != {name: value.shape for name, value in weights.items()}:
        raise ValueError(f"--agent {file}: its weights are not those of the {network} network")
    policy.load_state_dict(weights, strict=False)  # the same tensors under other names are left out
    policy.set_training_mode(False)

    def start(lanes: int, space: gymnasium.Space, rng: np.random.Generator) -> Act:
        def act(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
            seen = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).to(policy.device)
            with torch.no_grad():
                logits = policy.get_distribution(seen).distribution.logits  # type: ignore[union-attr]
            return (logits.cpu().numpy() + rng.gumbel(size=logits.shape)).argmax(1)

        return act

    return start
