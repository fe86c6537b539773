"""Who plays in a recording of Procgen, by what the user asked for."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from dreamloom.datasets.plans import Searched
from dreamloom.datasets.players import Players
from dreamloom.datasets.policies import Policy, parse_mixture, random, sticky
from dreamloom.datasets.scripted import scripted, stroll
from dreamloom.datasets.shards import sha256

_ACTIONS = 15  # of Procgen
_SEARCH_ROUNDS = 150


def choose_players(
    policy: str,
    game: str,
    plan: dict[str, int],
    *,
    agent: Path | None,
    quality: Any,
    train_steps: int | None,
    network: Any,
    device: str,
    search_rounds: int | None,
    search: dict[str, Any],
) -> tuple[Players, dict[str, Any]]:
    """Who plays, and the settings that tell of them.

    Args:
        policy: as the user wrote it.
        game: its name.
        plan: steps, num_envs and seed of the recording.
        agent: of policy ppo: that which plays and learns no more.
        quality: which of a folder of agents.
        train_steps: of an agent that learns.
        network: of an agent that learns.
        device: where an agent computes.
        search_rounds: of policy search, at the most in each level.
        search: what else a search is told.

    Raises:
        ValueError: an unknown policy, or settings of one that does not play.
    """
    makes_progress = partial(scripted, game=game)
    rounds = _SEARCH_ROUNDS if search_rounds is None else search_rounds
    searched = Searched(otherwise=makes_progress, rounds=rounds, **search)
    of_the_game: dict[str, Policy] = {"scripted": makes_progress, "stroll": stroll, "search": searched}
    learns = policy == "ppo" and agent is None
    told: dict[str, Any] = {}
    require_choice("network", network, Literal["impala", "nature"])
    if network != "impala" and not learns:
        raise ValueError(f"--network {network}: goes with --policy ppo without --agent, which has its own")
    if search_rounds is not None and search_rounds < 1:
        raise ValueError(f"--search-rounds {search_rounds}: must be at least 1")
    if train_steps is not None and not (learns and train_steps >= plan["steps"]):
        raise ValueError(f"--train-steps {train_steps}: goes with --policy ppo without --agent, and is at least --steps")
    if learns:
        from dreamloom.datasets.ppo_agents import Training

        training = Training(plan, train_steps=train_steps or plan["steps"], device=device, network=network)
        return training, training.settings
    if agent is not None:
        from dreamloom.datasets.ppo_agents import agent_files, frozen, named, notes

        policy, files = named(agent_files(agent, quality), policy)
        of_the_game |= {name: frozen(file, device=device) for name, file in files.items()}
        agents = [{**notes(file), "file": file.name, "sha256": sha256(file)} for file in files.values()]
        told = {"agent": agents[0], "device": device} if len(agents) == 1 else {"agents": agents, "device": device}
    mixture = parse_mixture(policy, {"random": random, "sticky": sticky, **of_the_game})
    if agent is not None and not any(name.startswith("ppo") for name in mixture.names):
        raise ValueError(f"--agent {agent}: goes with --policy ppo, not {policy!r}")
    if "search" in mixture.names:
        told["search_rounds"] = rounds
    elif search_rounds is not None:
        raise ValueError(f"--search-rounds {search_rounds}: goes with --policy search, not {policy!r}")
    return Players(mixture, plan["seed"], _ACTIONS), told


def require_choice(name: str, value: str, choices: Any) -> None:
    """Refuses a word that is none of a `Literal`'s.

    Raises:
        ValueError: it is none.
    """
    if value not in get_args(choices):
        raise ValueError(f"unknown {name} {value!r}: choose from {', '.join(get_args(choices))}")
