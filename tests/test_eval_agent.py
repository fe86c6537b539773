"""Returns in the real environment: whole episodes, counted once, the same whether agents play alone or together."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.cli import main
from dreamloom.datasets.types import Transitions
from dreamloom.eval.agent import evaluate_agent, interval, summary, table


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained(env_id: str, seeds: int = 2) -> Agent:
    """Agents of random weights for an environment."""
    env = gym.make(env_id)
    random = np.random.default_rng(0)
    (o,), space = env.observation_space.shape, env.action_space
    rows = random.normal(0, 2, (2, 50, o)).astype(np.float32)
    actions = random.uniform(space.low, space.high, (50, *space.shape)).astype(np.float32)
    none = np.zeros(50, bool)
    agent = TD3BC(seeds=seeds, width=16)
    agent.prepare(Transitions(rows[0], actions, np.zeros(50, np.float32), rows[1], none, none))
    env.close()
    return agent


def played(agent: Agent, i: int, env_id: str, seed: int) -> float:
    """One episode of agent i, step by step, without vectors."""
    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    total, done = 0.0, False
    while not done:
        rows = torch.from_numpy(observation.astype(np.float32)).expand(agent.seeds, 1, -1)
        action = agent.act(rows)[i, 0].numpy().clip(env.action_space.low, env.action_space.high)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, done = total + float(reward), terminated or truncated
    env.close()
    return total


def checkpoint(agent: Agent, path: Path) -> Path:
    weights = {f"model.{name}": value for name, value in agent.state_dict().items()}
    torch.save({"model_config": agent.config, "state_dict": weights}, path)
    return path


# Pendulum's episodes are all of 200 steps; Hopper's end when it falls, each at another step.
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Hopper-v5"])
def test_returns_are_those_of_single_episodes(env_id):
    if env_id == "Hopper-v5":
        pytest.importorskip("mujoco")
    agent = untrained(env_id)
    returns = evaluate_agent(agent, env_id, episodes=3, seed=5)
    assert returns.shape == (2, 3)
    expected = [[played(agent, i, env_id, 5 + j) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(returns, expected, rtol=1e-3)


def test_verb_writes_its_report(tmp_path, capsys):
    path = checkpoint(untrained("Pendulum-v1"), tmp_path / "last.ckpt")
    out = tmp_path / "report"
    words = ["eval", "agent", str(path), "--env", "Pendulum-v1", "--episodes", "2", "--out", str(out), "--device", "cpu"]
    assert main(words) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert np.shape(metrics["returns"]) == (2, 2)
    assert metrics["return"]["mean"] == pytest.approx(np.mean(metrics["returns"]))
    assert metrics["checkpoint"] == "last"
    assert metrics["seeds"] == [0, 1]
    assert "score" not in metrics, "D4RL has no constants for Pendulum"
    assert (out / "returns.png").stat().st_size > 1000
    assert "last score" in capsys.readouterr().out


def test_scores_are_normalised_where_constants_are_published():
    agent = untrained("Pendulum-v1")
    metrics = summary(agent, "HalfCheetah-v5", np.array([[-280.178953], [12135.0]]))
    assert metrics["scores"] == pytest.approx([0, 100])
    assert metrics["score"]["mean"] == pytest.approx(50)
    assert "| mean, 95% interval | 2 |" in table(metrics)


def test_interval_is_students():
    values = interval([1.0, 2.0, 3.0])
    assert values["mean"] == 2
    assert values["high"] - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-5)
    assert interval([7.0]) == {"mean": 7, "low": None, "high": None}


@pytest.mark.parametrize(
    ("env_id", "said"),
    [("NoSuchThing-v0", "NoSuchThing-v0"), ("CartPole-v1", "trained on observations")],
)
def test_environment_that_does_not_fit_is_refused(env_id, said):
    with pytest.raises(ValueError, match=said):
        evaluate_agent(untrained("Pendulum-v1"), env_id, episodes=1)


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    path = checkpoint(untrained("Pendulum-v1"), tmp_path / "last.ckpt")
    words = ["eval", "agent", str(path), "--env", "Pendulum-v1", "--out", str(tmp_path / "report"), "--episodes", "0"]
    assert main(words) == 2
    assert "--episodes must be at least 1" in capsys.readouterr().err
    words[2] = str(tmp_path / "none.ckpt")
    words[-1] = "1"
    assert main(words) == 2
    assert "no checkpoint at" in capsys.readouterr().err
