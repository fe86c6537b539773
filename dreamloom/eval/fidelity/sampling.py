"""Which rows are compared: a seeded sample of any dataset, and real rows split by episode."""

import numpy as np

from dreamloom.datasets.runs import run_ends
from dreamloom.datasets.store import Dataset, episode_bounds
from dreamloom.datasets.transitions import count_transitions, iter_transitions
from dreamloom.datasets.types import Transitions


def sample_rows(dataset: Dataset, rows: int, generator: np.random.Generator) -> Transitions:
    """Rows drawn without replacement from the whole of a dataset, which is streamed, in its order.

    Args:
        dataset: an open dataset.
        rows: how many; all of them where there are fewer.
        generator: of the choice.

    Raises:
        DatasetError: it has no actions or no rewards.
    """
    total = count_transitions(dataset)
    chosen = np.sort(generator.permutation(total)[:rows])
    parts, first = [], 0
    for part in iter_transitions(dataset):
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(part))]
        parts.append(part[inside - first])
        first += len(part)
    return Transitions.concatenate(parts)


def draw(transitions: Transitions, rows: int, generator: np.random.Generator) -> Transitions:
    """Rows drawn without replacement, in random order; all of them where there are fewer."""
    return transitions[generator.permutation(len(transitions))[:rows]]


def episode_numbers(transitions: Transitions) -> np.ndarray:
    """Number of the episode that each row belongs to, (N,) int64.

    An episode also ends where the next row does not start from what followed: rows with a timeout may have been dropped
    (D4RL's rule).
    """
    starts, ends = episode_bounds(run_ends(transitions, None))
    return np.repeat(np.arange(len(starts)), ends - starts)


def heldout_mask(episodes: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Rows of random whole episodes that make up about a share of all rows, at least one episode and never all.

    Args:
        episodes: (N,) as `episode_numbers` gives them.
        share: of the rows.
        generator: of the choice.

    Returns:
        (N,) bool.

    Raises:
        ValueError: there is only one episode.
    """
    lengths = np.bincount(episodes)
    if len(lengths) < 2:
        raise ValueError(
            f"its {len(episodes)} rows are one episode, so none can be held out; give other real rows as --heldout"
        )
    order = generator.permutation(len(lengths))
    count = int(np.searchsorted(np.cumsum(lengths[order]), share * len(episodes))) + 1
    return np.isin(episodes, order[: min(count, len(lengths) - 1)])
