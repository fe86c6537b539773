"""Per-row scalars that generation can be guided by: what Prioritized Generative Replay calls relevance (Wang et al. 2024)."""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.datasets.types import Transitions
from dreamloom.nn.build import Buildable

Relevance = Literal["return_to_go", "reward", "novelty", "given"]
HARMONICS = 8  # of a rank, as a network sees it
BINS = 100  # of ranks


class Ranks(nn.Module, Buildable):
    """A scalar's quantiles, so that a network sees its rank in [0, 1], and what discrete values go with each rank.

    Args:
        combinations: of discrete values (`Rows`).
    """

    quantiles: Tensor
    counts: Tensor

    def __init__(self, combinations: int):
        super().__init__()
        self.register_buffer("quantiles", torch.zeros(BINS + 1, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(BINS, combinations, dtype=torch.int64))

    @classmethod
    def of(cls, scalars: np.ndarray, labels: np.ndarray, combinations: int) -> "Ranks":
        """Of a dataset's scalars (N,) and the numbers of its rows' combinations (N,)."""
        ranks = cls(combinations)
        ranks.quantiles.copy_(torch.from_numpy(np.quantile(scalars.astype(np.float64), np.linspace(0, 1, BINS + 1))))
        counts = np.zeros((BINS, combinations), np.int64)
        np.add.at(counts, (_bin(ranks.rank(scalars)), labels), 1)
        filled = np.flatnonzero(counts.any(1))  # ties leave bins empty: these borrow from the nearest
        nearest = filled[np.abs(np.arange(BINS)[:, None] - filled).argmin(1)]
        ranks.counts.copy_(torch.from_numpy(counts[nearest]))
        return ranks

    def rank(self, scalars: np.ndarray) -> np.ndarray:
        """Ranks in [0, 1] of scalars; those that many rows share have the middle of their ranks."""
        quantiles = self.quantiles.cpu().numpy()
        scalars = np.clip(scalars.astype(np.float64), quantiles[0], quantiles[-1])
        first, after = np.searchsorted(quantiles, scalars, "left"), np.searchsorted(quantiles, scalars, "right")
        low, high = quantiles[np.maximum(after - 1, 0)], quantiles[np.minimum(after, BINS)]
        between = after - 1 + (scalars - low) / np.where(high > low, high - low, 1)
        return np.where(after > first, (first + after - 1) / 2, between) / BINS

    def draw(self, wanted: float | tuple[float, float], uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (n,) and numbers of combinations (n,).

        Args:
            wanted: a value of the scalar, or a range of its quantiles such as (0.9, 1.0).
            uniform: (n, 2) in [0, 1).
        """
        if isinstance(wanted, tuple):
            low, high = wanted
            if not 0 <= low <= high <= 1:
                raise ValueError(f"a range of quantiles must lie in [0, 1], got {wanted}")
            grid = np.linspace(0, 1, BINS + 1)
            scalars = np.interp(low + (high - low) * uniform[:, 0], grid, self.quantiles.cpu().numpy())
        else:
            scalars = np.full(len(uniform), wanted, np.float64)
        ranks = self.rank(scalars)
        # Row by row the first combination whose cumulative share exceeds the uniform number.
        share = np.cumsum(self.counts.cpu().numpy(), 1)
        share = share / share[:, -1:]
        return ranks, (uniform[:, 1:] >= share[_bin(ranks)]).sum(1)


def _bin(ranks: np.ndarray) -> np.ndarray:
    return np.minimum((ranks * BINS).astype(np.int64), BINS - 1)


def relevance(kind: Relevance, data: Transitions, rows: Tensor, given: np.ndarray | None, *, seed: int = 0) -> np.ndarray:
    """(N,) the scalar of each row.

    Args:
        kind: which scalar.
        data: the rows, in order of time for `return_to_go`.
        rows: the same, encoded.
        given: the scalars themselves where `kind` is "given", else None.
        seed: of `novelty`.

    Raises:
        ValueError: scalars are given and not asked for, or the reverse, or not one finite number a row.
    """
    if (kind == "given") != (given is not None):
        raise ValueError(f"condition {kind!r} {'needs' if kind == 'given' else 'takes no'} relevance, one number a row")
    if given is not None:
        if given.shape != (len(data),) or not np.isfinite(given).all():
            raise ValueError(f"relevance must be {len(data)} finite numbers, one a row, got shape {given.shape}")
        return given
    if kind == "novelty":
        return novelty(rows, seed=seed)
    return return_to_go(data) if kind == "return_to_go" else data.rewards


def return_to_go(transitions: Transitions) -> np.ndarray:
    """(N,) undiscounted sum of rewards from each row to the end of its episode; rows must lie in order of time."""
    ends = transitions.terminals | transitions.timeouts
    # Sums from the back, restarted at every end: the running total minus what lies behind the row's own episode.
    total = np.cumsum(transitions.rewards[::-1].astype(np.float64))[::-1]
    behind = np.append(total[1:], 0.0)
    rows = np.arange(len(total))
    last = np.minimum.accumulate(np.where(ends, rows, len(rows) - 1)[::-1])[::-1]
    return (total - behind[last]).astype(np.float32)


def novelty(rows: Float[Tensor, "n d"], *, seed: int = 0, steps: int = 500, width: int = 128) -> np.ndarray:
    """(n,) error of random network distillation (Burda et al. 2019): large where rows are unlike the others.

    Args:
        rows: of about unit variance.
        seed: of both networks and of the batches.
        steps: of training the second network to say what the first, random one says.
        width: of both networks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        target, guess = (_mlp(rows.shape[1], width).to(rows.device) for _ in range(2))
    optimizer = torch.optim.Adam(guess.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (256,), generator=generator).to(rows.device)]
        loss = (guess(batch) - target(batch).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return torch.cat([(guess(part) - target(part)).square().mean(1) for part in rows.split(65536)]).cpu().numpy()


def rank_features(rank: Float[Tensor, "b"], present: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
    """Features of a rank in [0, 1], all zero where the condition is absent (`present` 0): a constant and cosines."""
    waves = torch.arange(HARMONICS + 1, device=rank.device) * math.pi
    return present[:, None] * (rank[:, None] * waves).cos()


def _mlp(size: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
