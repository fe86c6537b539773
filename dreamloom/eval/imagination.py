"""`eval imagination`: does the return in a world rank policies as the real game does?

From the same moments of the game, kept with its state, every policy goes on for the same number of steps in the game and in
the world. What is compared is the undiscounted return of these steps, not that of whole episodes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dreamloom.datasets.atomic import atomic_path, require_folder
from dreamloom.datasets.policies import Mixture, Policy
from dreamloom.datasets.ppo_agents import frozen, notes
from dreamloom.datasets.procgen import FPS, parse_levels
from dreamloom.eval.branches import SPACE, Branches, dream_on, find_branches, games, play_on
from dreamloom.eval.plots import save_plot
from dreamloom.eval.provenance import provenance
from dreamloom.eval.ranking import plot, ranking, span, table
from dreamloom.eval.study_cells import claimed, note_settings, write_json
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.world import Sampling

LEAST = 3  # policies; fewer are no ranking


def eval_imagination(
    world: str,
    *,
    agents: Path,
    out: Path,
    outcomes: Path | None = None,
    levels: str | None = None,
    starts: int = 256,
    warmup: int = 100,
    horizon: int = 50,
    repeats: int = 2,
    context: int | None = None,
    steps: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> dict[str, Any]:
    """Ranks policies by their return in a world and in real Procgen: Spearman's correlation with a bootstrap interval.

    The agents take turns in playing the real game for some steps; there its state is kept. From these moments every agent,
    its actions drawn, goes on for `horizon` steps in the game, and in the world that sees the last frames. Returns are
    undiscounted, and cut where the episode ends or the world says so. Every agent's returns are kept in OUT/policies: a
    killed command goes on where it was, and the same command in a second terminal takes agents that the first has not begun.

    Args:
        world: of Procgen's own actions and all of its frames (data.stride 1): a folder, a checkpoint or a folder of runs.
        agents: folder that `dreamloom collect procgen --policy ppo` left beside its recording, OUT.agents.
        out: folder for metrics.json, report.md and ranking.png.
        outcomes: checkpoint of heads that tell rewards and endings; not needed where the world has some.
        levels: LO:HI to play on; those that the agents learned from by default.
        starts: moments, one of each game.
        warmup: most steps until a moment.
        horizon: steps from there.
        repeats: of each agent from each moment.
        context: frames that the world sees of each moment; as many as its prompts have by default.
        steps: of the world's sampler, a frame.
        temperature: of the world's sampler.
        seed: of the levels, the moments, the actions and the world.
        device: where world and agents compute; auto is a GPU if there is one.

    Example:
        dreamloom eval imagination runs/coinrun/diffusion_world --outcomes runs/coinrun/outcomes --agents data/coinrun.agents
            --out reports/imagination_coinrun
    """
    require_folder(out)
    if min(starts, horizon, repeats, warmup + 1) < 1:
        counts = f"{starts}, {horizon}, {repeats}, {warmup}"
        raise ValueError(f"--starts, --horizon and --repeats must be at least 1, --warmup 0, got {counts}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_world(world, device=device, outcomes=outcomes)
    told = _agents(agents)
    frames = max(1, model.prompts.shape[1]) if context is None else context
    settings: dict[str, Any] = {
        "world": world,
        "outcomes": outcomes and str(outcomes),
        "options": _options(model, told, levels),
    }
    settings |= {"starts": starts, "warmup": warmup, "horizon": horizon, "repeats": repeats, "context": frames, "seed": seed}
    settings |= {"sampling": {"steps": steps, "temperature": temperature}}
    note_settings(out / "settings.json", settings)
    policies = {name: frozen(agents / f"{name}.safetensors", device=device) for name in told}
    branches = _branches(out / "starts.npz", policies, settings)
    for name, policy in policies.items():
        with claimed(_path(out, name)) as mine:
            if mine and not _path(out, name).exists():
                print(f"agent {name}", flush=True)
                write_json(_path(out, name), _returns(model, branches, policy, settings))
    if missing := [name for name in told if not _path(out, name).exists()]:
        print(f"{len(missing)} agents are being played elsewhere; the process that ends last writes the report")
        return {}
    return _write(out, settings, told, torch.device(device))


def _path(out: Path, name: str) -> Path:
    return out / "policies" / f"{name}.json"


def _agents(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> what is known of an agent, in the order in which they learned."""
    found = {file.stem: notes(file) for file in sorted(folder.glob("*.safetensors"))}
    if len(found) < LEAST:
        raise ValueError(f"--agents {folder}: has {len(found)} agents; to rank them takes {LEAST} or more")
    return dict(sorted(found.items(), key=lambda pair: pair[1]["steps"]))


