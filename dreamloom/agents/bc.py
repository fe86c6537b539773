"""BC: behaviour cloning, by least squares as the actor of TD3+BC without its critics (Fujimoto and Gu 2021, section 5).

Discrete actions are cloned by their likelihood.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dreamloom.agents.agent import Agent, Player
from dreamloom.agents.buffer import Batch
from dreamloom.agents.frames import PixelBatch
from dreamloom.agents.networks import Actor, Categorical, Precision
from dreamloom.agents.vision import Latents, Vision


class BC(Agent):
    """Behaviour cloning, `seeds` agents at once.

    Args:
        seeds: agents that train side by side.
        lr: learning rate.
        width: of hidden layers.
        depth: hidden layers.
        normalize: whether observations are normalised.
        precision: of the products between hidden layers.
        drawn: whether discrete actions are drawn by their probabilities when it plays; else the likeliest is taken, which can
            be stuck where whoever is cloned was not.
        observation_size: of the data; `prepare` finds it out.
        action_size: likewise.
        discrete_actions: likewise.
        vision: what frames are looked at with; None for agents of vectors.
    """

    kinds = ("continuous", "discrete")
    looks_ahead = False

    def __init__(
        self,
        *,
        seeds: int = 1,
        lr: float = 3e-4,
        width: int = 256,
        depth: int = 2,
        normalize: bool = True,
        precision: Precision = "float32",
        drawn: bool = False,
        observation_size: int | None = None,
        action_size: int | None = None,
        discrete_actions: bool | None = None,
        vision: Vision | Latents | None = None,
    ):
        super().__init__(seeds=seeds, normalize=normalize, vision=vision)
        self.lr, self.width, self.depth, self.precision, self.drawn = lr, width, depth, precision, drawn
        self.size(observation_size, action_size, discrete_actions)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        kind = Categorical if self.discrete else Actor
        self.actor = kind(self.seeds, observation_size, action_size, **self.shape())
        return {"actor": self.lr}

    def policy(self, s: Float[Tensor, "s n o"]) -> Shaped[Tensor, "s n ..."]:
        return self.actor.mode(s)

    def player(self, episodes: int) -> Player:
        actor = self.actor
        if not (self.drawn and isinstance(actor, Categorical)):
            return super().player(episodes)
        generator = torch.Generator(self.device).manual_seed(self.seed)

        @torch.no_grad()
        def act(observations: Tensor, rewards: Tensor, playing: Tensor) -> Tensor:
            return actor.draw(self.look(observations), generator) + self.units.first_action

        return act

    def update(self, batch: Batch | PixelBatch) -> dict[str, Float[Tensor, "s"]]:
        s, a, _, _, _ = self.begin(batch, ahead=False)
        bc_loss = self.actor.imitation(s, a)
        self.descend("actor", bc_loss + self.steady(self.actor, s, policy=self.discrete))
        return {"bc_loss": bc_loss.detach()}
