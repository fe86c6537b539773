"""What latent actions are worth: how many are in use, and what they tell of the true ones."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

# A latent action with a smaller share than this of real frames is not counted as in use.
IN_USE = 0.02


def usage(latent: Int[Tensor, "n"], count: int) -> dict[str, object]:
    """How a stretch of real video uses the latent actions.

    Args:
        latent: inferred actions.
        count: number of latent actions.

    Returns:
        `shares` of each; `usage_entropy`, 0 for one action to 1 for equal use of all; `in_use`, how many have at least
        2% of the frames.
    """
    shares = torch.bincount(latent, minlength=count).double() / len(latent)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum() / np.log(max(count, 2))
    return {"usage_entropy": float(entropy), "in_use": int((shares >= IN_USE).sum()), "shares": shares.tolist()}


def mutual_information(latent: Int[Tensor, "n"], true: Int[Tensor, "n"]) -> float:
    """Normalised mutual information, 0 to 1 (arithmetic mean of the entropies)."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(true.cpu().numpy(), latent.cpu().numpy()))


def map_accuracy(
    latent: Int[Tensor, "n"], true: Int[Tensor, "n"], *, labels: Sequence[int], seed: int, repeats: int = 50
) -> dict[str, dict[str, float]]:
    """A dictionary latent -> true action from few labelled frames, tried on all others (Bruce et al. 2024, appendix E).

    A latent action that no labelled frame shows takes the most frequent true action among the labels, which is also what the
    baseline always says.

    Args:
        latent: inferred actions.
        true: actions that were taken.
        labels: sizes of the labelled set.
        seed: of the choice of labelled frames.
        repeats: labelled sets to average over.

    Returns:
        For each size (as text) `accuracy` and `majority_accuracy`.
    """
    x, y = latent.cpu().numpy(), true.cpu().numpy()
    random = np.random.default_rng(seed)
    table = {}
    for size in (size for size in labels if size < len(x)):
        runs = [_one_map(x, y, random.permutation(len(x))[:size]) for _ in range(repeats)]
        accuracy, majority = np.mean(runs, axis=0)
        table[str(size)] = {"accuracy": float(accuracy), "majority_accuracy": float(majority)}
    return table


def _one_map(latent: np.ndarray, true: np.ndarray, chosen: np.ndarray) -> tuple[float, float]:
    counts = np.zeros((latent.max() + 1, true.max() + 1))
    np.add.at(counts, (latent[chosen], true[chosen]), 1)
    majority = counts.sum(0).argmax()
    mapping = np.where(counts.any(1), counts.argmax(1), majority)
    others = np.ones(len(latent), bool)
    others[chosen] = False
    return (mapping[latent] == true)[others].mean(), (majority == true)[others].mean()
