"""Who acts in imagined rollouts: nobody in particular, trained agents, or those who acted in the dataset."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from dreamloom.agents.agent import Agent, load_agent
from dreamloom.worldmodels.starts import DataStarts, Starts
from dreamloom.worldmodels.world import World


class Act(NamedTuple):
    """Actions as the world takes them, and as the dataset notes them; both (p, ...)."""

    taken: Tensor
    noted: Tensor


class Batch(NamedTuple):
    """Rollouts that begin side by side.

    Attributes:
        numbers: (b,) of the rollouts.
        prompts: (b, t, c, h, w) what they start from.
        rows: (b,) where in the dataset that begins; 0 where it is none of a dataset.
        steps: the most steps of a rollout.
    """

    numbers: range
    prompts: UInt8[Tensor, "b t c h w"]
    rows: Int[np.ndarray, "b"]
    steps: int


@runtime_checkable
class Actor(Protocol):
    """Acts for some rollouts, from their beginning to their end."""

    limits: Int[np.ndarray, "b"]  # steps that it can act in each

    def act(
        self,
        frames: UInt8[Tensor, "p c h w"],
        rewards: Float[Tensor, "p"],
        playing: Int[np.ndarray, "p"],
        generators: Sequence[torch.Generator],
    ) -> Act:
        """The actions of the rollouts that still play.

        Args:
            frames: what each shows.
            rewards: of the step before.
            playing: which of the rollouts these are.
            generators: one for each.
        """


@runtime_checkable
class Policy(Protocol):
    """What begins actors."""

    def begin(self, batch: Batch) -> Actor:
        """An actor for rollouts that begin."""


class RandomPolicy:
    """A new uniform action at every step.

    Args:
        space: of the actions.
    """

    def __init__(self, space: gymnasium.Space):
        self.space = space

    def begin(self, batch: Batch) -> "_RandomActor":
        """See `Policy.begin`."""
        return _RandomActor(self.space, np.full(len(batch.numbers), batch.steps))


class _RandomActor:
    def __init__(self, space: gymnasium.Space, limits: np.ndarray):
        self.space, self.limits = space, limits

    def act(self, frames: Tensor, rewards: Tensor, playing: np.ndarray, generators: Sequence[torch.Generator]) -> Act:
        space = self.space
        if isinstance(space, gymnasium.spaces.Discrete):
            taken = torch.stack([torch.randint(int(space.n), (), generator=g) for g in generators])
        else:
            assert isinstance(space, gymnasium.spaces.Box)
            low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
            taken = torch.stack([low + (high - low) * torch.rand(space.shape, generator=g) for g in generators])
        return Act(taken, taken)


class AgentPolicy:
    """Trained agents from pixels, greedily; rollout i is that of agent i modulo their number.

    Args:
        agent: prepared.
        world: in which they act.

    Raises:
        ValueError: the agents look at other frames, or act by other actions.
    """

    def __init__(self, agent: Agent, world: World):
        c, h, w = world.frame_shape
        shape = None if agent.vision is None else tuple(agent.vision.shape)
        if shape is None or shape[0] % c or shape[1:] != (h, w):
            raise ValueError(f"{world.name} shows frames {(c, h, w)}, the agents were trained on {shape or 'vectors'}")
        space = world.action_space
        discrete = isinstance(space, gymnasium.spaces.Discrete)
        count = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else int(np.prod(space.shape or ()))
        if (agent.discrete, len(agent.action_low)) != (discrete, count):
            theirs = f"{len(agent.action_low)} {'discrete' if agent.discrete else 'continuous'} actions"
            raise ValueError(f"{world.name} takes {space}, the agents were trained on {theirs}")
        self.agent, self.stack = agent, shape[0] // c

    def begin(self, batch: Batch) -> "_AgentActor":
        """See `Policy.begin`."""
        return _AgentActor(self.agent, self.stack, batch)


class _AgentActor:
    def __init__(self, agent: Agent, stack: int, batch: Batch):
        self.agent, self.player = agent, agent.player(len(batch.numbers))
        if getattr(agent, "drawn", False):  # what is drawn would hang on who is rolled out beside
            self.player = lambda observations, rewards, playing: agent.act(observations)
        self.limits = np.full(len(batch.numbers), batch.steps)
        before = batch.prompts[:, :-1][:, max(0, batch.prompts.shape[1] - 1 - stack) :]
        first = batch.prompts[:, :1].expand(-1, stack - before.shape[1], -1, -1, -1)
        self.history = torch.cat([first, before], 1).to(agent.device)  # of each the last frames, without the present one
        self.who = np.array(batch.numbers) % agent.seeds

    def act(self, frames: Tensor, rewards: Tensor, playing: np.ndarray, generators: Sequence[torch.Generator]) -> Act:
        which, seeds = torch.from_numpy(playing).to(self.agent.device), self.agent.seeds
        seen = torch.cat([self.history[which][:, 1:], frames[:, None].to(self.agent.device)], 1)
        self.history[which] = seen
        stacks = seen.flatten(1, 2).expand(seeds, -1, -1, -1, -1)
        actions = self.player(stacks, rewards.to(self.agent.device).expand(seeds, -1), which)
        taken = actions[torch.from_numpy(self.who[playing]), torch.arange(len(playing))]
        return Act(taken, taken)


class DataPolicy:
    """The actions that followed in the dataset, whose names are noted; a world of latent actions is told the latent ones.

    Args:
        starts: from the dataset.
        world: in which they are taken.

    Raises:
        ValueError: rollouts do not start from a dataset with actions.
    """

    def __init__(self, starts: Starts, world: World):
        if not isinstance(starts, DataStarts) or starts.actions is None:
            raise ValueError("--policy data needs --starts, a dataset with actions")
        self.starts, self.latent = starts, getattr(world, "latent_actions", None)
        if self.latent is None and (starts.actions.ndim == 1) != isinstance(world.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"{world.name} takes {world.action_space}, {starts.path} has actions {starts.actions.shape}")

    def begin(self, batch: Batch) -> "_DataActor":
        """See `Policy.begin`."""
        taken, noted = [], []
        for row, prompt in zip(batch.rows, batch.prompts, strict=True):
            frames, actions = self.starts.ahead(int(row), batch.steps)
            noted.append(actions)
            taken.append(actions if self.latent is None else self._latent(torch.cat([prompt[:-1], frames]))[-len(actions) :])
        return _DataActor(taken, noted)

    def _latent(self, frames: UInt8[Tensor, "t c h w"]) -> Shaped[Tensor, "s"]:
        assert self.latent is not None
        device = next(self.latent.parameters()).device
        return self.latent.infer(frames[None].to(device).float() / 255)[0].cpu()


class _DataActor:
    def __init__(self, taken: list[Tensor], noted: list[Tensor]):
        self.taken, self.noted, self.step = taken, noted, 0
        self.limits = np.array([len(actions) for actions in taken])

    def act(self, frames: Tensor, rewards: Tensor, playing: np.ndarray, generators: Sequence[torch.Generator]) -> Act:
        """All rollouts began together, so those that play are all at the same step."""
        taken, noted = (torch.stack([actions[i][self.step] for i in playing]) for actions in (self.taken, self.noted))
        self.step += 1
        return Act(taken, noted)


def policy_named(name: str, world: World, starts: Starts) -> Policy:
    """A `Policy` by its name at the command line.

    Args:
        name: `random`, `data`, or the checkpoint of an agent.
        world: in which it acts.
        starts: of the rollouts.

    Raises:
        ValueError: there is no such agent, or it does not fit the world.
    """
    if name == "random":
        return RandomPolicy(world.action_space)
    if name == "data":
        return DataPolicy(starts, world)
    return AgentPolicy(load_agent(name), world)
