"""Cheap ways to multiply data, as reference rows beside the synthetic ones: noise copies and a Gaussian copula."""

from dataclasses import replace

import numpy as np
from scipy import stats

from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.columns import spread

# Standard deviation of the noise, in standard deviations of each column.
NOISE = 0.1


def noise_copies(real: Transitions, *, sd: float = NOISE, generator: np.random.Generator) -> Transitions:
    """Real rows with independent Gaussian noise on every continuous column; flags and discrete actions stay.

    Args:
        real: the rows.
        sd: of the noise, in standard deviations of each column.
        generator: of the noise.
    """

    def noisy(values: np.ndarray) -> np.ndarray:
        return (values + sd * spread(values) * generator.standard_normal(values.shape)).astype(values.dtype)

    names = ["observations", "rewards", "next_observations"] + ["actions"] * (real.actions.dtype.kind == "f")
    return replace(real, **{name: noisy(getattr(real, name)) for name in names})


def gaussian_copula(real: Transitions, rows: int, *, generator: np.random.Generator) -> Transitions:
    """Rows with the marginals of the real ones and, between columns, the dependence of a Gaussian.

    Each column is mapped to normal scores by its ranks; correlated normal rows are drawn and mapped back through the column's
    empirical quantiles, so every value is one that the column has. Flags and discrete actions are columns like the others.

    Args:
        real: rows to fit.
        rows: how many to draw.
        generator: of the draws.
    """
    parts = [np.asarray(value).reshape(len(real), -1) for value in _fields(real).values()]
    values = np.concatenate([part.astype(np.float64) for part in parts], 1)
    scores = stats.norm.ppf((stats.rankdata(values, axis=0) - 0.5) / len(values))
    scores /= spread(scores)
    # Eigenvectors rather than Cholesky: columns that determine one another leave the matrix singular.
    power, axes = np.linalg.eigh(scores.T @ scores / len(scores))
    normal = generator.standard_normal((rows, len(power))) @ (axes * np.sqrt(power.clip(0))).T
    ranks = (stats.norm.cdf(normal) * len(values)).astype(np.int64).clip(max=len(values) - 1)
    drawn = np.take_along_axis(np.sort(values, axis=0), ranks, 0)
    columns = np.split(drawn, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
    fields = zip(_fields(real).items(), columns, strict=True)
    return Transitions(**{name: new.reshape(rows, *old.shape[1:]).astype(old.dtype) for (name, old), new in fields})


def _fields(real: Transitions) -> dict[str, np.ndarray]:
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    return {name: getattr(real, name) for name in names}
