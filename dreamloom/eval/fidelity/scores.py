"""All figures of fidelity: of the rows to judge, and of the reference rows beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.baselines import gaussian_copula, noise_copies
from dreamloom.eval.fidelity.columns import Columns
from dreamloom.eval.fidelity.dynamics import DynamicsError, NotMeasurableError, dynamics_error
from dreamloom.eval.fidelity.marginals import correlation_distance, jensen_shannon, ks, wasserstein
from dreamloom.eval.fidelity.neighbours import copy_share, nearest, nearest_ratio
from dreamloom.eval.fidelity.sampling import draw
from dreamloom.eval.fidelity.two_sample import c2st_auc

# At most so many rows for what costs more a row: the simulator, the classifier, the search for the nearest.
DYNAMICS_ROWS, C2ST_ROWS, NEAREST_ROWS = 5_000, 5_000, 2_000
Scores = dict[str, Any]


@dataclass(frozen=True)
class Real:
    """The real rows that others are judged by.

    Attributes:
        training: rows that the others may have been made from.
        unseen: rows of other episodes.
        whole: what `training` was cut from; all of it may have been learned from.
        env_id: the environment whose simulator is asked; None if not known.
        env_kwargs: its settings.
    """

    training: Transitions
    unseen: Transitions
    whole: Transitions
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] | None = None


@dataclass
class Findings:
    """What was measured, in figures and as what plots are made of; each table has synthetic, floor, baseline and copula.

    Attributes:
        scores: the figures, as they stand in metrics.json.
        notes: what could not be measured -> why.
        columns: names and scale of the columns.
        unseen: (n, d) the real rows, z-scored.
        rows: name -> (n, d) the rows, z-scored.
        dynamics: name -> what the simulator says of each row; empty where it cannot be asked.
        nearest: name -> (m,) distances to the nearest training row; also `unseen`.
    """

    scores: dict[str, Scores]
    notes: dict[str, str]
    columns: Columns
    unseen: np.ndarray
    rows: dict[str, np.ndarray]
    dynamics: dict[str, DynamicsError]
    nearest: dict[str, np.ndarray]


def compare(synthetic: Transitions, real: Real, *, rows: int = 20_000, seed: int = 0) -> Findings:
    """Measures rows of any origin against real ones, and the reference rows likewise.

    The reference rows: `floor`, real training rows; `baseline`, the same with Gaussian noise; `copula`, rows drawn from a
    Gaussian copula fitted to them.

    Args:
        synthetic: the rows to judge, in random order.
        real: what they are judged by.
        rows: at most so many of each are compared.
        seed: of all draws.

    Raises:
        ValueError: rows of other columns than the real ones, or numbers that are not finite.
    """
    generator = np.random.default_rng((seed, 0))
    marked = real.whole.next_known is not None
    unseen = draw(real.unseen, rows, generator)
    candidates = {"synthetic": synthetic[:rows], **references(draw(real.training, rows, generator), generator)}
    candidates = {name: _mark_terminals(part) if marked else part for name, part in candidates.items()}
    columns = Columns.of(real.training)
    tables = {name: columns.scaled(_known(part)) for name, part in candidates.items()}
    target = columns.scaled(_known(_mark_terminals(unseen) if marked else unseen))
    found = Findings({name: {} for name in candidates}, {}, columns, target, tables, {}, {})
    _add(found, {name: {**_rates(part), **_marginals(found, tables[name])} for name, part in candidates.items()})
    _add(found, _nearest(found, columns.scaled(_known(real.training))))
    _add(found, _c2st(columns, _known(candidates["synthetic"]), _known(real.whole), min(rows, C2ST_ROWS), seed))
    _add(found, _dynamics(found, candidates, real))
    return found


def likeness(real: Transitions, synthetic: Transitions, *, rows: int = 2_000, seed: int = 0) -> Scores:
    """A few figures of synthetic rows beside the real ones that they were made after.

    Args:
        real: all real rows.
        synthetic: rows in random order.
        rows: at most so many of each are compared.
        seed: of the draw and the classifier.

    Returns:
        `js` (mean over columns of Jensen-Shannon), `auc` of a classifier, and for both sets the mean reward and the share of
        terminals.
    """
    generator = np.random.default_rng((seed, 2))
    columns, some = Columns.of(real), draw(real, rows, generator)
    made = _mark_terminals(synthetic[:rows]) if real.next_known is not None else synthetic[:rows]
    tables = [_known(part) for part in (some, made)]
    js = jensen_shannon(*(columns.scaled(part) for part in tables))
    auc = c2st_auc(*(_features(columns, part) for part in tables), generator=generator)
    rates = {kind: _rates(part) for kind, part in (("real", real), ("synthetic", synthetic))}
    return {
        "js": float(js.mean()),
        "auc": auc,
        **{f"reward_{kind}": found["reward"]["mean"] for kind, found in rates.items()},
        **{f"terminals_{kind}": found["terminal"]["rate"] for kind, found in rates.items()},
    }


def references(real: Transitions, generator: np.random.Generator) -> dict[str, Transitions]:
    """The reference rows made from real ones, as many."""
    noisy, drawn = noise_copies(real, generator=generator), gaussian_copula(real, len(real), generator=generator)
    return {"floor": real, "baseline": noisy, "copula": drawn}


def _add(found: Findings, scores: Mapping[str, Scores]) -> None:
    for name, part in scores.items():
        found.scores[name].update(part)


def _mark_terminals(transitions: Transitions) -> Transitions:
    """Where real data does not hold what followed a terminal row, what others say followed one is compared with nothing."""
    known = ~transitions.terminals
    return replace(transitions, next_known=known if transitions.next_known is None else known & transitions.next_known)


def _known(transitions: Transitions) -> Transitions:
    return transitions if transitions.next_known is None else transitions[transitions.next_known]


def _rates(part: Transitions) -> Scores:
    reward = {"mean": float(part.rewards.mean()), "sd": float(part.rewards.std())}
    return {"rows": len(part), "terminal": {"rate": float(part.terminals.mean())}, "reward": reward}


def _marginals(found: Findings, table: np.ndarray) -> Scores:
    scores: Scores = {}
    for name, metric in (("ks", ks), ("wasserstein", wasserstein), ("js", jensen_shannon)):
        values = metric(found.unseen, table)
        by_column = dict(zip(found.columns.names, values.tolist(), strict=True))
        scores[name] = {"mean": float(values.mean()), "max": float(values.max()), "columns": by_column}
    return {**scores, "correlation": {"distance": correlation_distance(found.unseen, table)}}


def _nearest(found: Findings, training: np.ndarray) -> dict[str, Scores]:
    # A training row is its own nearest, so the floor is what unseen rows are: 1 by definition.
    queries = {name: table for name, table in found.rows.items() if name != "floor"}
    for name, table in _progress({**queries, "floor": found.unseen}, "nearest real rows"):
        found.nearest[name] = nearest(training, table[:NEAREST_ROWS])
    unseen = found.nearest["floor"]
    scores: dict[str, Scores] = {
        name: {"ratio": nearest_ratio(far, unseen), "copies": copy_share(far, unseen), "median": float(np.median(far))}
        for name, far in found.nearest.items()
    }
    scores["floor"]["training_ratio"] = nearest_ratio(nearest(training, found.rows["floor"][:NEAREST_ROWS], skip=1), unseen)
    return {name: {"nearest": part} for name, part in scores.items()}


def _c2st(columns: Columns, synthetic: Transitions, whole: Transitions, rows: int, seed: int) -> dict[str, Scores]:
    """Against rows of the same episodes that the synthetic ones were made from: others betray themselves by their policy."""
    generator = np.random.default_rng((seed, 1))
    mixed = draw(whole, 2 * rows, generator)
    target, fresh = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
    real = _features(columns, target)
    candidates = {"synthetic": synthetic[:rows], **references(fresh, generator)}
    return {
        name: {"c2st": {"auc": c2st_auc(real, _features(columns, part), generator=generator)}}
        for name, part in _progress(candidates, "classifiers")
    }


def _features(columns: Columns, part: Transitions) -> np.ndarray:
    """Columns, the change of each observation, which trees cannot take from its two columns, and the terminal."""
    table, state = columns.scaled(part), part.observations.shape[1]
    return np.concatenate([table, table[:, -state:] - table[:, :state], part.terminals[:, None]], 1)


def _dynamics(found: Findings, candidates: Mapping[str, Transitions], real: Real) -> dict[str, Scores]:
    try:
        if real.env_id is None:
            raise NotMeasurableError("the real file does not say which environment it is of; --env can")
        for name, part in _progress(candidates, "simulator"):
            found.dynamics[name] = dynamics_error(
                real.env_id, part[:DYNAMICS_ROWS], scale=_known(real.training), env_kwargs=real.env_kwargs
            )
    except NotMeasurableError as error:
        found.notes["dynamics"] = str(error)
        return {name: {"dynamics": {"mse": None}} for name in candidates}
    return {name: {"dynamics": error.summary()} for name, error in found.dynamics.items()}


def _progress(parts: Mapping[str, Any], description: str) -> Iterator[tuple[str, Any]]:
    yield from tqdm(parts.items(), desc=description, leave=False, unit="set")
