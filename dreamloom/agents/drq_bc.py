"""DrQ+BC: DrQ-v2 whose actor also imitates the data, the baseline of V-D4RL (Lu et al. 2023, section 4.1).

TD3+BC from pixels, apart from this: actor and target act with the same network, no slower copy; the noise on target actions
falls over the first updates, as DrQ-v2's exploration does (Yarats et al. 2021); the actor is updated every time.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from dreamloom.agents.networks import Actor, Critics, Precision, target
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.vision import Latents, Vision


class DrQBC(TD3BC):
    """DrQ+BC, `seeds` agents at once. The defaults are V-D4RL's; frame stack 3 and 3-step returns are the data's settings.

    Args:
        seeds: agents that train side by side.
        alpha: weight of the value against imitation, after the value's scale is divided out.
        first_noise: deviation of the noise on target actions at the first update.
        last_noise: and from `noise_updates` on.
        noise_updates: over which it falls linearly.
        noise_clip: its largest size.
        gamma: discount.
        tau: step of target critics.
        lr: learning rate of actor, critics and encoder.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised, unless an encoder learns them.
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
        first_noise: float = 1.0,
        last_noise: float = 0.1,
        noise_updates: int = 500_000,
        noise_clip: float = 0.3,
        gamma: float = 0.99,
        tau: float = 0.01,
        lr: float = 1e-4,
        width: int = 1024,
        depth: int = 2,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(
            seeds=seeds,
            alpha=alpha,
            noise_clip=noise_clip,
            policy_delay=1,
            gamma=gamma,
            tau=tau,
            lr=lr,
            width=width,
            depth=depth,
            normalize=normalize,
            precision=precision,
            observation_size=observation_size,
            action_size=action_size,
            vision=vision,
        )
        self.first_noise, self.last_noise, self.noise_updates = first_noise, last_noise, noise_updates
        self.phases = 0  # the noise fades

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.actor = Actor(self.seeds, observation_size, action_size, **self.shape())
        self.critics = Critics(self.seeds, 2, observation_size, action_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"actor": self.lr, "critics": self.lr}

    @torch.no_grad()
    def target_values(
        self, r: Float[Tensor, "s b"], s_next: Float[Tensor, "s b o"], done: Float[Tensor, "s b"]
    ) -> Float[Tensor, "s b"]:
        """y = r + gamma (1 - done) min_i Q'_i(s', pi(s') + clipped noise)."""
        a_next = self.actor(s_next)
        a_next = (a_next + self.clipped_noise(a_next.shape[1:], self.noise_now())).clamp_(-1, 1)
        return r + self.gamma * (1 - done) * self.target_critics(s_next, a_next).amin(1)

    def noise_now(self) -> float:
        """Deviation of the noise at this update."""
        done = min(1.0, (self.updates - 1) / self.noise_updates)
        return self.first_noise + done * (self.last_noise - self.first_noise)
