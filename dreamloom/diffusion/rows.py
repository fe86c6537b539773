"""Transitions as rows of numbers for a diffusion model, and back.

What is discrete is drawn, not diffused: whether a row is terminal, whether its next observation is known, integer actions, and
every column that holds few distinct values (contact flags, sparse rewards, constants). A sample first draws a combination of
all of these from their empirical joint distribution; the continuous columns are then diffused conditional on it. So the rate
of terminals matches that of the data by construction, and a flag is never 0.97. `terminals="diffused"` is SynthER's way: the
terminal is one more column, not normalised, thresholded at 0.5.

Actions come back inside the data's own range. A policy that saturates puts much of its mass at the bounds, and diffused rows
scatter around them; actions beyond, which no environment takes, are what TD3+BC loses most by.

A row whose next observation is unknown teaches none: its next columns are set to 0 (the mean) under the condition that it is
unknown, and samples drawn under that condition repeat their observation with `next_known` False, like the data.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dreamloom.datasets.finite import require_finite
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.discrete import combine, find_discrete, one_hots
from dreamloom.nn.build import Buildable

Terminals = Literal["drawn", "diffused"]
NextObservation = Literal["absolute", "change"]


class Encoded(NamedTuple):
    """Rows as a model sees them: values (n, d) of unit variance, labels (n,) of the discrete columns' combination."""

    values: Tensor
    labels: Tensor


