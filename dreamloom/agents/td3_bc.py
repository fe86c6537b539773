"""TD3+BC: TD3 whose actor also imitates the data (Fujimoto and Gu 2021, "A Minimalist Approach to Offline RL")."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Actor, Critics, Precision, target
from dreamloom.agents.vision import Latents, Vision


class TD3BC(Agent):
    """TD3+BC, `seeds` agents at once. The defaults are the paper's (its table 3).

    Args:
        seeds: agents that train side by side.
        alpha: weight of the value against imitation, after the value's scale is divided out (equation 5).
        policy_noise: deviation of the noise on target actions.
        noise_clip: its largest size.
        policy_delay: updates of the critics for one of the actor and the targets.
        gamma: discount.
        tau: step of target networks.
        lr: learning rate of actor and critics.
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
        alpha: float = 2.5,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_delay: int = 2,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        width: int = 256,
        depth: int = 2,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(seeds=seeds, gamma=gamma, tau=tau, normalize=normalize, vision=vision)
        self.alpha, self.policy_noise, self.noise_clip = alpha, policy_noise, noise_clip
        self.policy_delay = self.phases = policy_delay
        self.lr, self.width, self.depth, self.precision = lr, width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.actor = Actor(self.seeds, observation_size, action_size, **self.shape())
        self.critics = Critics(self.seeds, 2, observation_size, action_size, **self.shape())
        self.target_actor, self.target_critics = target(self.actor), target(self.critics)
        return {"actor": self.lr, "critics": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        return self.actor(s)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        y = self.target_values(r, s_next, done)
        q = self.critics(s, a)
        critic_loss = (q - y[:, None]).square().mean(-1).sum(1)
        self.descend("critics", critic_loss + self.steady(lambda seen: self.critics(seen, a), s))
        metrics = {"critic_loss": critic_loss.detach(), "q": q.detach().mean((1, 2))}
        if self.updates % self.policy_delay == 0:
            pi = self.actor(s)
            actor_loss, bc_loss = self.actor_loss(self.critics.first(s, pi), pi, a)
            self.descend("actor", actor_loss + self.steady(self.actor, s))
            self.track(*(name for name in ("actor", "critics") if hasattr(self, f"target_{name}")))
            metrics |= {"actor_loss": actor_loss.detach(), "bc_loss": bc_loss.detach()}
        return metrics

    @torch.no_grad()
    def target_values(
        self, r: Float[Tensor, "s b"], s_next: Float[Tensor, "s b o"], done: Float[Tensor, "s b"]
    ) -> Float[Tensor, "s b"]:
        """y = r + gamma (1 - done) min_i Q'_i(s', pi'(s') + clipped noise)."""
        a_next = self.target_actor(s_next)
        a_next = (a_next + self.clipped_noise(a_next.shape[1:], self.policy_noise)).clamp_(-1, 1)
        return r + self.gamma * (1 - done) * self.target_critics(s_next, a_next).amin(1)

    def clipped_noise(self, shape: Sequence[int], deviation: float) -> Float[Tensor, "s ..."]:
        """Normal noise of a deviation, no larger than `noise_clip`."""
        return (self.noise(*shape) * deviation).clamp_(-self.noise_clip, self.noise_clip)

    def actor_loss(
        self, q: Float[Tensor, "s b"], pi: Float[Tensor, "s b a"], a: Float[Tensor, "s b a"]
    ) -> tuple[Float[Tensor, "s"], Float[Tensor, "s"]]:
        """-lambda E[Q] + E[(pi - a)^2] with lambda = alpha / E|Q| (equation 5), and its second term."""
        lam = self.alpha / q.detach().abs().mean(-1)
        bc_loss = (pi - a).square().mean((1, 2))
        return bc_loss - lam * q.mean(-1), bc_loss
