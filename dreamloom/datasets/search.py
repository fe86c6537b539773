"""Solving levels of Procgen by search in the simulator, and a policy that plays what was found.

Go-Explore's first phase (Ecoffet et al. 2021, "First return, then explore"): return to a state that was seen before, by loading
it rather than by playing, and explore from there; states that look alike are one cell, of which the best is kept. What
is found is then shortened by leaving out steps at random as long as the return stays. A level is the same whenever it
is played, so a list of actions is a solution.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dreamloom.datasets.scripted import NOOP, taste
from dreamloom.datasets.simulator import SLOTS, Simulator, fingerprints

_HOP = 6  # steps of a try
_CHANGE = 0.25  # chance that a try goes on with another action
_PATIENCE = 8  # rounds without a higher return after one that ends the episode; or without a new state before there is one
_SHORTENINGS = 8  # rounds of leaving out steps
_DETOURS = 3  # rounds of variations

Plan = list[int]


@dataclass
class Solution:
    """What was found in one level.

    Attributes:
        level: its seed.
        gained: return of the plans.
        plans: actions from the first frame on: the shortest that was found, then variations of it.
        first: fingerprint of the level's first frame.
    """

    level: int
    gained: float
    plans: list[Plan]
    first: int


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
        drawn = [numbers[i] for i in rng.choice(len(numbers), SLOTS, p=weights / weights.sum())]
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
        plans: list[np.ndarray] = []
        if gained > 0:
            plans = self._vary(root, self._shorten(root, archive.plan(), gained, rng), gained, rng)
        return Solution(level, gained, [plan.tolist() for plan in plans], first)

    def _explore(self, archive: _Archive, rng: np.random.Generator) -> bool:
        """One round of tries; whether one has a higher return than all before."""
        drawn = archive.draw(rng)
        nodes = [archive.nodes[number] for number in drawn]
        self._simulator.load([node.state for node in nodes])
        gained = np.array([node.gained for node in nodes])
        over, higher = np.zeros(SLOTS, bool), False
        actions = np.zeros((SLOTS, _HOP), np.int64)
        for step in range(_HOP):
            fresh = rng.choice(self._actions, SLOTS, p=self._shares)
            change = (rng.random(SLOTS) < _CHANGE) | (step == 0)
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

    def _shorten(self, root: bytes, plan: np.ndarray, gained: float, rng: np.random.Generator) -> np.ndarray:
        """A plan of the same return and fewer steps."""
        for _ in range(_SHORTENINGS):
            shorter = [plan, *(_without_some(plan, rng) for _ in range(SLOTS - 1))]
            steps = self._steps_to(root, shorter, gained)
            best = int(steps.argmin())
            plan = shorter[best][: steps[best]]
        return plan

    def _vary(self, root: bytes, plan: np.ndarray, gained: float, rng: np.random.Generator) -> list[np.ndarray]:
        """The plan, and others of the same return that leave it for some steps and come back, each but once."""
        found = {plan.tobytes(): plan}
        for _ in range(_DETOURS):
            known = list(found.values())
            tried = [self._with_detour(known[rng.integers(len(known))], rng) for _ in range(SLOTS)]
            for one, steps in zip(tried, self._steps_to(root, tried, gained), strict=True):
                if steps <= len(one):
                    found[one[:steps].tobytes()] = one[:steps]
        return list(found.values())

    def _with_detour(self, plan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An action held for some steps is put in, in place of none, some or all of as many steps."""
        start, length = rng.integers(len(plan)), 1 + rng.geometric(_CHANGE)
        back = start + rng.integers(length + 1)
        return np.concatenate([plan[:start], rng.choice(self._actions, 1, p=self._shares).repeat(length), plan[back:]])

    def _steps_to(self, root: bytes, plans: list[np.ndarray], gained: float) -> Int[np.ndarray, "b"]:
        """After how many steps each plan has so high a return; a very great number where it has not."""
        self._simulator.load([root] * SLOTS)
        lengths = np.array([len(plan) for plan in plans])
        steps = np.full(SLOTS, np.iinfo(np.int64).max)
        total, over = np.zeros(SLOTS), np.zeros(SLOTS, bool)
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


def _cells(frames: UInt8[np.ndarray, "b h w c"]) -> Int[np.ndarray, "b"]:
    """Of frames that look alike: 16 x 16 pixels of 11 shades a channel."""
    small = frames.reshape(len(frames), 16, 4, 16, 4, 3).mean((2, 4)) // 24
    return fingerprints(small.astype(np.uint8))
