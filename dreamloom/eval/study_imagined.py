"""Rows imagined in a world, as a study of frames has them beside the real ones: what `dreamloom synthesize` wrote before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dreamloom.datasets.lazy import as_lazy
from dreamloom.datasets.store import Dataset, open_dataset
from dreamloom.datasets.subset import level_range, overlap, subset


def imagined_rows(path: Path, real: Dataset, *, rows: int, levels: str, test: str, seed: int) -> Dataset:
    """Rollouts that are drawn from a dataset until they have so many rows.

    Heads tell expected rewards. Here each is drawn among the values that the real rows have, with that mean: then rewards are
    of few values, as in the real rows, and an upsampler of latents draws them as it draws those.

    Args:
        path: the dataset.
        real: rows beside which they are put.
        rows: how many, the frames that close rollouts included.
        levels: that rollouts may start from.
        test: levels that the world may not have seen.
        seed: of the draws.

    Raises:
        ValueError: the rows were not imagined, are too few, do not fit the real ones, or know of the test's levels.
    """
    whole = open_dataset(path)
    _require(whole, real, rows, levels, test)
    data = whole if len(whole) == rows else subset(whole, rows=rows, seed=seed)
    assert data.rewards is not None
    assert real.rewards is not None
    drawn = drawn_rewards(data.rewards[:], np.unique(real.rewards[:]), np.random.default_rng([seed, 4]))
    data.rewards = as_lazy(drawn)
    return data


def rates(path: Path, real: Path, levels: str) -> dict[str, float]:
    """Mean reward and share of endings of real and imagined rows; rows that close a cut episode are left out.

    Args:
        path: of the imagined rows.
        real: dataset beside which they are put.
        levels: of its rows.
    """
    found: dict[str, float] = {}
    for kind, opened in (("real", subset(real, levels=levels)), ("imagined", open_dataset(path))):
        with opened as data:
            assert data.rewards is not None
            rows = ~data.timeouts[:] | data.terminals[:]
            for name, column in (("reward", data.rewards), ("terminals", data.terminals)):
                found[f"{name}_{kind}"] = float(column[:][rows].mean())
    return found


def world_seconds(path: Path) -> dict[str, float]:
    """Seconds of the training of the world behind imagined rows, and of its heads, by the clock, as their file tells it."""
    with open_dataset(path) as data:
        seconds = _source(data.attrs).get("world_wall_s")
    return {} if seconds is None else {"world": float(seconds)}


def drawn_rewards(
    means: Float[np.ndarray, "n"], values: Float[np.ndarray, "v"], random: np.random.Generator
) -> Float[np.ndarray, "n"]:
    """Each of a mean's two neighbours among rising values, as often as gives that mean; beyond the last value that value."""
    if len(values) == 1:
        return np.full_like(means, values[0])
    means = means.clip(values[0], values[-1])
    above = np.searchsorted(values, means).clip(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    return np.where(random.random(len(means)) < (means - low) / (high - low), high, low).astype(means.dtype)


def _source(attrs: Mapping[str, Any]) -> Mapping[str, Any]:
    source = attrs.get("source")
    return source if attrs.get("synthetic") and isinstance(source, dict) and "world" in source else {}


def _require(data: Dataset, real: Dataset, rows: int, levels: str, test: str) -> None:
    source = _source(data.attrs)
    if not source:
        raise ValueError(f"{data.ref}: was not imagined in a world by `dreamloom synthesize`")
    if data.fps != real.fps or data.action_names != real.action_names:
        told = [f"{one.fps:g} frames/s and actions {', '.join(one.action_names or [])}" for one in (data, real)]
        raise ValueError(f"{data.ref}: has {told[0]}, the real rows {told[1]}; train the world with data.stride 1")
    if len(data) < rows:
        raise ValueError(f"{data.ref}: has {len(data)} rows, an arm asks for {rows}; a greater --n adds some")
    low, high = level_range(levels)
    seeds = data.infos["level_seed"][:] if "level_seed" in data.infos else np.array([low - 1])
    if not ((low <= seeds) & (seeds < high)).all():
        raise ValueError(f"{data.ref}: starts from levels that are not all known and of {levels}")
    if seen := [one for one in source.get("world_levels", []) if overlap(one, test)]:
        raise ValueError(f"{data.ref}: its world was trained on levels {seen[0]}, which reach into those of the test, {test}")
