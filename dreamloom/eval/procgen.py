"""Returns of agents from pixels in real Procgen: whole episodes on levels of one's choice."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from dreamloom.agents.agent import Agent, Player
from dreamloom.datasets.procgen import ACTION_NAMES, Game, make_procgen
from dreamloom.datasets.subset import level_range
from dreamloom.nn.parts import checkpoint_at, read_checkpoint


def play_procgen(
    agent: Agent,
    game: str,
    levels: str,
    *,
    episodes: int = 100,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "s episodes"]:
    """Undiscounted returns of whole episodes under the greedy policies, on levels that are drawn from a range.

    Every agent plays the same levels. An environment's first episode counts, no other: short episodes get no second vote.

    Args:
        agent: prepared agents from pixels.
        game: one of the 16.
        levels: LO:HI, or DGRL's train, validation or test.
        episodes: an agent.
        seed: of the draw of levels and of the games' own randomness.
        options: further settings of the environment; a set that was recorded has them under `source.env`.
        progress: whether a bar is shown.

    Raises:
        ValueError: the game does not exist, or the agents do not look at its frames or act by its actions.
    """
    if game not in get_args(Game):  # of which Procgen would end the process
        raise ValueError(f"procgen has no game {game!r}: choose from {', '.join(get_args(Game))}")
    stack = _stack(agent, game)
    low, high = level_range(levels)
    kept = {name: value for name, value in (options or {}).items() if name not in ("env_name", "start_level", "num_levels")}
    settings = {"distribution_mode": "easy", **kept, "env_name": game, "start_level": low, "num_levels": high - low}
    envs = [make_procgen(episodes, rand_seed=seed, num_threads=1, **settings) for _ in range(agent.seeds)]
    try:
        return _play(agent, envs, stack, tqdm(desc=f"{game} {levels}", unit=" steps", disable=not progress))
    finally:
        for env in envs:
            env.close()


def _stack(agent: Agent, game: str) -> int:
    shape = None if agent.vision is None else tuple(agent.vision.shape)
    if shape is None or shape[0] % 3 or shape[1:] != (64, 64):
        raise ValueError(f"{game} shows frames (3, 64, 64) or stacks of them, the agents were trained on {shape or 'vectors'}")
    if not agent.discrete or len(agent.action_low) != len(ACTION_NAMES):
        kind = f"{len(agent.action_low)} {'discrete' if agent.discrete else 'continuous'} actions"
        raise ValueError(f"{game} has {len(ACTION_NAMES)} discrete actions, the agents were trained on {kind}")
    return shape[0] // 3


def _play(agent: Agent, envs: list[Any], stack: int, bar: tqdm) -> Float[np.ndarray, "s episodes"]:
    shape = (len(envs), envs[0].num)
    player, rewards = agent.player(envs[0].num), np.zeros(shape, np.float32)
    returns, running = np.zeros(shape), np.ones(shape, bool)
    history = np.stack([_frames(env) for env in envs])[:, :, None].repeat(stack, 2)
    with bar:
        while running.any():
            playing = np.flatnonzero(running.any(0))  # a column plays on until every agent's episode is over
            actions = np.zeros(shape, np.int32)
            actions[:, playing] = _act(agent, player, history[:, playing], rewards[:, playing], playing)
            for i, env in enumerate(envs):
                env.act(actions[i])
                rewards[i], _, first = env.observe()
                returns[i] += rewards[i] * running[i]
                running[i] &= ~first
            history = np.concatenate([history[:, :, 1:], np.stack([_frames(env) for env in envs])[:, :, None]], 2)
            bar.update()
    return returns


def _frames(env: Any) -> np.ndarray:
    return env.observe()[1]["rgb"]


def _act(agent: Agent, player: Player, history: np.ndarray, rewards: np.ndarray, playing: np.ndarray) -> np.ndarray:
    """Actions (s, p) at stacks (s, p, t, h, w, c)."""
    frames, earned, which = (torch.from_numpy(array).to(agent.device) for array in (history, rewards, playing))
    return player(frames.permute(0, 1, 2, 5, 3, 4).flatten(2, 3), earned, which).cpu().numpy()


def trained_on(run: str) -> tuple[str | None, dict[str, Any]]:
    """Levels that a run was trained on, where its checkpoint says so, and the settings of the environment that was recorded.

    Args:
        run: folder of a run of `dreamloom fit`, or its checkpoint.
    """
    checkpoint = read_checkpoint(checkpoint_at(run))
    data = checkpoint.get("FrameData") or checkpoint.get("AgentData") or {}
    levels, options = recorded_in(data.get("attrs", {}))
    return data.get("choose", {}).get("levels") or levels, options


def recorded_in(attrs: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Levels that a dataset was recorded on, and the settings of the environment, where its attributes say so."""
    source, latents = attrs.get("source"), attrs.get("latents", {})
    source = source if isinstance(source, dict) else {}
    options = source.get("env")
    return latents.get("levels") or source.get("levels"), dict(options) if isinstance(options, dict) else {}
