"""Do TD3+BC and IQL reach the returns of d3rlpy's, on the same recording with the same hyperparameters?

Both train on the whole recording from the same number of seeds, and their last policies play the same episodes of the real
environment. d3rlpy's IQL has no schedule, so ours is trained without the cosine too. `overlap` says whether the 95% intervals
(Student's t over seeds) meet. Slow: it is not part of the tests.

    python benchmarks/reference_returns.py data/cheetah_top.hdf5 --env HalfCheetah-v5 --updates 5000 --seeds 3
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval.agent import evaluate_agent, interval
from dreamloom.eval.provenance import publish

PEER = "2.8.1"
EPISODE_SEED = 10_000


def ours(name: str, data: Transitions, updates: int, seeds: int) -> Agent:
    agent: Agent = TD3BC(seeds=seeds) if name == "td3_bc" else IQL(seeds=seeds, cosine=False)
    agent.prepare(data)
    train(agent, Buffer([data]), updates=updates, seed=0)
    return agent


class Peers(Agent):
    """d3rlpy's policies, one a seed; they normalise observations themselves."""

    def __init__(self, folder: str, seeds: int, observation_size: int, action_size: int):
        super().__init__(seeds=seeds, normalize=False)
        self.policies = [torch.jit.load(f"{folder}/{seed}.pt") for seed in range(seeds)]
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("action_low", torch.zeros(action_size))

    @torch.no_grad()
    def act(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.stack([policy(rows) for policy, rows in zip(self.policies, observations, strict=True)])


def peers(args: argparse.Namespace, name: str, data: Transitions, folder: Path) -> Agent:
    command = [args.d3rlpy] if args.d3rlpy else ["uv", "run", "--no-project", "--with", f"d3rlpy=={PEER}", "python"]
    script = Path(__file__).with_name("reference_d3rlpy.py")
    words = [str(script), str(args.recording), name, str(args.updates), "0", str(args.seeds), str(folder)]
    subprocess.run([*command, *words], check=True, stderr=subprocess.DEVNULL)
    return Peers(str(folder), args.seeds, data.observations.shape[1], data.actions.shape[1])


def compared(args: argparse.Namespace, name: str, data: Transitions) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        agents = {
            "dreamloom": ours(name, data, args.updates, args.seeds),
            "d3rlpy": peers(args, name, data, Path(folder)),
        }
    returns = {who: evaluate_agent(a, args.env, episodes=args.episodes, seed=EPISODE_SEED) for who, a in agents.items()}
    spans = {who: interval(values.mean(1)) for who, values in returns.items()}
    low, high = (max(s["low"] or 0 for s in spans.values()), min(s["high"] or 0 for s in spans.values()))
    return {"returns": {who: values.tolist() for who, values in returns.items()}, **spans, "overlap": low <= high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=4, help="at least 2")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--d3rlpy", help="Python of an environment with d3rlpy")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = load_transitions(args.recording)
    settings = {key: getattr(args, key) for key in ("env", "updates", "seeds", "episodes")}
    results = {name: compared(args, name, data) for name in ("td3_bc", "iql")}
    publish({"benchmark": "reference_returns", **settings, "algorithms": results}, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
