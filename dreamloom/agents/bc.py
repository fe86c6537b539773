"""BC: behaviour cloning by least squares, the actor of TD3+BC without its critics (Fujimoto and Gu 2021, section 5)."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Batch
from dreamloom.agents.networks import Actor, Precision


class BC(Agent):
    """Behaviour cloning, `seeds` agents at once.

    Args:
        seeds: agents that train side by side.
        lr: learning rate.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised.
        precision: of the products between hidden layers.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
    """

    def __init__(
        self,
        *,
        seeds: int = 1,
        lr: float = 3e-4,
        width: int = 256,
        depth: int = 2,
        normalize: bool = True,
        precision: Precision = "float32",
        observation_size: int | None = None,
        action_size: int | None = None,
    ):
        super().__init__(seeds=seeds, normalize=normalize)
        self.lr, self.width, self.depth, self.precision = lr, width, depth, precision
        self.size(observation_size, action_size)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        shape: dict[str, Any] = {"width": self.width, "depth": self.depth, "precision": self.precision}
        self.actor = Actor(self.seeds, observation_size, action_size, **shape)
        return {"actor": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Float[Tensor, "s n a"]:
        return self.actor(s)

    def update(self, batch: Batch) -> dict[str, Float[Tensor, "s"]]:
        s, a, _, _, _ = self.begin(batch)
        bc_loss = (self.actor(s) - a).square().mean((1, 2))
        self.descend("actor", bc_loss)
        return {"bc_loss": bc_loss.detach()}
