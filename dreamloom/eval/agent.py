"""Returns of trained agents in the real environment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm import tqdm

from dreamloom.agents.agent import Agent, load_agent
from dreamloom.datasets.atomic import atomic_path, require_folder
from dreamloom.datasets.scores import normalized_score, score_constants
from dreamloom.datasets.shown import PlainSteps
from dreamloom.eval.acting import Acting
from dreamloom.eval.fidelity.dynamics import quiet_mujoco
from dreamloom.eval.plots import save_plot
from dreamloom.eval.procgen import play_procgen, trained_on
from dreamloom.eval.provenance import provenance


def evaluate_agent(
    agent: Agent, env_id: str, *, episodes: int = 10, seed: int = 0, progress: bool = False
) -> Float[np.ndarray, "s episodes"]:
    """Undiscounted returns of whole episodes under the greedy policies.

    Every agent plays the same episodes: episode j starts from `reset(seed=seed + j)`. All agents act in one batch.

    Args:
        agent: prepared agents.
        env_id: a Gymnasium environment whose observations are vectors, or dictionaries or tuples of numbers, and whose actions
            are continuous or discrete.
        episodes: an agent.
        seed: of the first episode.
        progress: whether a bar is shown.

    Raises:
        ValueError: the environment does not exist or does not fit the agents.
    """
    with quiet_mujoco():
        envs = _environments(env_id, agent.seeds * episodes)
        acting = Acting(agent, env_id, envs.single_observation_space, envs.single_action_space)
        return _play(acting, envs, seed, progress)


def _play(acting: Acting, envs: SyncVectorEnv, seed: int, progress: bool) -> Float[np.ndarray, "s episodes"]:
    agent = acting.agent
    episodes = envs.num_envs // agent.seeds
    player, playing = agent.player(episodes), torch.arange(episodes, device=agent.device)
    earned = torch.zeros(agent.seeds, episodes, device=agent.device)
    observations, _ = envs.reset(seed=[seed + j for _ in range(agent.seeds) for j in range(episodes)])
    returns, running = np.zeros(envs.num_envs), np.ones(envs.num_envs, bool)
    limit = envs.spec.max_episode_steps if envs.spec else None
    with tqdm(total=limit, desc="steps of an episode", disable=not progress) as bar:
        while running.any():
            actions = player(acting.observed(observations, envs.num_envs), earned, playing)
            observations, rewards, terminations, truncations, _ = envs.step(acting.taken(actions))
            earned = torch.from_numpy(rewards.astype(np.float32)).to(agent.device).view(agent.seeds, episodes)
            # A finished environment resets itself at its next step and plays on; that no longer counts.
            returns += rewards * running
            running &= ~(terminations | truncations)
            bar.update()
    envs.close()
    return returns.reshape(agent.seeds, episodes)


def eval_agent(
    run: str,
    *,
    env: str,
    out: Path = Path("reports/agent"),
    episodes: int = 20,
    seed: int = 1000,
    levels: str | None = None,
    heldout: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> dict[str, Any]:
    """Plays the real environment with trained agents and reports returns and normalised scores.

    The score is the last one: the policy at the end of training, no checkpoint is selected. An agent's return is the mean of
    its episodes; the interval is Student's t interval of the mean over agents (seeds), at 95%. Scores are normalised by the
    constants that D4RL publishes, or DGRL for Procgen, where these have the environment. In Procgen the settings are those of
    the recording that the agents were trained on; `heldout` levels are played too, and the gap between the two is reported.

    Args:
        run: folder of a run of `dreamloom fit`, or its checkpoint.
        env: Gymnasium environment, e.g. HalfCheetah-v5, or a game of Procgen, e.g. procgen:coinrun.
        out: folder for metrics.json and returns.png.
        episodes: episodes of each agent.
        seed: of the first episode's start.
        levels: of Procgen, LO:HI or DGRL's train, validation or test; by default those that the agents were trained on.
        heldout: other levels, which are compared with them.
        device: where the policies run; auto is a GPU if there is one.

    Examples:
        dreamloom eval agent runs/agents/td3_bc/version_0 --env HalfCheetah-v5 --episodes 20 --out reports/td3_bc
        dreamloom eval agent runs/pixels/coinrun/cql --env procgen:coinrun --levels train --heldout test --out reports/cql
    """
    require_folder(out)
    if episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {episodes}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    agent = load_agent(run).to(device)
    if env.startswith("procgen:"):
        metrics, returns = _in_procgen(agent, run, env, levels, heldout, episodes, seed)
    elif levels or heldout:
        raise ValueError(f"--levels and --heldout are for procgen:GAME, not for {env}")
    else:
        returns = evaluate_agent(agent, env, episodes=episodes, seed=seed, progress=True)
        metrics = summary(agent, env, returns)
    metrics |= {"episode_seed": seed, **provenance(agent.device)}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    save_plot(out / "returns.png", plot_returns(agent, env, returns))
    print(table(metrics))
    print(f"wrote {out}/metrics.json and returns.png")
    return metrics


def _in_procgen(
    agent: Agent, run: str, env: str, levels: str | None, heldout: str | None, episodes: int, seed: int
) -> tuple[dict[str, Any], Float[np.ndarray, "s episodes"]]:
    """Metrics of one set of levels or two, and the returns of all episodes."""
    recorded, options = trained_on(run)
    levels = levels or recorded
    if levels is None:
        raise ValueError(f"{run} does not say on which levels it was trained: --levels LO:HI does")
    settings: dict[str, Any] = {"episodes": episodes, "seed": seed, "options": options, "progress": True}
    returns = play_procgen(agent, env.removeprefix("procgen:"), levels, **settings)
    metrics = {**summary(agent, env, returns), "levels": levels, "settings": options}
    if heldout is None:
        return metrics, returns
    others = play_procgen(agent, env.removeprefix("procgen:"), heldout, **settings)
    metrics["heldout"] = {**summary(agent, env, others), "levels": heldout}
    metrics["gap"] = interval(returns.mean(1) - others.mean(1))
    return metrics, np.concatenate([returns, others], 1)


def summary(agent: Agent, env_id: str, returns: Float[np.ndarray, "s episodes"]) -> dict[str, Any]:
    """What `metrics.json` says of the returns: of all agents together, and of each."""
    metrics: dict[str, Any] = {
        "env": env_id,
        "agent": type(agent).__name__,
        "checkpoint": "last",
        "updates": agent.updates,
        "seeds": [agent.seed + i for i in range(agent.seeds)],
        "episodes": returns.shape[1],
        "return": interval(returns.mean(1)),
        "returns": returns.tolist(),
    }
    if score_constants(env_id):
        scores = np.asarray(normalized_score(env_id, returns.mean(1)))
        metrics |= {"score": interval(scores), "scores": scores.tolist()}
    return metrics


def interval(values: Sequence[float] | Float[np.ndarray, "s"]) -> dict[str, float | None]:
    """Mean over seeds and Student's t interval at 95%; one seed has none."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(metrics: dict[str, Any]) -> str:
    """Rows of text: the mean over agents, then each agent."""
    scored = "score" in metrics
    title = f"{metrics['agent']} after {metrics['updates']} updates (last score), {metrics['env']}"
    lines = [title + (f", levels {metrics['levels']}" if "levels" in metrics else "")]
    lines += ["", "| seed | episodes | return | normalised |", "|-|-|-|-|"]
    for i, seed in enumerate(metrics["seeds"]):
        score = f"{metrics['scores'][i]:.1f}" if scored else "-"
        lines.append(f"| {seed} | {metrics['episodes']} | {np.mean(metrics['returns'][i]):.1f} | {score} |")
    score = _span(metrics["score"]) if scored else "-"
    lines.append(
        f"| mean, 95% interval | {metrics['episodes'] * len(metrics['seeds'])} | {_span(metrics['return'])} | {score} |"
    )
    if "heldout" in metrics:
        lines += ["", table(metrics["heldout"]), "", f"gap: {_span(metrics['gap'])}"]
    return "\n".join(lines)


