"""Returns of agents from pixels in real Procgen: whole episodes on levels of one's choice."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from dreamloom.agents.agent import Agent, Player
from dreamloom.datasets.procgen import ACTION_NAMES, Game, make_procgen
from dreamloom.datasets.subset import level_range
from dreamloom.nn.parts import checkpoint_at, read_checkpoint


def play_procgen(
    agents: Agent | Sequence[Agent],
    game: str,
    levels: str,
    *,
    episodes: int = 100,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    epsilon: float = 0.0,
    translate: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
) -> Float[np.ndarray, "s episodes"]:
    """Undiscounted returns of whole episodes, as agents play, on levels that are drawn from a range.

    Every agent plays the same levels. An environment plays one episode and is not stepped afterwards: short episodes get no
    second vote, and cost nothing while long ones go on.

    Args:
        agents: prepared agents from pixels, or several of these, whose seeds then come one after another.
        game: one of the 16.
        levels: LO:HI, or DGRL's train, validation or test.
        episodes: an agent.
        seed: of the draw of levels and of the games' own randomness.
        options: further settings of the environment; a set that was recorded has them under `source.env`.
        epsilon: chance of a random action at each step, so that a greedy policy which is stuck gets free (Mnih et al. 2015 play
            with 0.05). The agents are not told.
        translate: from what the agents say to the game's actions, both (s, p), in which p episodes are played; None where they
            say these.
        progress: whether a bar is shown.

    Raises:
        ValueError: the game does not exist, or the agents do not look at its frames or act by its actions.
    """
    if game not in get_args(Game):  # of which Procgen would end the process
        raise ValueError(f"procgen has no game {game!r}: choose from {', '.join(get_args(Game))}")
    agents = [agents] if isinstance(agents, Agent) else list(agents)
    stacks = [_stack(agent, game, len(agent.action_low) if translate is None else len(ACTION_NAMES)) for agent in agents]
    low, high = level_range(levels)
    kept = {name: value for name, value in (options or {}).items() if name not in ("env_name", "start_level", "num_levels")}
    settings = {"distribution_mode": "easy", **kept, "env_name": game, "start_level": low, "num_levels": high - low}
    # One environment each: a vector of them would step all until its last episode is over.
    draws = np.random.default_rng(seed).integers(2**31, size=episodes).tolist()
    seeds = sum(agent.seeds for agent in agents)
    envs = [[make_procgen(1, rand_seed=draw, num_threads=0, **settings) for draw in draws] for _ in range(seeds)]
    players = [_wandering(_translated(agent.player(episodes), translate), epsilon, seed) for agent in agents]
    try:
        return _play(agents, players, envs, stacks, tqdm(desc=f"{game} {levels}", unit=" steps", disable=not progress))
    finally:
        for env in itertools.chain(*envs):
            env.close()


def _stack(agent: Agent, game: str, actions: int) -> int:
    shape = None if agent.vision is None else tuple(agent.vision.shape)
    if shape is None or shape[0] % 3 or shape[1:] != (64, 64):
        raise ValueError(f"{game} shows frames (3, 64, 64) or stacks of them, the agents were trained on {shape or 'vectors'}")
    if not agent.discrete or actions != len(ACTION_NAMES):
        kind = f"{actions} {'discrete' if agent.discrete else 'continuous'} actions"
        raise ValueError(f"{game} has {len(ACTION_NAMES)} discrete actions, the agents were trained on {kind}")
    return shape[0] // 3


def _play(
    agents: Sequence[Agent], players: Sequence[Player], envs: list[list[Any]], stacks: Sequence[int], bar: tqdm
) -> Float[np.ndarray, "s episodes"]:
    shape, ends = (len(envs), len(envs[0])), np.cumsum([agent.seeds for agent in agents]).tolist()
    returns, rewards, running = np.zeros(shape), np.zeros(shape, np.float32), np.ones(shape, bool)
    first = np.array([[env.observe()[1]["rgb"][0] for env in row] for row in envs])
    history = first[:, :, None].repeat(max(stacks), 2)
    with bar:
        while running.any():
            playing = np.flatnonzero(running.any(0))  # a column is looked at until every agent's episode is over
            actions = np.zeros(shape, np.int32)
            for agent, player, stack, end in zip(agents, players, stacks, ends, strict=True):
                seeds = slice(end - agent.seeds, end)
                seen = history[seeds, playing, -stack:]
                actions[seeds, playing] = _act(agent, player, seen, rewards[seeds, playing], playing)
            for place in map(tuple, np.argwhere(running)):
                rewards[place], running[place] = _step(envs[place[0]][place[1]], actions[place], history[place])
                returns[place] += rewards[place]
            bar.update()
    return returns


def _step(env: Any, action: np.int32, history: UInt8[np.ndarray, "t h w c"]) -> tuple[float, bool]:
    """Acts, puts what is then seen at the history's end, and says what was earned and whether the episode goes on."""
    env.act(np.array([action]))
    reward, observation, first = env.observe()
    history[:-1] = history[1:]
    history[-1] = observation["rgb"][0]
    return float(reward[0]), not first[0]


def _translated(player: Player, translate: Callable[[Tensor], Tensor] | None) -> Player:
    return player if translate is None else lambda *seen: translate(player(*seen))


def _wandering(player: Player, epsilon: float, seed: int) -> Player:
    if epsilon == 0:
        return player
    generator = torch.Generator().manual_seed(seed)

    def act(*seen: Tensor) -> Tensor:
        actions = player(*seen)
        random = torch.randint(len(ACTION_NAMES), actions.shape, generator=generator).to(actions)
        wanders = torch.rand(actions.shape, generator=generator) < epsilon
        return torch.where(wanders.to(actions.device), random, actions)

    return act


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
