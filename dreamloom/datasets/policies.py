"""Policies that choose actions for many environments at once while they are recorded, and mixtures of them.

A policy is any callable `policy(lanes, action_space, rng) -> act`, where `act(frames, first) -> actions` gets the
current frames, uint8 (lanes, h, w, 3), and which of them begin an episode, bool (lanes,), and returns one action for
each lane. It is called anew for every segment of a recording and must draw all its randomness from `rng`: then a
resumed recording equals an uninterrupted one.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple

import gymnasium
import numpy as np

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
Policy = Callable[[int, gymnasium.Space, np.random.Generator], Act]

STICKINESS = 0.9  # chance that `sticky` repeats its last action


def random(lanes: int, action_space: gymnasium.Space, rng: np.random.Generator) -> Act:
    """A new uniform action at every step."""
    draw = _sampler(action_space, rng)
    return lambda frames, first: draw(lanes)


def sticky(lanes: int, action_space: gymnasium.Space, rng: np.random.Generator) -> Act:
    """A uniform action, held for about ten steps."""
    draw = _sampler(action_space, rng)
    held = draw(lanes)

    def act(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        nonlocal held
        change = first | (rng.random(lanes) >= STICKINESS)
        held = np.where(change.reshape(-1, *[1] * (held.ndim - 1)), draw(lanes), held)
        return held

    return act


class Mixture(NamedTuple):
    """Policies and the shares of the lanes that they get."""

    names: list[str]
    policies: list[Policy]
    shares: np.ndarray

    def start(self, lanes: int, space: gymnasium.Space, rng: np.random.Generator) -> tuple[Act, np.ndarray]:
        """Begins a segment: what acts for all lanes, and the index of each lane's policy, (lanes,)."""
        # Systematic sampling: every segment has the shares as exactly as whole lanes allow, and no bias over segments.
        points = (rng.random() + np.arange(lanes)) / lanes
        chosen = np.searchsorted(np.cumsum(self.shares), points, side="right").clip(max=len(self.shares) - 1)
        groups = [(policy, slice(*np.searchsorted(chosen, [i, i + 1]).tolist())) for i, policy in enumerate(self.policies)]
        acts = [(policy(s.stop - s.start, space, rng), s) for policy, s in groups if s.stop > s.start]

        def act(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
            return np.concatenate([one(frames[s], first[s]) for one, s in acts])

        return act, chosen


def parse_mixture(text: str, builtin: Mapping[str, Policy]) -> Mixture:
    """Reads `name`, `module:callable`, or a weighted list such as `scripted:0.6,sticky:0.3,my.module:make:0.1`.

    Args:
        text: what the user wrote.
        builtin: the policies that have a name.

    Raises:
        ValueError: an unknown name, a module or callable that is not there, a weight that is no positive number.
    """
    items = [_split_weight(item.strip()) for item in text.split(",")]
    names = [name for name, _ in items]
    weights = np.array([weight for _, weight in items])
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise ValueError(f"--policy {text!r}: weights must be positive numbers")
    return Mixture(names, [_find(name, builtin) for name in names], weights / weights.sum())


def _split_weight(item: str) -> tuple[str, float]:
    name, _, weight = item.rpartition(":")
    try:
        return (name, float(weight)) if name else (item, 1.0)
    except ValueError:
        return item, 1.0


def _find(name: str, builtin: Mapping[str, Policy]) -> Policy:
    if name in builtin:
        return builtin[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"unknown policy {name!r}: choose from {', '.join(builtin)}, or give module:callable")
    if "" not in sys.path:
        sys.path.append("")  # a console script does not look into the folder where it is called
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r}: {error}") from error


def _sampler(space: gymnasium.Space, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    if isinstance(space, gymnasium.spaces.Discrete):
        return lambda count: rng.integers(space.start, space.start + space.n, count)
    assert isinstance(space, gymnasium.spaces.Box)
    return lambda count: rng.uniform(space.low, space.high, (count, *space.shape)).astype(np.float32)