def plot_returns(agent: Agent, env_id: str, returns: Float[np.ndarray, "s episodes"]) -> Figure:
    """Every episode a dot, every agent's mean a line."""
    figure = Figure(figsize=(1.6 + 0.6 * max(4, len(returns)), 3.8), layout="constrained")
    panel = figure.subplots()
    for i, episodes in enumerate(returns):
        panel.scatter(np.full(len(episodes), i), episodes, s=12, alpha=0.5, color="#1f77b4")
        panel.hlines(episodes.mean(), i - 0.3, i + 0.3, color="#d62728")
    panel.set_xticks(range(len(returns)), [str(agent.seed + i) for i in range(len(returns))])
    panel.set(xlabel="seed", ylabel="return of an episode", title=f"{type(agent).__name__}, {env_id}")
    panel.grid(alpha=0.3, axis="y")
    return figure


def _environments(env_id: str, count: int) -> SyncVectorEnv:
    try:
        envs = gym.make_vec(env_id, num_envs=count, vectorization_mode="sync", wrappers=[PlainSteps])
    except gym.error.Error as error:
        raise ValueError(f"environment {env_id!r}: {error}") from error
    assert isinstance(envs, SyncVectorEnv)
    return envs


def _span(values: dict[str, Any]) -> str:
    if values["low"] is None:
        return f"{values['mean']:.1f} (one seed: no interval)"
    return f"{values['mean']:.1f} [{values['low']:.1f}, {values['high']:.1f}]"
