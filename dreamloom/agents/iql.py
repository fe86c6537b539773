"""IQL: implicit Q-learning by expectile regression (Kostrikov et al. 2021, "Offline RL with Implicit Q-Learning").

It samples no action, so discrete ones need nothing but their own policy and critics.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Actor, Categorical, Critics, DiscreteCritics, Precision, Values, target
from dreamloom.agents.vision import Latents, Vision
from dreamloom.nn.graphs import set_rate


class Gaussian(Actor):
    """A Gaussian policy: the mean lies in [-1, 1], the deviation does not depend on the state (the paper's own code)."""

    def __init__(self, seeds: int, observation_size: int, action_size: int, **settings: Any):
        super().__init__(seeds, observation_size, action_size, **settings)
        self.log_std = nn.Parameter(torch.zeros(seeds, 1, action_size))

    @torch.no_grad()
    def reset(self, generators: Sequence[torch.Generator]) -> None:
        super().reset(generators)
        self.log_std.zero_()

    def log_prob(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s b"]:
        """log N(a; mean(s), std)."""
        log_std = self.log_std.clamp(-20, 2)
        z = (a - self(s)) * (-log_std).exp()
        return -(0.5 * z.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)


class IQL(Agent):
    """IQL, `seeds` agents at once. The defaults are the paper's for locomotion, which also scales rewards (see `Buffer`).

    Args:
        seeds: agents that train side by side.
        expectile: tau of the paper's equation 5; 0.5 is the mean, 1 the maximum.
        beta: inverse temperature of advantage-weighted regression (equation 7).
        max_weight: largest weight exp(beta advantage).
        cosine: whether the actor's learning rate falls to 0 along a cosine over the run.
        gamma: discount.
        tau: step of target critics.
        lr: learning rate of all networks.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised.
        precision: of the products between hidden layers.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
        discrete_actions: likewise.
        vision: what frames are looked at with; None for agents of vectors.
    """

    kinds = ("continuous", "discrete")

    def __init__(
        self,
        *,
        seeds: int = 1,
        expectile: float = 0.7,
        beta: float = 3.0,
        max_weight: float = 100.0,
        cosine: bool = True,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        width: int = 256,
        depth: int = 2,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
        discrete_actions: bool | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(seeds=seeds, gamma=gamma, tau=tau, normalize=normalize, vision=vision)
        self.expectile, self.beta, self.max_weight, self.cosine = expectile, beta, max_weight, cosine
        self.lr, self.width, self.depth, self.precision = lr, width, depth, precision
        self.size(observation_size, action_size, discrete_actions)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        actor, critics = (Categorical, DiscreteCritics) if self.discrete else (Gaussian, Critics)
        self.actor = actor(self.seeds, observation_size, action_size, **self.shape())
        self.critics = critics(self.seeds, 2, observation_size, action_size, **self.shape())
        self.value = Values(self.seeds, observation_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"actor": self.lr, "critics": self.lr, "value": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Shaped[Tensor, "s n ..."]:
        return self.actor.mode(s)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        with torch.no_grad():
            target_q = self.target_critics(s, a).amin(1)
            y = r + self.gamma * (1 - done) * self.value(s_next)
        v = self.value(s)
        advantage = target_q - v
        value_loss = expectile_loss(advantage, self.expectile)
        self.descend("value", value_loss + self.steady(self.value, s))
        q = self.critics(s, a)
        critic_loss = (q - y[:, None]).square().mean(-1).mean(1)
        self.descend("critics", critic_loss + self.steady(lambda seen: self.critics(seen, a), s))
        weight = (self.beta * advantage.detach()).exp().clamp(max=self.max_weight)
        actor_loss = -(weight * self.actor.log_prob(s, a)).mean(-1)
        self.descend("actor", actor_loss + self.steady(self.actor, s, policy=self.discrete))
        self.track("critics")
        losses = {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}
        return {name: loss.detach() for name, loss in losses.items()} | {"v": v.detach().mean(-1)}

    def schedule(self) -> None:
        """The actor's learning rate of the next update."""
        if self.cosine and self.horizon:
            done = min(1.0, self.updates / self.horizon)
            set_rate(self.groups["actor"], self.lr * 0.5 * (1 + math.cos(math.pi * done)))


def expectile_loss(difference: Float[Tensor, "s b"], expectile: float) -> Float[Tensor, "s"]:
    """E |expectile - 1(u < 0)| u^2 of u = Q - V (equation 5): V becomes the expectile of Q."""
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return (weight * difference.square()).mean(-1)
