"""Moments of real Procgen from which one goes on twice: in the game, whose state is kept, and in a world that saw it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.policies import Act, Policy
from dreamloom.datasets.procgen import ACTION_NAMES, make_procgen
from dreamloom.worldmodels.world import Sampling

SPACE = gymnasium.spaces.Discrete(len(ACTION_NAMES))
_EVERY = 10  # steps from one moment that may be kept to the next: to ask for states takes time


class Branches(NamedTuple):
    """Moments of some games.

    Attributes:
        frames: (b, t, h, w, c), the last ones up to the moment; before an episode's first frame it is repeated.
        states: of the games, as Procgen writes them.
    """

    frames: UInt8[np.ndarray, "b t h w c"]
    states: list[bytes]

    def save(self, path: Path) -> None:
        """Writes an `.npz`."""
        ends = np.cumsum([len(state) for state in self.states])
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, frames=self.frames, states=np.frombuffer(b"".join(self.states), np.uint8), ends=ends)

    @classmethod
    def load(cls, path: Path) -> "Branches":
        """What `save` wrote."""
        with np.load(path) as kept:
            whole, ends = kept["states"].tobytes(), kept["ends"].tolist()
            states = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            return cls(kept["frames"], states)


def games(count: int, settings: Mapping[str, Any], seed: int) -> Any:
    """So many games side by side."""
    return make_procgen(count, rand_seed=seed, num_threads=1, **settings)


def find_branches(env: Any, act: Act, *, frames: int, warmup: int, random: np.random.Generator) -> Branches:
    """One moment of each game, after a number of steps that is drawn evenly from 0 to `warmup`, in steps of ten.

    Args:
        env: games.
        act: who plays until then.
        frames: t, to keep of each.
        warmup: most steps.
        random: of the number of steps.
    """
    when = _EVERY * random.integers(warmup // _EVERY + 1, size=env.num)
    _, seen, first = env.observe()
    history = seen["rgb"][:, None].repeat(frames, 1)
    kept, states = history.copy(), [b""] * env.num
    for step in range(int(when.max()) + 1):
        if (due := np.flatnonzero(when == step)).size:
            kept[due], found = history[due], env.callmethod("get_state")
            for game in due:
                states[game] = found[game]
        env.act(act(history[:, -1], first))
        _, seen, first = env.observe()
        history = np.concatenate([history[:, 1:], seen["rgb"][:, None]], 1)
        history[first] = seen["rgb"][first][:, None]
    return Branches(kept, states)


def play_on(env: Any, states: list[bytes], policy: Policy, *, horizon: int, seed: int) -> Float[np.ndarray, "b"]:
    """Undiscounted returns of so many steps of the game, or of fewer where the episode ends.

    Args:
        env: as many games as there are states.
        states: to go on from.
        policy: who plays.
        horizon: steps.
        seed: of the policy.
    """
    env.callmethod("set_state", states)
    act, first = policy(env.num, SPACE, np.random.default_rng(seed)), np.zeros(env.num, bool)
    returns, running = np.zeros(env.num), np.ones(env.num, bool)
    for _ in range(horizon):
        env.act(act(env.observe()[1]["rgb"], first))
        rewards, _, first = env.observe()
        returns, running = _after(returns, running, rewards, first)
    return returns


@torch.inference_mode()
def dream_on(
    world: Any,
    frames: UInt8[np.ndarray, "b t h w c"],
    policy: Policy,
    *,
    horizon: int,
    seed: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Float[np.ndarray, "b"]:
    """The same in a world that tells rewards: what it says that so many steps earn.

    Args:
        world: any World of Procgen's actions.
        frames: to go on from.
        policy: who plays.
        horizon: steps.
        seed: of the policy and of the world.
        sampling: how frames are drawn.

    Raises:
        ValueError: the world tells no rewards.
    """
    state = world.reset(torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous())
    act, generator = policy(len(frames), SPACE, np.random.default_rng(seed)), torch.Generator(world.device).manual_seed(seed)
    returns, running = np.zeros(len(frames)), np.ones(len(frames), bool)
    for _ in range(horizon):
        shown = state.frame.permute(0, 2, 3, 1).cpu().numpy()
        state, outcome = world.step(state, torch.from_numpy(act(shown, ~running)), generator, sampling)
        if outcome.reward is None:
            raise ValueError(f"{world.name}: tells no rewards; --outcomes takes a checkpoint of heads that do")
        ended = np.zeros(len(frames), bool) if outcome.terminal is None else outcome.terminal.cpu().numpy()
        returns, running = _after(returns, running, outcome.reward.cpu().numpy(), ended)
        if not running.any():
            break
    return returns


def _after(
    returns: np.ndarray, running: Bool[np.ndarray, "b"], rewards: np.ndarray, ended: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return returns + rewards * running, running & ~ended
