"""EDAC: an ensemble of critics whose action gradients are kept apart (An et al. 2021, "Uncertainty-Based Offline RL with
Diversified Q-Ensemble"). With eta 0 it is the paper's SAC-N."""

import torch
from jaxtyping import Float
from torch import Tensor

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Critics, Precision, target
from dreamloom.agents.sac import TanhGaussian, Temperature


class EDAC(Agent):
    """EDAC, `seeds` agents at once. The defaults are the paper's for HalfCheetah (its table 5).

    Args:
        seeds: agents that train side by side.
        critics: N, size of the ensemble (the paper has 10 to 50).
        eta: weight of the diversity of gradients (0 to 5).
        gamma: discount.
        tau: step of target critics.
        lr: learning rate of policy, temperature and critics.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised (the paper does not).
        precision: of the products between hidden layers.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
    """

    def __init__(
        self,
        *,
        seeds: int = 1,
        critics: int = 10,
        eta: float = 1.0,
        gamma: float = 0.99,
        tau: float = 0.005,
        lr: float = 3e-4,
        width: int = 256,
        depth: int = 3,
        normalize: bool = False,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
    ):
        super().__init__(seeds=seeds, gamma=gamma, tau=tau, normalize=normalize)
        if critics < 2:
            raise ValueError(f"EDAC needs at least 2 critics, got {critics}")
        self.ensemble, self.eta, self.lr = critics, eta, lr
        self.width, self.depth, self.precision = width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        self.actor = TanhGaussian(self.seeds, observation_size, action_size, lowest_log_std=-5.0, **self.shape())
        self.temperature = Temperature(self.seeds)
        self.critics = Critics(self.seeds, self.ensemble, observation_size, action_size, **self.shape())
        self.target_critics = target(self.critics)
        return {"actor": self.lr, "temperature": self.lr, "critics": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        return self.actor.mode(s)

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, r, s_next, done = self.begin(batch)
        pi, log_pi = self.actor.sample(s, self.noise(*a.shape[1:]))
        self.descend("temperature", self.temperature.loss(log_pi, -float(a.shape[-1])))
        alpha = self.temperature.value()
        actor_loss = (alpha * log_pi - self.critics(s, pi).amin(1)).mean(-1)
        self.descend("actor", actor_loss)

        with torch.no_grad():
            a_next, log_pi_next = self.actor.sample(s_next, self.noise(*a.shape[1:]))
            q_next = self.target_critics(s_next, a_next).amin(1) - alpha * log_pi_next
            y = r + self.gamma * (1 - done) * q_next
        q, gradients = self.values_and_gradients(s, a)
        critic_loss = (q - y[:, None]).square().mean(-1).sum(1)
        similarity = mean_similarity(gradients)
        self.descend("critics", critic_loss + self.eta * similarity)
        self.track("critics")
        losses = {"critic_loss": critic_loss, "similarity": similarity, "actor_loss": actor_loss}
        return {name: loss.detach() for name, loss in losses.items()} | {"q": q.detach().mean((1, 2))}

    def values_and_gradients(
        self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]
    ) -> tuple[Float[Tensor, "s e b"], Float[Tensor, "s e b a"]]:
        """Q_i(s, a) and its gradient by the action, which can itself be differentiated."""
        each = a[:, None].repeat(1, self.ensemble, 1, 1).requires_grad_()
        q = self.critics.each(s, each)
        return q, torch.autograd.grad(q.sum(), each, create_graph=True)[0]


def mean_similarity(gradients: Float[Tensor, "s e b a"]) -> Float[Tensor, "s"]:
    """The paper's ES (equation 4): sum over i != j of <g_i, g_j> / (N - 1) of unit gradients, mean over rows."""
    unit = gradients / (gradients.norm(dim=-1, keepdim=True) + 1e-10)
    together = unit.sum(1).square().sum(-1)  # sum over i and j
    alone = unit.square().sum((1, 3))
    return (together - alone).mean(-1) / (gradients.shape[1] - 1)
