"""What lies between agents and a Gymnasium environment: observations as their data has them, actions as it takes them."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamloom.agents.agent import Agent
from dreamloom.datasets.minari_spaces import Form


class Acting:
    """Greedy agents in an environment, many episodes side by side.

    Dictionaries and tuples of observations become vectors as `minari:` reads them, parts in the order of their names; what the
    data lacks to be in the environment's numbers (`Units`) is taken off observations, and added to actions.

    Args:
        agent: prepared agents of vectors.
        env: name of the environment, for messages.
        seen: space of its observations.
        acts: space of its actions.

    Raises:
        ValueError: the agents do not fit the environment.
    """

    def __init__(self, agent: Agent, env: str, seen: gym.Space, acts: gym.Space):
        self.agent, self.acts = agent, acts
        self.form = Form(env, seen, discrete=False)
        size, actions = len(agent.observation_mean), len(agent.action_low)
        first = agent.units.first_action + agent.units.action_start
        if agent.vision is not None or self.form.shape != (size,):
            trained = f"frames {tuple(agent.vision.shape)}" if agent.vision is not None else f"observations ({size},)"
            raise ValueError(f"{env} has observations {seen}; the agents were trained on {trained}")
        if isinstance(acts, gym.spaces.Discrete) and agent.discrete:
            fits = acts.start <= first and first + actions <= acts.start + acts.n
        else:
            fits = isinstance(acts, gym.spaces.Box) and not agent.discrete and np.prod(acts.shape) == actions
        if not fits:
            kind = f"discrete ones, {first} to {first + actions - 1}" if agent.discrete else f"continuous ones ({actions},)"
            raise ValueError(f"{env} has actions {acts}; the agents were trained on {kind}")

    def observed(self, observations: Any, count: int) -> Tensor:
        """Observations of a vector environment, (s, p, o), on the agents' device.

        Args:
            observations: as it gives them.
            count: of its environments: the first agent's, then the second's, ...
        """
        rows = torch.from_numpy(self.agent.units.observed(self.form(observations, count)))
        return rows.to(self.agent.device).unflatten(0, (self.agent.seeds, -1))

    def taken(self, actions: Tensor) -> np.ndarray:
        """Actions (s, p, ...) as the vector environment takes them."""
        found = actions.flatten(0, 1).cpu().numpy()
        if isinstance(self.acts, gym.spaces.Box):
            low, high = self.acts.low, self.acts.high
            return found.reshape(-1, *self.acts.shape).clip(low, high).astype(self.acts.dtype)
        return found + self.agent.units.action_start
