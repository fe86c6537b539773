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


def heldout_mask(episodes: np.ndarray, generator: np.random.Generator, *, every: int = 5) -> np.ndarray:
    """Rows of one random episode of every five, at least of one and never of all.

    Held-out episodes are spread over time because a replay's policy changes with it: drawn from anywhere, they would differ
    from the rest by more than chance has to.

    Args:
        episodes: (N,) as `episode_numbers` gives them.
        generator: of the choice.
        every: episodes of which one is held out.

    Returns:
        (N,) bool.

    Raises:
        ValueError: there is only one episode.
    """
    count = int(episodes.max(initial=-1)) + 1
    if count < 2:
        raise ValueError(f"its {len(episodes)} rows are one episode: none can be held out; give others as --heldout")
    firsts = np.arange(0, count, every)
    chosen = generator.integers(firsts, np.minimum(firsts + every, count))
    return np.isin(episodes, chosen if count % every == 0 or len(chosen) == 1 else chosen[:-1])
