"""Does one set of returns rank policies as another does? Rank correlation with a bootstrap interval, its table and plot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

REPETITIONS = 5_000  # of the bootstrap
Returns = Float[np.ndarray, "p b"]


def ranking(real: Returns, imagined: Returns, seed: int = 0) -> dict[str, Any]:
    """How far imagined mean returns of policies are ordered as the real ones.

    Args:
        real: of each policy from each start.
        imagined: likewise, from the same starts.
        seed: of the bootstrap.

    Returns:
        `spearman` with `low` and `high`, percentiles of a 95% bootstrap over policies and starts together (real and imagined
        are resampled alike), `fixed_low` and `fixed_high`, of these policies, over starts alone; `pearson`; and `regret`, how
        much less the policy that imagination would choose really earns than the best. None where all means are equal.
    """
    policies, starts = real.shape
    random = np.random.default_rng(seed)
    weights = random.multinomial(starts, np.full(starts, 1 / starts), size=REPETITIONS) / starts
    means = [weights @ returns.T for returns in (real, imagined)]
    chosen = random.integers(policies, size=(REPETITIONS, policies))
    low, high = _percentiles(spearman(*(np.take_along_axis(mean, chosen, 1) for mean in means)))
    fixed_low, fixed_high = _percentiles(spearman(*means))
    truth, told = real.mean(1), imagined.mean(1)
    return {
        "spearman": _number(spearman(truth, told)),
        "low": low,
        "high": high,
        "fixed_low": fixed_low,
        "fixed_high": fixed_high,
        "pearson": _number(_correlation(truth, told)),
        "regret": float(truth.max() - truth[told.argmax()]),
    }


def spearman(a: Float[np.ndarray, "*n p"], b: Float[np.ndarray, "*n p"]) -> Float[np.ndarray, "*n"]:
    """Rank correlations along the last axis, ties at their mean rank; NaN where all values are equal."""
    from scipy.stats import rankdata

    return _correlation(*(rankdata(x, axis=-1) for x in (a, b)))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))


def _percentiles(draws: np.ndarray) -> tuple[float | None, float | None]:
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, (0.025, 0.975)).tolist() if draws.size else (None, None)
    return low, high


def _number(value: np.ndarray) -> float | None:
    return float(value) if np.isfinite(value) else None


def span(found: Mapping[str, Any], low: str = "low", high: str = "high") -> str:
    """A rank correlation and its interval as text."""
    if found["spearman"] is None:
        return "none (all returns are equal)"
    if found[low] is None:
        return f"{found['spearman']:.2f}"
    return f"{found['spearman']:.2f} [{found[low]:.2f}, {found[high]:.2f}]"


def table(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of text, a policy each: its mean returns with their standard errors."""
    head = ["policy", "steps learned", "real", "imagined", "episodes while it learned"]
    rows = [head, ["-"] * len(head)]
    for policy in policies:
        returns = [f"{policy[kind]['mean']:.2f} ± {policy[kind]['error']:.2f}" for kind in ("real", "imagined")]
        known = policy["mean_return"]
        rows.append([policy["name"], f"{policy['steps']:,}", *returns, "" if known is None else f"{known:.2f}"])
    return ["| " + " | ".join(row) + " |" for row in rows]


def plot(policies: Sequence[Mapping[str, Any]], found: Mapping[str, Any], title: str) -> Figure:
    """Real against imagined mean returns with standard errors; later policies are darker."""
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    panel = figure.subplots()
    real, imagined = ([policy[kind] for policy in policies] for kind in ("real", "imagined"))
    for number, (x, y) in enumerate(zip(imagined, real, strict=True)):
        shade = (0.75 * (1 - number / max(1, len(policies) - 1)),) * 3
        panel.errorbar(x["mean"], y["mean"], xerr=x["error"], yerr=y["error"], fmt="o", color=shade, capsize=2)
        panel.annotate(str(number + 1), (x["mean"], y["mean"]), textcoords="offset points", xytext=(5, 4))
    panel.set(xlabel="imagined return", ylabel="real return", title=f"{title}\nSpearman {span(found)}")
    panel.grid(alpha=0.3)
    return figure
