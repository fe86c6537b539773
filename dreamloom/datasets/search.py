"""Solving levels of Procgen by search in the simulator, and a policy that plays what was found.

Go-Explore's first phase (Ecoffet et al. 2021, "First return, then explore"): return to a state that was seen before, by loading
it rather than by playing, and explore from there; states that look alike are one cell, of which the best is kept. What
is found is then shortened by leaving out steps at random as long as the return stays. A level is the same whenever it
is played, so a list of actions is a solution.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from dreamloom.datasets.scripted import NOOP, taste

_SLOTS = 64  # copies of the simulator, each of which makes one try a round
_HOP = 6  # steps of a try
_CHANGE = 0.25  # chance that a try goes on with another action
_PATIENCE = 8  # rounds without a higher return after one that ends the episode; or without a new state before there is one
_SHORTENINGS = 8  # rounds of leaving out steps, as many as solutions are kept at the most

Plan = list[int]


@dataclass
class Solution:
    """What was found in one level.

    Attributes:
        level: its seed.
        gained: return of the plans.
        plans: actions from the first frame on; the last one is the shortest, those before are longer by and by.
        first: fingerprint of the level's first frame.
    """

    level: int
    gained: float
    plans: list[Plan]
    first: int


class Simulator:
    """Copies of one game that can be put into any state.

    Args:
        options: of the environment, as `make_procgen` takes them.
        threads: that step the copies.
    """

    def __init__(self, options: dict[str, Any], threads: int = 1) -> None:
        from dreamloom.datasets.procgen import make_procgen

        self._make, self._options = make_procgen, options
        self._env = make_procgen(_SLOTS, rand_seed=0, num_threads=threads, **options)

    def close(self) -> None:
        """Closes the copies."""
        self._env.close()

    def root(self, level: int) -> tuple[bytes, int]:
        """The state in which a level begins, and the fingerprint of its first frame."""
        env = self._make(1, rand_seed=0, num_threads=0, **{**self._options, "start_level": level, "num_levels": 1})
        _, observation, _ = env.observe()
        state = env.callmethod("get_state")[0]
        first = int(fingerprints(observation["rgb"])[0])
        env.close()
        return state, first

    def load(self, states: list[bytes]) -> None:
        """Puts every copy into a state."""
        self._env.callmethod("set_state", states)
        self._env.observe()

    def states(self) -> list[bytes]:
        """The states that the copies are in."""
        return self._env.callmethod("get_state")

    def step(
        self, actions: Int[np.ndarray, "b"]
    ) -> tuple[Float[np.ndarray, "b"], Bool[np.ndarray, "b"], UInt8[np.ndarray, "b h w c"]]:
        """Rewards, which episodes ended, and frames after an action in every copy."""
        self._env.act(actions)
        rewards, observation, first = self._env.observe()
        return rewards, first, observation["rgb"]


@dataclass
class _Node:
    parent: int
    actions: np.ndarray
    state: bytes
    steps: int
    gained: float
    tries: int = 0


class _Archive:
    """The best state of every cell of one level, and how each was come by."""

    def __init__(self, state: bytes) -> None:
        self.nodes = [_Node(-1, np.zeros(0, np.int64), state, 0, 0.0)]
        self._open = {0: 0}  # cell -> node
        self.best: tuple[tuple[float, int], int, np.ndarray] = ((0.0, 0), 0, self.nodes[0].actions)
        self.ended = False  # whether the best ends its episode

    def draw(self, rng: np.random.Generator) -> list[int]:
        """Nodes to go on from: rather those that were seldom tried, are far, and have gained something."""
        numbers = list(self._open.values())
        tries, steps, gained = (
            np.array([getattr(self.nodes[n], name) for n in numbers]) for name in ("tries", "steps", "gained")
        )
        weights = (0.2 + steps / max(1, steps.max())) * (1 + gained.clip(0)) / (1 + tries)
        drawn = [numbers[i] for i in rng.choice(len(numbers), _SLOTS, p=weights / weights.sum())]
        for number in drawn:
            self.nodes[number].tries += 1
        return drawn

    def add(self, cell: int, node: _Node) -> None:
        """Keeps a state if it is the first of its cell, or better than that: more gained, or as much in fewer steps."""
        held = self.nodes[self._open[cell]] if cell in self._open else None
        if held is None or (node.gained, -node.steps) > (held.gained, -held.steps):
            self._open[cell] = len(self.nodes)
            self.nodes.append(node)

    def offer(self, value: tuple[float, int], parent: int, actions: np.ndarray, *, ended: bool) -> bool:
        """Notes what a try came to, (return, -steps), if nothing was better; whether its return is the highest so far."""
        if value <= self.best[0]:
            return False
        higher = value[0] > self.best[0][0]
        self.best, self.ended = (value, parent, actions.copy()), ended
        return higher

    def plan(self) -> np.ndarray:
        """The actions that lead to the best that was found."""
        _, number, actions = self.best
        parts = [actions]
        while number > 0:
            parts.append(self.nodes[number].actions)
            number = self.nodes[number].parent
        return np.concatenate(parts[::-1])


class Search:
    """Searches levels of a game.

    Args:
        options: of the environment, as `make_procgen` takes them.
        rounds: of 64 tries at the most, in each level.
        seed: of all that is drawn, with the level's number.
        threads: that step the simulator.
    """

    def __init__(self, options: dict[str, Any], *, rounds: int, seed: int, threads: int = 1) -> None:
        self._simulator = Simulator(options, threads)
        self._rounds, self._seed = rounds, seed
        liked = taste(options["env_name"])
        self._actions, shares = np.array(list(liked)), np.array(list(liked.values()), float)
        self._shares = shares / shares.sum()

    def close(self) -> None:
        """Closes the simulator."""
        self._simulator.close()

    def solve(self, level: int) -> Solution:
        """What is found in a level; no plans where nothing has a positive return."""
        rng = np.random.default_rng([self._seed, level])
        root, first = self._simulator.root(level)
        archive = _Archive(root)
        higher = wider = 0  # the last rounds that found a higher return, and a new state
        for number in range(self._rounds):
            states = len(archive.nodes)
            if self._explore(archive, rng):
                higher = number
            if len(archive.nodes) > states:
                wider = number
            if number - (higher if archive.ended else wider) >= _PATIENCE:
                break
        gained = float(archive.best[0][0])
        plans = self._shorten(root, archive.plan(), gained, rng) if gained > 0 else []
        return Solution(level, gained, plans, first)

    def _explore(self, archive: _Archive, rng: np.random.Generator) -> bool:
        """One round of tries; whether one has a higher return than all before."""
        drawn = archive.draw(rng)
        nodes = [archive.nodes[number] for number in drawn]
        self._simulator.load([node.state for node in nodes])
        gained = np.array([node.gained for node in nodes])
        over, higher = np.zeros(_SLOTS, bool), False
        actions = np.zeros((_SLOTS, _HOP), np.int64)
        for step in range(_HOP):
            fresh = rng.choice(self._actions, _SLOTS, p=self._shares)
            change = (rng.random(_SLOTS) < _CHANGE) | (step == 0)
            actions[:, step] = np.where(change, fresh, actions[:, step - 1])
            rewards, ended, frames = self._simulator.step(actions[:, step])
            gained += np.where(over, 0, rewards)
            for slot in np.flatnonzero((rewards > 0) & ~over):
                value = (float(gained[slot]), -nodes[slot].steps - step - 1)
                higher |= archive.offer(value, drawn[slot], actions[slot, : step + 1], ended=bool(ended[slot]))
            over |= ended
        states, cells = self._simulator.states(), _cells(frames)
        for slot in np.flatnonzero(~over):
            steps = nodes[slot].steps + _HOP
            node = _Node(drawn[slot], actions[slot].copy(), states[slot], steps, float(gained[slot]))
            archive.add(int(cells[slot]), node)
        return higher

    def _shorten(self, root: bytes, plan: np.ndarray, gained: float, rng: np.random.Generator) -> list[Plan]:
        """Plans of the same return, each shorter than the one before."""
        plans = [plan.tolist()]
        for _ in range(_SHORTENINGS):
            shorter = [plan, *(_without_some(plan, rng) for _ in range(_SLOTS - 1))]
            steps = self._steps_to(root, shorter, gained)
            best = int(steps.argmin())
            plan = shorter[best][: steps[best]]
            if len(plan) < len(plans[-1]):
                plans.append(plan.tolist())
        return plans

    def _steps_to(self, root: bytes, plans: list[np.ndarray], gained: float) -> Int[np.ndarray, "b"]:
        """After how many steps each plan has so high a return; a very great number where it has not."""
        self._simulator.load([root] * _SLOTS)
        lengths = np.array([len(plan) for plan in plans])
        steps = np.full(_SLOTS, np.iinfo(np.int64).max)
        total, over = np.zeros(_SLOTS), np.zeros(_SLOTS, bool)
        for step in range(lengths.max()):
            actions = np.array([plan[step] if step < len(plan) else NOOP for plan in plans])
            rewards, ended, _ = self._simulator.step(actions)
            over |= step >= lengths
            total += np.where(over, 0, rewards)
            reached = (total >= gained - 1e-4) & ~over & (steps > step)
            steps[reached] = step + 1
            over |= ended | reached
            if over.all():
                break
        return steps


def _without_some(plan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for _ in range(rng.integers(1, 4)):
        if len(plan) < 3:
            break
        start = rng.integers(len(plan))
        plan = np.delete(plan, slice(start, start + 1 + int(rng.exponential(len(plan) / 10))))
    return plan


def fingerprints(frames: UInt8[np.ndarray, "b h w c"]) -> Int[np.ndarray, "b"]:
    """A number for each frame; equal frames have equal ones."""
    digests = [blake2b(frame.tobytes(), digest_size=7).digest() for frame in frames]
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.int64)


def _cells(frames: UInt8[np.ndarray, "b h w c"]) -> Int[np.ndarray, "b"]:
    """Of frames that look alike: 16 x 16 pixels of 11 shades a channel."""
    small = frames.reshape(len(frames), 16, 4, 16, 4, 3).mean((2, 4)) // 24
    return fingerprints(small.astype(np.uint8))
