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
