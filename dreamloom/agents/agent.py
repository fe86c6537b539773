"""What all learners share: seeds side by side, statistics of the data, one optimizer, randomness by (seed, update)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dreamloom.agents.buffer import Batch, Buffer
from dreamloom.agents.frames import FrameBuffer, PixelBatch
from dreamloom.agents.judged import turn
from dreamloom.agents.networks import Precision
from dreamloom.agents.statistics import moments, require_rows
from dreamloom.agents.units import Units, discrete_actions
from dreamloom.agents.vision import Latents, Vision, to_unit
from dreamloom.datasets.types import Transitions
from dreamloom.nn.build import Buildable
from dreamloom.nn.encoders import ENCODERS
from dreamloom.nn.parts import load_part

# What an agent's checkpoint may name.
_AGENTS = ("bc.BC", "td3_bc.TD3BC", "drq_bc.DrQBC", "iql.IQL", "cql.CQL", "cql.DiscreteCQL", "bcq.BCQ", "edac.EDAC")
_OTHERS = ("decision_transformer.DecisionTransformer", "vision.Vision", "vision.Latents")
ALLOWED = ENCODERS | {f"dreamloom.agents.{name}" for name in (*_AGENTS, *_OTHERS)}
Player = Callable[[Tensor, Tensor, Tensor], Tensor]
Data = Transitions | Sequence[Transitions] | FrameBuffer
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
        vision: what frames are looked at with; None for agents of vectors.

    A subclass makes its networks in `build`, ends its constructor with `size`, and says what `update` and `policy` are.
    """

    width: int
    depth: int
    precision: Precision
    observation_mean: Tensor
    observation_std: Tensor
    action_low: Tensor
    action_high: Tensor
    kinds: tuple[str, ...] = ("continuous",)  # of actions that the algorithm is for
    looks_ahead = True  # whether updates look at what followed
    phases = 1  # an update is made as the one so many before it, by the same kernels; 0: settings change in between

    def __init__(
        self,
        *,
        seeds: int,
        gamma: float = 0.99,
        tau: float = 0.005,
        normalize: bool = True,
        vision: Vision | Latents | None = None,
    ):
        super().__init__()
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        self.seeds, self.gamma, self.tau, self.normalize = seeds, gamma, tau, normalize
        self.vision = vision
        self.discrete, self.seed, self.updates = False, 0, 0
        self.units = Units()
        self.horizon: int | None = None  # updates of the whole run, for schedules; who trains sets it
        self.generators: list[torch.Generator] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self._plain: Tensor | None = None

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        """Makes the networks; returns the learning rate of each that is trained, by attribute name."""
        raise NotImplementedError

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        """One update of every agent; returns detached metrics, one value an agent."""
        raise NotImplementedError

    def schedule(self) -> None:
        """Sets what changes with the number of updates, such as learning rates, before the next one."""

    def draw(self, buffer: Buffer | FrameBuffer, batch_size: int) -> Any:
        """A batch of the next update."""
        turn(self, buffer)
        return self.batch(buffer, batch_size, self.streams())

    def batch(self, buffer: Buffer | FrameBuffer, batch_size: int, generators: Sequence[torch.Generator]) -> Any:
        """Rows for an update, drawn from one generator a seed."""
        if isinstance(buffer, FrameBuffer):
            return buffer.sample(batch_size, generators, ahead=self.looks_ahead)
        return buffer.sample(batch_size, generators)

    def policy(self, s: Float[Tensor, "s n o"]) -> Shaped[Tensor, "s n ..."]:
        """Greedy actions, in [-1, 1] or numbers of actions, at normalised observations."""
        raise NotImplementedError

    def shape(self) -> dict[str, Any]:
        """Settings of a new network: its size, and its trunk where agents look at frames."""
        trunk = None if self.vision is None else self.vision.trunks()
        return {"width": self.width, "depth": self.depth, "precision": self.precision, "trunk": trunk}

    # Sizes, statistics and weights

    def size(self, observation_size: int | None, action_size: int | None, discrete: bool | None = None) -> None:
        """Makes everything whose shape depends on the data, once that is known; `config` names the sizes from then on.

        Args:
            observation_size: of what networks see: of a vector, of the latents of a frame.
            action_size: of an action, or how many discrete ones there are.
            discrete: whether actions are discrete; by default as the algorithm needs them.
        """
        if observation_size is None or action_size is None:
            return
        kind = {True: "discrete", False: "continuous", None: self.kinds[0]}[discrete]
        if kind not in self.kinds:
            raise ValueError(f"{type(self).__name__} is for {' or '.join(self.kinds)} actions, the data's are {kind}")
        self.discrete = kind == "discrete"
        sizes = {"observation_size": observation_size, "action_size": action_size, "discrete_actions": self.discrete}
        self.config["init_args"] |= {key: size for key, size in sizes.items() if key in self.config["init_args"]}
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("observation_std", torch.ones(observation_size))
        self.register_buffer("action_low", -torch.ones(action_size))
        self.register_buffer("action_high", torch.ones(action_size))
        if self.vision is not None:
            self.vision.grow(self.seeds)
        rates = self.build(observation_size, action_size)
        groups: list[dict[str, Any]] = [
            {"name": name, "params": _parameters(getattr(self, name)), "lr": rate} for name, rate in rates.items()
        ]
        if isinstance(self.vision, Vision):
            looking = next(group for group in groups if group["name"] == ("critics" if "critics" in rates else "actor"))
            looking["params"] += _parameters(self.vision)
        self.optimizer = torch.optim.Adam(groups, fused=True)

    def prepare(self, data: Data, *, seed: int = 0, actions: int = 0, units: Units | None = None) -> None:
        """Fixes sizes, action bounds and observation statistics from data, and draws the weights of `seed`.

        Bounds are -1 and 1 where all actions lie between, else the data's own range.

        Args:
            data: the rows to be trained on, or several datasets of them; frames for agents with `Vision`.
            seed: number of the first agent's seed.
            actions: how many discrete actions there are, where rows need not show all of them.
            units: what the environment's numbers have beyond the data's; None for nothing.

        Raises:
            ValueError: observations or actions that the agents are not for, or no rows.
        """
        if isinstance(data, FrameBuffer):
            self._prepare_frames(data)
        else:
            # Actions whose start is told count from 0, others from wherever the data's do.
            known = max(actions, int(units is not None and units.action_start != 0))
            self._prepare_rows([data] if isinstance(data, Transitions) else list(data), known)
        self.units = (units or Units())._replace(first_action=self.units.first_action)
        self.reset(seed)

    def see_with(self, latents: Latents) -> None:
        """Lets agents that are trained on latents act on the frames that these are of; `config` names them from then on."""
        self.vision = latents.to(self.device) if self.optimizer else latents
        self.config["init_args"]["vision"] = latents.config

    def _prepare_frames(self, data: FrameBuffer) -> None:
        if not isinstance(self.vision, Vision) or tuple(self.vision.shape) != data.shape:
            made = "no vision" if self.vision is None else f"a {type(self.vision).__name__} of {tuple(self.vision.shape)}"
            raise ValueError(f"frames are (c, h, w) = {data.shape}, the agents have {made}; see the encoder's `shape`")
        if self.optimizer is None:
            self.size(self.vision.latent_size, data.action_size, data.discrete)
        if not self.discrete:
            actions = data.episodes.actions[data.rows].cpu().numpy()
            self._bound(actions.min(0), actions.max(0))

    def _prepare_rows(self, parts: list[Transitions], actions: int) -> None:
        require_rows(parts)
        parts = [part for part in parts if len(part)]
        discrete = parts[0].actions.ndim == 1
        if self.optimizer is None:
            first, count = 0, parts[0].actions.shape[-1]
            if discrete:
                first, count = discrete_actions([part.actions for part in parts], actions)
            self.units = self.units._replace(first_action=first)
            self.size(parts[0].observations.shape[1], count, discrete)
        if isinstance(self.vision, Vision) or (self.vision and self.vision.latent_size != len(self.observation_mean)):
            raise ValueError(f"rows of {len(self.observation_mean)} numbers are no latents of the agents' {self.vision.shape}")
        mean, std = moments([part.observations for part in parts])
        if self.normalize:
            self.observation_mean.copy_(torch.from_numpy(mean))
            self.observation_std.copy_(torch.from_numpy(std))
        if not self.discrete:
            self._bound(*(f([f(part.actions, 0) for part in parts], 0) for f in (np.min, np.max)))

    def _bound(self, low: np.ndarray, high: np.ndarray) -> None:
        if low.min() >= -1 and high.max() <= 1:
            low, high = -np.ones_like(low), np.ones_like(high)
        self.action_low.copy_(torch.from_numpy(low))
        self.action_high.copy_(torch.from_numpy(np.maximum(high, low + 1e-6)))

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

    def get_extra_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "updates": self.updates, "units": self.units._asdict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seed, self.updates = int(state["seed"]), int(state["updates"])
        self.units = Units(**state.get("units", {}))

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

    def begin(self, batch: Batch | PixelBatch, *, ahead: bool = True) -> Batch:
        """Counts the update; observations are normalised, or features of frames, and actions come to [-1, 1].

        Args:
            batch: as it was drawn.
            ahead: whether what followed is looked at.
        """
        self.updates += 1
        s, a, r, s_next, done = batch[:5]
        if self.discrete:
            a = a - self.units.first_action
        else:
            a = (a - self.action_low) * (2 / (self.action_high - self.action_low)) - 1
        with torch.no_grad():
            following = self.look(s_next) if ahead else s_next
            self._plain = self._without_augmentation(batch) if self.vision is not None and self.vision.drac else None
        return Batch(self.look(s), a, r, following, done)

    def _without_augmentation(self, batch: Batch | PixelBatch) -> Tensor:
        if not isinstance(batch, PixelBatch) or batch.plain is None:
            raise ValueError("DrAC's regulariser compares augmented frames with plain ones: it needs data.augment")
        return self.look(batch.plain)

    def look(self, observations: Shaped[Tensor, "s n ..."]) -> Float[Tensor, "s n o"]:
        """What networks see: vectors and frozen latents normalised, the features of an encoder that learns as they are."""
        if observations.ndim == 5:
            assert self.vision is not None
            observations = self.vision(to_unit(observations))
            if isinstance(self.vision, Vision):
                return observations
        return (observations - self.observation_mean) / self.observation_std

    def steady(self, of: Callable[[Tensor], Tensor], s: Float[Tensor, "s b o"], *, policy: bool = False) -> Tensor:
        """DrAC's regulariser (Raileanu et al. 2021, equations 3 to 5), (s,); 0 where its weight is 0.

        Args:
            of: values, or log probabilities of discrete actions, or other outputs of a policy, from what networks see.
            s: of augmented frames.
            policy: whether `of` gives log probabilities, which are compared by KL(plain || augmented); else squares.
        """
        if self._plain is None or self.vision is None:
            return s.new_zeros(self.seeds)
        with torch.no_grad():
            plain = of(self._plain)
        apart = plain.exp() * (plain - of(s)) * plain.shape[-1] if policy else (plain - of(s)).square()
        return self.vision.drac * apart.flatten(1).mean(1)

    def noise(self, *shape: int) -> Float[Tensor, "s ..."]:
        """Standard normal numbers (s, *shape), each agent's from its own source."""
        return torch.stack([torch.randn(shape, generator=g, device=self.device) for g in self.generators])

    def descend(self, name: str, loss: Float[Tensor, "s"], *others: str) -> None:
        """One step of Adam for the networks in attribute `name` (and others), and for no other that the loss depends on."""
        assert self.optimizer is not None
        parameters = [parameter for group in (name, *others) for parameter in self.groups[group]["params"]]
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
    def act(self, observations: Shaped[Tensor, "s n ..."]) -> Shaped[Tensor, "s n ..."]:
        """Greedy actions, in the units of the data: agent i acts on `observations[i]`, vectors or frames."""
        actions = self.policy(self.look(observations))
        if self.discrete:
            return actions + self.units.first_action
        return self.action_low + (actions + 1) * (self.action_high - self.action_low) / 2

    def player(self, episodes: int) -> "Player":
        """What plays so many episodes side by side: from frames or vectors (s, p, ...) of the episodes `playing` (p,), and
        the rewards (s, p) of the step before, to actions. Agents without memory look at the former alone."""
        return lambda observations, rewards, playing: self.act(observations)

    @property
    def device(self) -> torch.device:
        """Where the agents are."""
        return self.observation_mean.device


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
