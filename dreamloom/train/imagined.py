"""Rows of rollouts in a world, as a source of `dreamloom synthesize`."""

from pathlib import Path
from typing import Any

from dreamloom.datasets.store import open_dataset
from dreamloom.nn.threads import one_thread
from dreamloom.train.actors import policy_named
from dreamloom.train.generation import Made, fingerprint, kept_attrs, require_at_least_1
from dreamloom.train.rollouts import RULE, Rollouts
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.outcomes import judged, labeler_named
from dreamloom.worldmodels.parts import train_wall_s
from dreamloom.worldmodels.starts import DataStarts, PromptStarts, StartAt, Starts
from dreamloom.worldmodels.world import Sampling


def imagined(
    path: str,
    *,
    policy: str,
    seed: int,
    steps: int | None,
    batch_size: int,
    curate: str,
    quantile: float,
    starts: str | None = None,
    start_at: StartAt = "uniform",
    context: int | None = None,
    horizon: int = 32,
    temperature: float | None = None,
    outcomes: Path | None = None,
    rewards: str | None = None,
    penalty: float = 0.0,
) -> Made:
    """Rows of rollouts in a world; see `synthesize`."""
    if curate not in ("", RULE):
        raise ValueError(f"--curate {curate!r}: in a world only {RULE} can be asked for")
    require_at_least_1(horizon=horizon)
    world = judged(load_world(path, outcomes=outcomes), labeler=labeler_named(rewards) if rewards else None)
    first: Starts = PromptStarts(world.prompts) if starts is None else DataStarts(starts, world, at=start_at, length=context)
    source = Rollouts(
        world,
        first,
        policy_named(policy, world, first),
        seed=seed,
        horizon=horizon,
        batch_size=batch_size,
        sampling=Sampling(steps, temperature),
        penalty=penalty,
    )
    with one_thread():
        example = source.example()
        source.limit = source.limit_from_first_steps(quantile) if curate else None
    agent = getattr(source.policy, "agent", None)
    settings = {
        "model": [fingerprint(part) for part in source.parts],
        "policy": policy if agent is None else fingerprint(agent, agent.config),
        "starts": None if starts is None else {"path": Path(starts).name, "at": start_at, "frames": first.length},  # type: ignore[attr-defined]
        "horizon": horizon,
        "sampling": {"steps": steps, "temperature": temperature},
        "rewards": rewards,
        "penalty": penalty,
        "curate": {RULE: source.limit} if curate else {},
    }
    return Made(source, settings, _attrs_of_world(path, world, starts, policy, outcomes), example)


def _attrs_of_world(path: str, world: Any, starts: str | None, policy: str, outcomes: Path | None) -> dict[str, Any]:
    """Likewise for rollouts: attributes of the data that they start from, where they do.

    `world_levels` are those that the world was trained on; `world_wall_s` the seconds of its and the heads' training.
    """
    source: dict[str, Any] = {"checkpoint": path, "world": world.name, "acted": policy}
    cost = getattr(world, "train_wall_s", None)
    if cost is not None:
        cost += (train_wall_s(outcomes) or 0.0) if outcomes else 0.0
    source |= {"world_levels": getattr(world, "train_levels", []), "world_wall_s": cost}
    attrs: dict[str, Any] = {"game": world.game} if world.game else {}
    if starts is not None:
        with open_dataset(starts) as data:
            attrs = kept_attrs(data.attrs)
            source["real"] = {"path": starts, "rows": len(data), "source": data.attrs.get("source")}
    if world.action_names and not (policy == "data" and attrs.get("action_names")):
        attrs["action_names"] = list(world.action_names)
    return {**attrs, "fps": world.fps, "synthetic": True, "source": source}
