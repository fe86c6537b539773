"""Distances between the columns of two sets of rows: one column at a time, and by pairs."""

import numpy as np
from scipy import stats


def ks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov statistic of each column: the largest gap between the two cumulative distributions, 0 to 1.

    Args:
        a: (n, d) rows.
        b: (m, d) rows.

    Returns:
        (d,) statistics.
    """
    return np.array([stats.ks_2samp(x, y, method="asymp").statistic for x, y in zip(a.T, b.T, strict=True)])


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of each column, in the column's unit (standard deviations, for z-scores).

    Args:
        a: (n, d) rows.
        b: (m, d) rows.

    Returns:
        (d,) distances.
    """
    return np.array([stats.wasserstein_distance(x, y) for x, y in zip(a.T, b.T, strict=True)])


def jensen_shannon(a: np.ndarray, b: np.ndarray, *, bins: int = 50) -> np.ndarray:
    """Jensen-Shannon divergence of each column in bits (Lin 1991, equation 4.1): 0 for the same distribution, 1 for no overlap.

    Densities are histograms over bins that hold equal shares of both sets together, so that heavy tails and exact values (a
    reward of 0) need no width to be chosen. Two samples of one distribution come out above 0, by about
    (bins - 1) (1/n + 1/m) / (8 ln 2): compare with the floor.

    Args:
        a: (n, d) rows.
        b: (m, d) rows.
        bins: at most; ties make fewer.

    Returns:
        (d,) divergences.
    """
    return np.array([_jensen_shannon(x, y, bins) for x, y in zip(a.T, b.T, strict=True)])


def _jensen_shannon(x: np.ndarray, y: np.ndarray, bins: int) -> float:
    edges = np.unique(np.quantile(np.concatenate([x, y]), np.linspace(0, 1, bins + 1), method="inverted_cdf"))
    p, q = (np.bincount(np.searchsorted(edges, column), minlength=len(edges)) / len(column) for column in (x, y))
    m = (p + q) / 2
    return float(stats.entropy(m, base=2) - (stats.entropy(p, base=2) + stats.entropy(q, base=2)) / 2)


def correlation(rows: np.ndarray) -> np.ndarray:
    """(n, d) rows -> (d, d) Pearson correlations; those of a constant column are 0."""
    centred = rows - rows.mean(0)
    norm = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(norm > 1e-9 * len(rows) ** 0.5, norm, np.inf)
    return unit.T @ unit


def correlation_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of the two correlation matrices, over all pairs of different columns.

    Args:
        a: (n, d) rows, d at least 2.
        b: (m, d) rows.
    """
    pairs = np.triu_indices(a.shape[1], 1)
    return float(np.abs(correlation(a) - correlation(b))[pairs].mean())
