"""A scripted policy for Procgen that gets somewhere: it holds a direction for a while and does something else when stuck.

Random actions leave a CoinRun agent near its starting point, and worlds trained on that know little else. This one runs
and jumps to the right mostly, but turns back, stands and falls often enough for a model to learn every action.
"""

from collections.abc import Mapping

import gymnasium
import numpy as np

from dreamloom.datasets.policies import Act

LEFT_DOWN, LEFT, LEFT_UP, DOWN, NOOP, UP, RIGHT_DOWN, RIGHT, RIGHT_UP, FIRE = range(10)

Taste = dict[int, int | float]  # action -> how often it is drawn, beside the others

_PLATFORMS: Taste = {RIGHT: 7, RIGHT_UP: 6, UP: 1.5, LEFT: 2.5, LEFT_UP: 1.5, NOOP: 1.5, DOWN: 0.5}
_EXPLORE: Taste = {LEFT: 4, RIGHT: 4, UP: 4, DOWN: 4, LEFT_UP: 1, RIGHT_UP: 1, LEFT_DOWN: 1, RIGHT_DOWN: 1, NOOP: 1}
_SHOOT: Taste = {LEFT: 3, RIGHT: 3, UP: 2, DOWN: 2, NOOP: 1, FIRE: 8}
_TASTES: Mapping[str, Taste] = {
    "coinrun": _PLATFORMS,
    "ninja": {**_PLATFORMS, FIRE: 2},
    "climber": {LEFT: 3, RIGHT: 3, LEFT_UP: 5, RIGHT_UP: 5, UP: 4, NOOP: 1},
    "jumper": {LEFT: 3, RIGHT: 3, LEFT_UP: 5, RIGHT_UP: 5, UP: 2, NOOP: 1},
    "leaper": {UP: 6, LEFT: 2, RIGHT: 2, NOOP: 4, DOWN: 1},
    "fruitbot": {LEFT: 3, RIGHT: 3, NOOP: 3, FIRE: 2},
    "bossfight": _SHOOT,
    "caveflyer": {LEFT: 3, RIGHT: 3, UP: 6, NOOP: 1, FIRE: 3},
    "dodgeball": _SHOOT,
    "plunder": {**_SHOOT, UP: 0.5, DOWN: 0.5},
    "starpilot": {**_SHOOT, RIGHT: 5},
}
_STROLL: Taste = {RIGHT: 5, LEFT: 4.5, NOOP: 1.5, RIGHT_UP: 1, LEFT_UP: 0.6, UP: 0.4}
_HOLD = (4, 17)  # an action is held for 4 to 16 steps
_HOP = 2  # steps that a stroller holds a jump: held longer it would jump again on landing
_CHANGED = 5  # pixels of those looked at; fewer are an animation
_PATIENCE = 3  # steps without a visible change before the policy counts itself stuck


def scripted(lanes: int, action_space: gymnasium.Space, rng: np.random.Generator, *, game: str) -> Act:
    """Holds actions drawn by the game's taste; a lane whose picture stands still though it moves tries another one."""
    return _holding(taste(game), lanes, rng, jump=None)


def taste(game: str) -> Taste:
    """The actions that get somewhere in a game, and how often each is drawn beside the others."""
    return _TASTES.get(game, _EXPLORE)


def stroll(lanes: int, action_space: gymnasium.Space, rng: np.random.Generator) -> Act:
    """Walks to and fro, stands, and hops now and then: mostly on the ground, where left, right and standing differ most."""
    return _holding(_STROLL, lanes, rng, jump=_HOP)


def _holding(taste: Taste, lanes: int, rng: np.random.Generator, *, jump: int | None) -> Act:
    actions = np.array(list(taste))
    shares = np.cumsum(list(taste.values())) / sum(taste.values())
    held, left, still = (np.zeros(lanes, np.int64) for _ in range(3))
    before = np.zeros((lanes, 0), np.uint8)

    def act(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        nonlocal before
        seen = frames[:, ::4, ::4, 1].reshape(lanes, -1)  # green alone, 256 of 4096 pixels: enough to see a motion
        moved = (seen != before).sum(axis=1) > _CHANGED if before.size else np.ones(lanes, bool)
        before = seen
        still[:] = np.where(moved | first | (held == NOOP), 0, still + 1)
        stuck = still >= _PATIENCE
        change = first | stuck | (left <= 0)
        fresh = actions[np.searchsorted(shares[:-1], rng.random(lanes), side="right")]
        if RIGHT_UP in taste and jump is None:
            fresh = np.where(stuck & (rng.random(lanes) < 0.6), RIGHT_UP, fresh)
        held[:] = np.where(change, fresh, held)
        steps = rng.integers(*_HOLD, lanes)
        if jump is not None:
            steps = np.where(np.isin(fresh, (LEFT_UP, UP, RIGHT_UP)), jump, steps)
        left[:] = np.where(change, steps, left) - 1
        still[stuck] = 0
        return held.copy()

    return act
