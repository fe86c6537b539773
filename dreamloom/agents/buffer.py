"""A replay buffer that lives on the device: several datasets, mixed by shares, one batch for every seed."""

import itertools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreamloom.datasets.finite import require_finite
from dreamloom.datasets.types import Transitions


class Batch(NamedTuple):
    """Rows for every seed; `terminals` is 1 where the MDP ended. A timeout leaves no trace: it must not cut the bootstrap.

    Discrete actions are (s, b) int64.
    """

    observations: Float[Tensor, "s b o"]
    actions: Float[Tensor, "s b a"] | Int[Tensor, "s b"]
    rewards: Float[Tensor, "s b"]
    next_observations: Float[Tensor, "s b o"]
    terminals: Float[Tensor, "s b"]


class Buffer:
    """All rows of some datasets as one float32 table.

    Args:
        parts: datasets of equal columns, e.g. a real and a synthetic one.
        shares: of each batch, one for each part, e.g. [0.5, 0.5]; None draws uniformly from all rows together.
        device: where the table is and batches come out.
        reward_scale: factor of the rewards (IQL on locomotion: 1000 / (largest - smallest return)).

    Raises:
        ValueError: the parts are no vectors, hold numbers that are not finite, or do not fit each other, or the shares do
            not fit the parts.
    """

    def __init__(
        self,
        parts: Sequence[Transitions],
        shares: Sequence[float] | None = None,
        device: torch.device | str = "cpu",
        *,
        reward_scale: float = 1.0,
    ):
        for part in parts:
            require_finite(part)
        known = [_with_known_next(part) for part in parts]
        self.shares = _checked_shares(shares, [len(part) for part in known])
        self.widths = _widths(known)
        self.discrete = known[0].actions.ndim == 1
        tables = [torch.from_numpy(_table(part, reward_scale)) for part in known]
        ends = np.cumsum([0, *map(len, tables)])
        self.ranges = [(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self.table = torch.cat(tables).to(device)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.table.device

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> Batch:
        """A batch for each seed, drawn with replacement from that seed's generator.

        Args:
            batch_size: rows a seed; with shares it is split by them, to the nearest row.
            generators: one a seed, on the buffer's device.
        """
        ranges = [(0, len(self), batch_size)]
        if self.shares is not None:
            counts = _split(batch_size, self.shares)
            ranges = [(start, end, count) for (start, end), count in zip(self.ranges, counts, strict=True) if count]
        rows = torch.cat([self._draw(place, generator) for generator in generators for place in ranges])
        columns = self.table.index_select(0, rows).view(len(generators), batch_size, -1).split(self.widths, -1)
        observations, actions, rewards, next_observations, terminals = columns
        actions = actions[..., 0].long() if self.discrete else actions
        return Batch(observations, actions, rewards[..., 0], next_observations, terminals[..., 0])

    def _draw(self, place: tuple[int, int, int], generator: torch.Generator) -> Tensor:
        start, end, count = place
        return torch.randint(start, end, (count,), generator=generator, device=self.device)


def _with_known_next(part: Transitions) -> Transitions:
    """Without the rows whose successor the source does not hold, unless the target does not look at it (a terminal)."""
    if part.next_known is None:
        return part
    usable = part.next_known | part.terminals
    if not usable.all():
        warnings.warn(f"{(~usable).sum()} of {len(part)} rows do not say what followed and are left out", stacklevel=3)
    return part[usable]


def _checked_shares(shares: Sequence[float] | None, rows: list[int]) -> list[float] | None:
    if not sum(rows):
        raise ValueError("a buffer needs rows, there are none")
    if shares is None:
        return None
    if len(shares) != len(rows) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{len(rows)} datasets need as many shares, each at least 0, with sum 1; got {list(shares)}")
    if any(share and not count for share, count in zip(shares, rows, strict=True)):
        raise ValueError(f"a dataset without rows cannot have a share: rows {rows}, shares {list(shares)}")
    return list(shares)


def _split(batch_size: int, shares: list[float]) -> list[int]:
    """Whole rows by shares: ends of the running sum, rounded."""
    ends = [round(batch_size * float(end)) for end in np.cumsum([0, *shares])]
    return [b - a for a, b in itertools.pairwise(ends)]


def _widths(parts: Sequence[Transitions]) -> list[int]:
    """Columns of the table: observation, action, reward, next observation, terminal."""
    shapes = {(part.observations.shape[1:], part.actions.shape[1:]) for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"datasets of one buffer must have observations and actions of one shape, got {sorted(shapes)}")
    (observation, action) = shapes.pop()
    if len(observation) != 1 or len(action) > 1:
        raise ValueError(
            f"agents need observations (N, o) and actions (N, a) or (N,), got shapes {observation} and {action} of a row"
        )
    return [observation[0], *(action or (1,)), 1, observation[0], 1]


def _table(part: Transitions, reward_scale: float) -> np.ndarray:
    columns = [
        part.observations,
        part.actions.reshape(len(part), -1),
        part.rewards[:, None] * reward_scale,
        part.next_observations,
        part.terminals[:, None],
    ]
    return np.concatenate([column.astype(np.float32) for column in columns], axis=1)