class Rows(nn.Module, Buildable):
    """The codec of one dataset: which columns are discrete, the statistics of the others. `Rows.of(data)` makes it.

    All columns lie side by side as observation, action, reward, next observation, terminal, known.

    Args:
        observation: columns of an observation.
        action: columns of an action; 0 for one integer.
        discrete: numbers of the columns that are drawn.
        combinations: how many combinations of discrete values there are.
        features: of the one-hot codes of a combination.
        next_observation: diffused as it is, or as the change from the observation.
    """

    mean: Tensor
    scale: Tensor
    bounds: Tensor
    values: Tensor
    codes: Tensor
    counts: Tensor

    def __init__(
        self,
        *,
        observation: int,
        action: int,
        discrete: list[int],
        combinations: int,
        features: int,
        next_observation: NextObservation = "absolute",
    ):
        super().__init__()
        self.observation, self.action, self.next_observation = observation, action, next_observation
        self.discrete = list(discrete)
        self.continuous = sorted(set(range(self.width)) - set(discrete))
        self.register_buffer("mean", torch.zeros(len(self.continuous)))
        self.register_buffer("scale", torch.ones(len(self.continuous)))
        self.register_buffer("bounds", torch.zeros(2, action))  # least and greatest action of the data
        self.register_buffer("values", torch.zeros(combinations, len(discrete), dtype=torch.float64))
        self.register_buffer("codes", torch.zeros(combinations, features))
        self.register_buffer("counts", torch.zeros(combinations, dtype=torch.int64))

    @classmethod
    def of(
        cls,
        data: Transitions,
        *,
        terminals: Terminals = "drawn",
        next_observation: NextObservation = "absolute",
        max_levels: int = 16,
    ) -> "Rows":
        """The codec of a dataset.

        Args:
            data: real rows.
            terminals: drawn with the discrete columns, or diffused like the continuous ones.
            next_observation: diffused as it is, or as the change from the observation.
            max_levels: a column of at most so many distinct values, each of ten rows or more on average, is drawn; 0 for none
                (constants and integers are drawn all the same).

        Raises:
            ValueError: pixels, fewer than two different rows, or values that are not finite.
        """
        flat = _flat(data, next_observation)
        observation, action = data.observations.shape[1], data.actions.shape[1] if data.actions.ndim == 2 else 0
        terminal, known = flat.shape[1] - 2, flat.shape[1] - 1
        must = [known, *([terminal] if terminals == "drawn" else []), *([] if action else [observation])]
        discrete = find_discrete(flat, must, max_levels)
        if len(discrete) == flat.shape[1]:
            raise ValueError(f"all {len(data)} rows are combinations of few values: there is nothing to diffuse")
        values, counts, _ = combine(flat[:, discrete])
        codes = one_hots(values)
        rows = cls(
            observation=observation,
            action=action,
            discrete=discrete,
            combinations=len(values),
            features=codes.shape[1],
            next_observation=next_observation,
        )
        rows.values.copy_(torch.from_numpy(values))
        rows.counts.copy_(torch.from_numpy(counts))
        rows.codes.copy_(torch.from_numpy(codes))
        rows._measure(flat)
        if action:
            rows.bounds.copy_(torch.from_numpy(np.stack([data.actions.min(0), data.actions.max(0)])))
        return rows

    @property
    def width(self) -> int:
        """All columns, drawn ones included."""
        return 2 * self.observation + max(self.action, 1) + 3

    @property
    def size(self) -> int:
        """Columns that are diffused."""
        return len(self.continuous)

    @property
    def features(self) -> int:
        """Features of a combination's code."""
        return self.codes.shape[1]

    def encode(self, data: Transitions) -> Encoded:
        """Rows for training.

        Raises:
            ValueError: the data's columns differ from those that the codec was made of.
        """
        flat = _flat(data, self.next_observation)
        if flat.shape[1] != self.width or (data.actions.ndim == 1) != (self.action == 0):
            raise ValueError(
                f"rows of observations {data.observations.shape[1:]} and actions {data.actions.shape[1:]} do not fit a model "
                f"of {self.observation} observation columns and {self.action or 'one integer'} action columns"
            )
        labels = self._labels(flat[:, self.discrete])
        mean, scale = self.mean.cpu().numpy(), self.scale.cpu().numpy()
        values = (flat[:, self.continuous] - mean) / scale
        values[np.ix_(flat[:, -1] == 0, self._next_columns())] = 0
        device = self.mean.device
        return Encoded(torch.from_numpy(values).to(device), torch.from_numpy(labels).to(device))

    def decode(self, values: Float[Tensor, "n d"], labels: Int64[Tensor, "n"]) -> Transitions:
        """Rows as transitions: float32, terminals bool, no timeouts; integer actions int64."""
        flat = np.empty((len(values), self.width), np.float32)
        flat[:, self.continuous] = (values * self.scale + self.mean).cpu().numpy()
        drawn = self.values[labels].cpu().numpy()
        flat[:, self.discrete] = drawn
        o, a = self.observation, max(self.action, 1)
        observations, actions, rewards, following, terminals, last = np.split(flat, np.cumsum([o, a, 1, o, 1]).tolist(), axis=1)
        if self.next_observation == "change":
            following = observations + following
        known = last[:, 0] > 0.5
        return Transitions(
            observations=np.ascontiguousarray(observations),
            actions=actions.clip(*self.bounds.cpu().numpy())
            if self.action
            else drawn[:, self.discrete.index(o)].astype(np.int64),
            rewards=rewards[:, 0].copy(),
            next_observations=np.where(known[:, None], following, observations),
            terminals=terminals[:, 0] > 0.5,
            timeouts=np.zeros(len(flat), bool),
            next_known=None if known.all() else known,
        )

    def _measure(self, flat: np.ndarray) -> None:
        """Mean and standard deviation of the continuous columns; of next columns only where the next observation is known."""
        columns = flat[:, self.continuous]
        mean, scale = columns.mean(0, dtype=np.float64), columns.std(0, dtype=np.float64)
        following, known = self._next_columns(), flat[:, -1] == 1
        if not known.all() and known.any():
            mean[following] = columns[np.ix_(known, following)].mean(0, dtype=np.float64)
            scale[following] = columns[np.ix_(known, following)].std(0, dtype=np.float64)
        terminal = np.array(self.continuous) == self.width - 2  # there only where diffused, and then not normalised
        self.mean.copy_(torch.from_numpy(np.where(terminal, 0, mean)))
        self.scale.copy_(torch.from_numpy(np.where(terminal | (scale == 0), 1, scale)))

    def _next_columns(self) -> list[int]:
        """Places among the continuous columns of those of the next observation."""
        first = self.observation + max(self.action, 1) + 1
        return [place for place, column in enumerate(self.continuous) if first <= column < first + self.observation]

    def _labels(self, columns: np.ndarray) -> np.ndarray:
        """(n,) number of each row's combination; one that the codec has not seen takes the nearest."""
        found, _, inverse = combine(columns)
        distance = ((rearrange(found, "k c -> k 1 c") - self.values.cpu().numpy()) ** 2).sum(-1)
        return distance.argmin(1)[inverse]


def _flat(data: Transitions, next_observation: NextObservation) -> np.ndarray:
    """(n, width) float32, a column for everything."""
    if data.observations.ndim != 2 or data.observations.dtype == np.uint8 or data.actions.ndim > 2 or not len(data):
        raise ValueError(
            f"diffusion needs rows of vectors: observations (N, o) float and actions (N, a) float or (N,) integer; got "
            f"{data.observations.dtype} {data.observations.shape} and {data.actions.dtype} {data.actions.shape}"
        )
    require_finite(data)
    known = np.ones(len(data), bool) if data.next_known is None else data.next_known
    change = data.observations if next_observation == "change" else 0
    parts = [data.observations, data.actions, data.rewards, data.next_observations - change, data.terminals, known]
    flat = np.concatenate([part.reshape(len(data), -1).astype(np.float32) for part in parts], 1)
    return flat
