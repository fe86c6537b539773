"""What all learners share: seeds side by side, statistics of the data, one optimizer, randomness by (seed, update)."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.agents.buffer import Batch
from dreamloom.datasets.types import Transitions
from dreamloom.nn.build import Buildable
from dreamloom.nn.parts import load_part

# What an agent's checkpoint may name.
ALLOWED = frozenset(f"dreamloom.agents.{name}" for name in ("bc.BC", "td3_bc.TD3BC", "iql.IQL", "cql.CQL", "edac.EDAC"))
Network = TypeVar("Network", bound=nn.Module)
_GOLDEN = 0x9E3779B1  # odd and far from any ratio of small numbers: seeds stay apart by millions of updates


class Agent(nn.Module, Buildable):
    """Independent agents of one algorithm, `seeds` of them, that train in one update.

    Agent i of `reset(seed)` has the weights, batches and noise of seed number `seed + i`, whatever the others are. All
    randomness of an update is a function of that number and of the number of the update, so nothing but weights, the
    optimizer's state and the count has to be kept to go on later.

    Args:
        seeds: agents that train side by side.
        gamma: discount.
        tau: step of target networks towards the trained ones.
        normalize: whether observations are scaled to mean 0 and deviation 1 of the data that `prepare` is given.

    A subclass makes its networks in `build`, ends its constructor with `size`, and says what `update` and `policy` are.
    """

    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, *, seeds: int, gamma: float = 0.99, tau: float = 0.005, normalize: bool = True):
        super().__init__()
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        self.seeds, self.gamma, self.tau, self.normalize = seeds, gamma, tau, normalize
        self.seed, self.updates = 0, 0
        self.horizon: int | None = None  # updates of the whole run, for schedules; who trains sets it
        self.generators: list[torch.Generator] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        """Makes the networks; returns the learning rate of each that is trained, by attribute name."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, Float[Tensor, "s"]]:
        """One update of every agent; returns detached metrics, one value an agent."""
        raise NotImplementedError

    def policy(self, s: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        """Greedy actions in [-1, 1] at normalised observations."""
        raise NotImplementedError

    # Sizes, statistics and weights

    def size(self, observation_size: int | None, action_size: int | None) -> None:
        """Makes everything whose shape depends on the data, once that is known; `config` names the sizes from then on."""
        if observation_size is None or action_size is None:
            return
        self.config["init_args"] |= {"observation_size": observation_size, "action_size": action_size}
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("observation_std", torch.ones(observation_size))
        self.register_buffer("action_low", -torch.ones(action_size))
        self.register_buffer("action_high", torch.ones(action_size))
        rates = self.build(observation_size, action_size)
        groups = [{"name": name, "params": _parameters(getattr(self, name)), "lr": rate} for name, rate in rates.items()]
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def prepare(self, transitions: Transitions | Sequence[Transitions], *, seed: int = 0) -> None:
        """Fixes sizes, action bounds and observation statistics from data, and draws the weights of `seed`.

        Bounds are -1 and 1 where all actions lie between, else the data's own range.

        Args:
            transitions: the rows to be trained on, or several datasets of them.
            seed: number of the first agent's seed.

        Raises:
            ValueError: observations that are no vectors, actions that are not continuous, or no rows.
        """
        parts = [transitions] if isinstance(transitions, Transitions) else list(transitions)
        _check(parts)
        parts = [part for part in parts if len(part)]
        if self.optimizer is None:
            self.size(parts[0].observations.shape[1], parts[0].actions.shape[1])
        mean, std = _moments([part.observations for part in parts])
        low, high = (f([f(part.actions, 0) for part in parts], 0) for f in (np.min, np.max))
        if low.min() >= -1 and high.max() <= 1:
            low, high = -np.ones_like(low), np.ones_like(high)
        if self.normalize:
            self.observation_mean.copy_(torch.from_numpy(mean))
            self.observation_std.copy_(torch.from_numpy(std))
        self.action_low.copy_(torch.from_numpy(low))
        self.action_high.copy_(torch.from_numpy(np.maximum(high, low + 1e-6)))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Starts afresh: agent i is that of seed number `seed + i`."""
        assert self.optimizer is not None, "prepare first"
        self.seed, self.updates = seed, 0
        self.optimizer.state.clear()
        generators = self.streams(-1)
        for name, module in self.named_children():
            if not name.startswith("target_"):
                module.reset(generators)  # type: ignore[operator]
        for name, module in self.named_children():
            if name.startswith("target_"):
                module.load_state_dict(getattr(self, name.removeprefix("target_")).state_dict())

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed, "updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed, self.updates = int(state["seed"]), int(state["updates"])

    # The steps of an update

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The optimizer's groups (parameters, learning rate) by name of the network; new ones after a state was loaded."""
        assert self.optimizer is not None
        return {group["name"]: group for group in self.optimizer.param_groups}

    def streams(self, update: int | None = None) -> list[torch.Generator]:
        """Each agent's source of randomness, set to the start of an update (the next one by default)."""
        if not self.generators or self.generators[0].device != self.device:
            self.generators = [torch.Generator(self.device) for _ in range(self.seeds)]
        update = self.updates if update is None else update
        for i, generator in enumerate(self.generators):
            generator.manual_seed(((self.seed + i) * _GOLDEN + update + 1) % 2**32)
        return self.generators

    def begin(self, batch: Batch) -> Batch:
        """Counts the update; observations are normalised and actions come to [-1, 1]."""
        self.updates += 1
        return batch._replace(
            observations=self._normalized(batch.observations),
            next_observations=self._normalized(batch.next_observations),
            actions=(batch.actions - self.action_low) * (2 / (self.action_high - self.action_low)) - 1,
        )

    def noise(self, *shape: int) -> Float[Tensor, "s ..."]:
        """Standard normal numbers (s, *shape), each agent's from its own source."""
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in self.generators])

    def descend(self, name: str, loss: Float[Tensor, "s"]) -> None:
        """One step of Adam for the networks in attribute `name`, and for no other that the loss depends on."""
        assert self.optimizer is not None
        parameters = self.groups[name]["params"]
        # Agents share no parameter, so the sum's gradient is each agent's own. The fused step reads memory in order.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
            parameter.grad = gradient.contiguous()
        self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None

    @torch.no_grad()
    def track(self, *names: str) -> None:
        """Moves target networks towards the trained ones: target <- tau trained + (1 - tau) target."""
        targets = [p for name in names for p in getattr(self, f"target_{name}").parameters()]
        trained = [p for name in names for p in getattr(self, name).parameters()]
        torch._foreach_lerp_(targets, trained, self.tau)

    # Acting

    @torch.no_grad()
    def act(self, observations: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        """Greedy actions, in the units of the data: agent i acts on `observations[i]`."""
        unit = self.policy(self._normalized(observations))
        return self.action_low + (unit + 1) * (self.action_high - self.action_low) / 2

    @property
    def device(self) -> torch.device:
        """Where the agents are."""
        return self.observation_mean.device

    def _normalized(self, observations: Tensor) -> Tensor:
        return (observations - self.observation_mean) / self.observation_std


def target(network: Network) -> Network:
    """A copy that follows a network by `Agent.track` and is never trained itself."""
    return copy.deepcopy(network).requires_grad_(False)


def load_agent(path: str | Path) -> Agent:
    """Trained agents, in eval mode on the CPU.

    Args:
        path: a `.ckpt` of `dreamloom fit`, or the folder of its run.

    Raises:
        ValueError: the file is not such a checkpoint, or holds another kind of model.
    """
    return load_part(path, Agent, ALLOWED)


def _parameters(trained: Any) -> list[Tensor]:
    return [trained] if isinstance(trained, Tensor) else list(trained.parameters())


def _check(parts: list[Transitions]) -> None:
    if not parts or not sum(len(part) for part in parts):
        raise ValueError("agents need rows to prepare from, there are none")
    for part in parts:
        if part.observations.ndim != 2 or part.observations.dtype == np.uint8:
            seen = f"{part.observations.shape} {part.observations.dtype}"
            raise ValueError(f"agents need observations (N, o) of numbers, got {seen}")
        if part.actions.ndim != 2:
            raise ValueError(f"agents need continuous actions (N, a), got {part.actions.shape} {part.actions.dtype}")


def _moments(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column over all rows; 1e-3 is added to the deviation, as TD3+BC does."""
    rows = sum(len(column) for column in columns)
    mean = sum(column.sum(0, dtype=np.float64) for column in columns) / rows
    square = sum(np.square(column - mean).sum(0) for column in columns) / rows
    return mean.astype(np.float32), (np.sqrt(square) + 1e-3).astype(np.float32)
