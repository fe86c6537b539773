"""CQL: conservative Q-learning on top of SAC (Kumar et al. 2020, "Conservative Q-Learning for Offline RL").

CQL(H) of equation 4 with its logsumexp estimated by importance sampling (appendix F), a fixed weight, no Lagrange multiplier.
With discrete actions it stands on double DQN, and the logsumexp is exact.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Critics, DiscreteCritics, Precision, of_action, target
from dreamloom.agents.sac import TanhGaussian, Temperature
from dreamloom.agents.vision import Latents, Vision


class CQL(Agent):
    """CQL, `seeds` agents at once. The defaults are the authors' for locomotion, as CORL has them.

    Args:
        seeds: agents that train side by side.
        alpha: weight of the conservative term.
        actions: n, sampled from each of three sources: uniform, the policy at s, the policy at s'.
        gamma: discount.
        tau: step of target critics.
        actor_lr: learning rate of the policy and of its temperature.
        critic_lr: learning rate of the critics.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised.
        precision: of the products between hidden layers.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
        vision: what frames are looked at with; None for agents of vectors.
    """

    def __init__(
        self,
        *,
        seeds: int = 1,
        alpha: float = 10.0,
        actions: int = 10,
        gamma: float = 0.99,
        tau: float = 0.005,
        actor_lr: float = 3e-5,
        critic_lr: float = 3e-4,
        width: int = 256,
        depth: int = 3,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(seeds=seeds, gamma=gamma, tau=tau, normalize=normalize, vision=vision)
        self.alpha, self.actions, self.actor_lr, self.critic_lr = alpha, actions, actor_lr, critic_lr
        self.width, self.depth, self.precision = width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.actor = TanhGaussian(self.seeds, observation_size, action_size, **self.shape())
        self.temperature = Temperature(self.seeds)
        self.critics = Critics(self.seeds, 2, observation_size, action_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"actor": self.actor_lr, "temperature": self.actor_lr, "critics": self.critic_lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        return self.actor.mode(s)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        pi, log_pi = self.actor.sample(s, self.noise(*a.shape[1:]))
        self.descend("temperature", self.temperature.loss(log_pi, -float(a.shape[-1])))
        actor_loss = (self.temperature.value() * log_pi - self.critics(s, pi).amin(1)).mean(-1)
        self.descend("actor", actor_loss + self.steady(self.actor.mode, s))

        with torch.no_grad():
            a_next, _ = self.actor.sample(s_next, self.noise(*a.shape[1:]))
            y = r + self.gamma * (1 - done) * self.target_critics(s_next, a_next).amin(1)
        q = self.critics(s, a)
        bellman_loss = (q - y[:, None]).square().mean(-1).sum(1)
        conservative_loss = (self.soft_maximum(s, s_next) - q).mean(-1).sum(1)
        steady = self.steady(lambda seen: self.critics(seen, a), s)
        self.descend("critics", bellman_loss + self.alpha * conservative_loss + steady)
        self.track("critics")
        losses = {"bellman_loss": bellman_loss, "conservative_loss": conservative_loss, "actor_loss": actor_loss}
        return {name: loss.detach() for name, loss in losses.items()} | {"q": q.detach().mean((1, 2))}

    def soft_maximum(self, s: Float[Tensor, "s b o"], s_next: Float[Tensor, "s b o"]) -> Float[Tensor, "s e b"]:
        """log of the integral of exp Q(s, a) over all actions, from 3 n samples of them."""
        with torch.no_grad():
            n, (b, d) = self.actions, (s.shape[1], len(self.action_low))
            now, now_density = self.actor.sample(s, self.noise(n, b, d))
            following, next_density = self.actor.sample(s_next, self.noise(n, b, d))
            anywhere = torch.erf(self.noise(n, b, d) / math.sqrt(2))  # uniform in [-1, 1]
            density = torch.cat([now_density, next_density, torch.full_like(now_density, -d * math.log(2))], 1)
            actions = torch.cat([now, following, anywhere], 1)
        return log_integral(self.critics.many(s, actions), density)


def log_integral(q: Float[Tensor, "s e n b"], log_density: Float[Tensor, "s n b"]) -> Float[Tensor, "s e b"]:
    """log of the integral of exp Q, from n actions that were drawn with these densities: log of the mean of exp Q / density."""
    return (q - log_density[:, None]).logsumexp(2) - math.log(q.shape[2])


class DiscreteCQL(Agent):
    """CQL for discrete actions, `seeds` agents at once. The defaults are those of DGRL (Mediratta et al. 2023) for Procgen.

    Args:
        seeds: agents that train side by side.
        alpha: weight of the conservative term.
        critics: of each agent; the target is the least of theirs.
        gamma: discount.
        tau: step of target critics.
        lr: learning rate.
        width: of hidden layers.
        depth: hidden layers; 0 reads values off the latents.
        normalize: whether observations are normalised, unless an encoder learns them.
        precision: of the products between hidden layers.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
        vision: what frames are looked at with; None for agents of vectors.
    """

    kinds = ("discrete",)

    def __init__(
        self,
        *,
        seeds: int = 1,
        alpha: float = 4.0,
        critics: int = 1,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 5e-4,
        width: int = 256,
        depth: int = 0,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(seeds=seeds, gamma=gamma, tau=tau, normalize=normalize, vision=vision)
        self.alpha, self.ensemble, self.lr = alpha, critics, lr
        self.width, self.depth, self.precision = width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.critics = DiscreteCritics(self.seeds, self.ensemble, observation_size, action_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"critics": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Int[Tensor, "s n"]:
        return self.critics.all(s).amin(1).argmax(-1)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        with torch.no_grad():
            q_next = self.target_critics(s_next, self.policy(s_next)).amin(1)
            y = r + self.gamma * (1 - done) * q_next
        every = self.critics.all(s)
        q = of_action(every, a[:, None].expand(-1, self.ensemble, -1))
        bellman_loss = (q - y[:, None]).square().mean(-1).sum(1)
        conservative_loss = (every.logsumexp(-1) - q).mean(-1).sum(1)
        self.descend("critics", bellman_loss + self.alpha * conservative_loss + self.steady(self.critics.all, s))
        self.track("critics")
        losses = {"bellman_loss": bellman_loss, "conservative_loss": conservative_loss}
        return {name: loss.detach() for name, loss in losses.items()} | {"q": q.detach().mean((1, 2))}
