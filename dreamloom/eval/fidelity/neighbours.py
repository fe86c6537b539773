"""Distance to the nearest training row: does a set of rows repeat what it was made from?"""

import numpy as np

# A row this near to a training row, in median distances of unseen real rows, is counted as a copy.
COPY = 0.1


def nearest(training: np.ndarray, rows: np.ndarray, *, skip: int = 0) -> np.ndarray:
    """Euclidean distance of each row to the nearest training row.

    Args:
        training: (n, d) rows, on a common scale (z-scores); n more than `skip`.
        rows: (m, d) rows.
        skip: nearest rows to pass over; 1 for rows that are training rows themselves.

    Returns:
        (m,) distances.
    """
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=skip + 1, algorithm="brute").fit(training).kneighbors(rows)[0][:, skip]


def nearest_ratio(distances: np.ndarray, heldout: np.ndarray) -> float | None:
    """Median of distances over the median of those of unseen real rows: 1 is as new as real data, near 0 is memorised.

    None where half of the unseen rows are in the training data.

    Args:
        distances: (m,) of `nearest`.
        heldout: (k,) of `nearest` to the same training rows.
    """
    middle = np.median(heldout)
    return float(np.median(distances) / middle) if middle > 0 else None


def copy_share(distances: np.ndarray, heldout: np.ndarray) -> float:
    """Share of rows within `COPY` of the unseen rows' median distance.

    Args:
        distances: (m,) of `nearest`.
        heldout: (k,) of `nearest` to the same training rows.
    """
    return float((distances < COPY * np.median(heldout)).mean())