def _options(world: Any, agents: dict[str, dict[str, Any]], levels: str | None) -> dict[str, Any]:
    """Settings of the game, as the agents and the world know it."""
    told = next(iter(agents.values()))
    if getattr(world.action_space, "n", None) != SPACE.n or getattr(world, "latent_actions", None) is not None:
        raise ValueError(f"{world.name}: takes {world.action_space}; agents need a world of Procgen's own {SPACE.n} actions")
    if abs(world.fps - FPS) > 0.01:
        raise ValueError(f"{world.name}: has {world.fps:g} frames/s, the game {FPS:g}; train the world with data.stride 1")
    if world.game not in (None, told["game"]):
        raise ValueError(f"{world.name}: is a world of {world.game}, the agents play {told['game']}")
    low, high = parse_levels(levels or told["levels"])
    options = {"env_name": told["game"], "start_level": low, "num_levels": high - low, "distribution_mode": told["mode"]}
    return {**getattr(world, "game_options", {}), **options}


def _branches(path: Path, policies: Mapping[str, Policy], settings: Mapping[str, Any]) -> Branches:
    """The moments, found once; the agents take turns in playing until there."""
    with claimed(path, wait=True):
        if not path.exists():
            random = np.random.default_rng(settings["seed"])
            env = games(settings["starts"], settings["options"], settings["seed"])
            mixture = Mixture(list(policies), list(policies.values()), np.full(len(policies), 1 / len(policies)))
            act, _ = mixture.start(env.num, SPACE, random)
            find_branches(env, act, frames=settings["context"], warmup=settings["warmup"], random=random).save(path)
            env.close()
    return Branches.load(path)


def _returns(world: Any, branches: Branches, policy: Policy, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An agent's mean returns from each moment, in the game and in the world."""
    first, horizon = settings["seed"] + 1, settings["horizon"]
    seeds, sampling = range(first, first + settings["repeats"]), Sampling(**settings["sampling"])
    env = games(len(branches.states), settings["options"], settings["seed"])
    real = [play_on(env, branches.states, policy, horizon=horizon, seed=seed) for seed in seeds]
    env.close()
    imagined = [dream_on(world, branches.frames, policy, horizon=horizon, seed=seed, sampling=sampling) for seed in seeds]
    return {"real": np.mean(real, 0).tolist(), "imagined": np.mean(imagined, 0).tolist()}


def _write(out: Path, settings: dict[str, Any], told: dict[str, dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """`metrics.json`, `report.md` and `ranking.png`."""
    kept = [json.loads(_path(out, name).read_text()) for name in told]
    real, imagined = (np.array([one[kind] for one in kept], float) for kind in ("real", "imagined"))
    found = ranking(real, imagined, settings["seed"])
    policies = []
    for (name, known), *tables in zip(told.items(), real, imagined, strict=True):
        means = [{"mean": float(x.mean()), "error": float(x.std() / len(x) ** 0.5)} for x in tables]
        policies.append({"name": name, **known, "real": means[0], "imagined": means[1]})
    metrics = {"settings": settings, **found, "policies": policies, **provenance(device)}
    returns = {"real": real.tolist(), "imagined": imagined.tolist()}
    game = settings["options"]["env_name"]
    save_plot(out / "ranking.png", plot(policies, found, f"{game}, {settings['horizon']} steps"))
    text = _report(metrics)
    for file, content in (("report.md", text), ("metrics.json", json.dumps({**metrics, "returns": returns}) + "\n")):
        with atomic_path(out / file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text)
    return metrics


def _report(metrics: dict[str, Any]) -> str:
    settings, machine = metrics["settings"], metrics["machine"]
    options = settings["options"]
    levels = f"{options['start_level']}:{options['start_level'] + options['num_levels']}"
    lines = [
        f"# Does imagination rank policies? {options['env_name']}",
        "",
        f"Spearman's rank correlation of real and imagined returns: **{span(metrics)}**, 95% bootstrap over policies and "
        f"starts; of these {len(metrics['policies'])} policies, over starts alone: {span(metrics, 'fixed_low', 'fixed_high')}. "
        f"The policy that imagination would choose really earns {metrics['regret']:.2f} less than the best.",
        "",
        f"Compared: the undiscounted return of {settings['horizon']} steps in the real game and in `{settings['world']}`, from "
        f"the same {settings['starts']} moments on levels {levels}, reached by these policies in up to {settings['warmup']} "
        f"steps; {settings['repeats']} times each, actions drawn, until the episode's end. "
        f"± is the standard error over moments. {machine['cpu']}, {machine['device']}, torch {machine['torch']}; "
        f"commit {metrics['commit']}.",
        "",
        *table(metrics["policies"]),
        "",
        "![real against imagined returns](ranking.png)",
        "",
    ]
    return "\n".join(lines)
