"""Transitions as one matrix: a row each, columns s, a, r, s'."""

from dataclasses import dataclass

import numpy as np

from dreamloom.datasets.types import Transitions


@dataclass(frozen=True)
class Columns:
    """Which columns a matrix of transitions has, and their scale in the real data.

    Attributes:
        names: of the columns: s0, s1, ..., a0, ..., r, s'0, ...; discrete actions are one column each, a=0, a=1, ...
        discrete: number of discrete actions, 0 for continuous ones.
        mean: (d,) of the real rows.
        sd: (d,) likewise, 1 for a constant column.
    """

    names: tuple[str, ...]
    discrete: int
    mean: np.ndarray
    sd: np.ndarray

    @staticmethod
    def of(real: Transitions) -> "Columns":
        """The columns of real rows.

        Raises:
            ValueError: observations are pixels.
        """
        if real.observations.ndim != 2:
            shape = real.observations.shape
            raise ValueError(
                f"observations are {real.observations.dtype} {shape}, expected vectors (N, o): pixels are not compared"
            )
        discrete = int(real.actions.max()) + 1 if real.actions.ndim == 1 else 0
        state = range(real.observations.shape[1])
        actions = [f"a={k}" for k in range(discrete)] or [f"a{k}" for k in range(real.actions.shape[1])]
        names = (*(f"s{k}" for k in state), *actions, "r", *(f"s'{k}" for k in state))
        values = matrix(real, discrete)
        return Columns(names, discrete, values.mean(0, dtype=np.float64), spread(values))

    def scaled(self, transitions: Transitions) -> np.ndarray:
        """Rows as z-scores of the real data, (n, d) float64.

        Raises:
            ValueError: other columns than the real data, or numbers that are not finite.
        """
        shapes = f"{transitions.observations.shape[1:]} observations and {transitions.actions.shape[1:]} actions a row"
        if (transitions.actions.ndim == 1) != bool(self.discrete) or transitions.observations.ndim != 2:
            raise ValueError(f"{shapes} are not those of the real data, whose columns are {' '.join(self.names)}")
        if self.discrete and transitions.actions.max(initial=0) >= self.discrete:
            raise ValueError(f"has action {transitions.actions.max()}, the real data has 0 to {self.discrete - 1}")
        values = matrix(transitions, self.discrete)
        if values.shape[1] != len(self.names):
            raise ValueError(f"{shapes} are not those of the real data, whose columns are {' '.join(self.names)}")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"{self.names[column]} is {values[row, column]} in some row, expected finite numbers")
        return (values - self.mean) / self.sd


def matrix(transitions: Transitions, discrete: int = 0) -> np.ndarray:
    """(n, d) columns s, a, r, s'; discrete actions one-hot."""
    actions = np.eye(discrete)[transitions.actions] if discrete else transitions.actions
    return np.concatenate([transitions.observations, actions, transitions.rewards[:, None], transitions.next_observations], 1)


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each column, 1 for a constant one: what z-scores are divided by."""
    deviation = values.astype(np.float64).std(0)
    return np.where(deviation > 1e-6, deviation, 1.0)
