"""Updates of TD3+BC and IQL beside d3rlpy's: HalfCheetah's shapes (17, 6), batch 256, two hidden layers of width 256.

An update is all of it: a batch is drawn from a buffer of 50,000 rows, the networks are stepped, the targets follow.
d3rlpy runs in an environment of its own, since it pins gymnasium: `--d3rlpy PYTHON` names one that has it, else uv makes one.
The arms take turns, round by round; figures are medians. One thread, CPU-seconds of the process that does the work (on an
idle machine these are seconds). `updates_per_s` of eight seeds counts the updates of every seed.

    python benchmarks/agents.py --rounds 9 --out benchmarks/agents.json
"""

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.datasets.types import Transitions
from dreamloom.eval.provenance import publish

ROWS, OBSERVATION, ACTION, BATCH, UPDATES = 50_000, 17, 6, 256, 40
ALGORITHMS: dict[str, type[Agent]] = {"td3_bc": TD3BC, "iql": IQL}
PEER = "2.8.1"
Arm = Callable[[], float]  # CPU-seconds of one update of one seed


def rows() -> Transitions:
    random = np.random.default_rng(0)
    observations, following = random.normal(size=(2, ROWS, OBSERVATION)).astype(np.float32)
    actions = random.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32)
    none = np.zeros(ROWS, bool)
    return Transitions(observations, actions, random.normal(size=ROWS).astype(np.float32), following, none, none)


def ours(kind: type[Agent], data: Transitions, seeds: int, precision: str) -> Arm:
    """`seeds` agents at once."""
    agent = kind(seeds=seeds, precision=precision)  # type: ignore[call-arg]
    agent.prepare(data)
    buffer = Buffer([data])

    def arm() -> float:
        updates = max(10, UPDATES // seeds)
        start = time.process_time()
        train(agent, buffer, updates=updates, batch_size=BATCH, progress=False)
        return (time.process_time() - start) / updates / seeds

    return arm


class Peer:
    """d3rlpy in a process of its own, which answers one request at a time."""

    def __init__(self, python: str | None, threads: int):
        command = [python] if python else ["uv", "run", "--no-project", "--with", f"d3rlpy=={PEER}", "python"]
        script = Path(__file__).with_name("agents_d3rlpy.py")
        self.process = subprocess.Popen(
            [*command, str(script), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.about = self.read().removeprefix("ready ")

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit("d3rlpy's process ended: is d3rlpy installed in that environment?")
        return line

    def arm(self, name: str) -> Arm:
        def arm() -> float:
            assert self.process.stdin is not None
            self.process.stdin.write(f"{name} {UPDATES}\n")
            self.process.stdin.flush()
            return float(self.read()) / UPDATES

        return arm


def compare(arms: dict[str, Arm], rounds: int, name: str) -> dict[str, dict[str, float]]:
    """Medians, after one turn of each that is not counted; speedups are medians of the rounds' own ratios."""
    for arm in arms.values():
        arm()
    turns = [{key: arm() for key, arm in arms.items()} for _ in trange(rounds, desc=name)]
    return {
        key: {
            "updates_per_s": round(1 / statistics.median(turn[key] for turn in turns), 1),
            "speedup": round(statistics.median(turn["d3rlpy"] / turn[key] for turn in turns), 2),
        }
        for key in arms
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--d3rlpy", help="Python of an environment with d3rlpy")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peer, data = Peer(args.d3rlpy, args.threads), rows()
    results = {}
    for name, kind in ALGORITHMS.items():
        arms = {"d3rlpy": peer.arm(name)}
        for seeds, words in ((1, "one_seed"), (8, "eight_seeds")):
            for precision in ("float32", "bfloat16"):
                arms[f"{words}_{precision}"] = ours(kind, data, seeds, precision)
        results[name] = compare(arms, args.rounds, name)
    assert peer.process.stdin is not None
    peer.process.stdin.close()
    peer.process.wait()
    report: dict[str, object] = {"benchmark": "agents", "unit": "updates a CPU-second", "rounds": args.rounds}
    publish({**report, "d3rlpy, torch": peer.about, "algorithms": results}, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
