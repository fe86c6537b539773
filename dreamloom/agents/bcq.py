"""BCQ for discrete actions (Fujimoto et al. 2019, "Benchmarking Batch Deep RL Algorithms", algorithm 1).

Q-learning among those actions that an imitation of the data finds likely enough.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Categorical, DiscreteCritics, Precision, target
from dreamloom.agents.vision import Latents, Vision


class BCQ(Agent):
    """Discrete BCQ, `seeds` agents at once. The defaults are those of DGRL (Mediratta et al. 2023) for Procgen.

    Imitation and values share the encoder of frames, and train it together, as published.

    Args:
        seeds: agents that train side by side.
        threshold: tau of the paper: actions of at least this share of the likeliest action's probability are allowed.
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
        threshold: float = 0.5,
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
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.threshold, self.lr = threshold, lr
        self.width, self.depth, self.precision = width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.actor = Categorical(self.seeds, observation_size, action_size, **self.shape())
        self.critics = DiscreteCritics(self.seeds, 1, observation_size, action_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"actor": self.lr, "critics": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Int[Tensor, "s n"]:
        """The best of the allowed actions."""
        log_pi = self.actor(s)
        allowed = (log_pi - log_pi.amax(-1, keepdim=True)).exp() >= self.threshold
        return self.critics.all(s)[:, 0].masked_fill(~allowed, -torch.inf).argmax(-1)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        with torch.no_grad():
            q_next = self.target_critics(s_next, self.policy(s_next))[:, 0]
            y = r + self.gamma * (1 - done) * q_next
        q = self.critics(s, a)[:, 0]
        critic_loss = smooth_l1_loss(q, y, reduction="none").mean(-1)
        logits = self.actor.logits(s)
        bc_loss = self.actor.imitation(s, a)
        steady = self.steady(self.critics.all, s) + self.steady(self.actor, s, policy=True)
        # The authors keep the logits small by a hundredth of their squares.
        self.descend("critics", critic_loss + bc_loss + 0.01 * logits.square().mean((1, 2)) + steady, "actor")
        self.track("critics")
        return {"critic_loss": critic_loss.detach(), "bc_loss": bc_loss.detach(), "q": q.detach().mean(-1)}
