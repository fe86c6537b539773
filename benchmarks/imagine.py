"""Steps a second of imagined environments: copies of a world stepped in one batch, against the same copies one by one.

The bundled CoinRun world at its own settings, random actions, rollouts of 64 steps from its prompts. What is timed is
`env.step` of n copies: once of one `ImaginedVectorEnv` of n, and once of n environments of one copy each. The two take turns,
round by round, after a step of each that is not counted; figures are steps of copies over the medians of CPU-seconds of the
process (on an idle machine these are seconds), or of seconds on a GPU. `load` is the machine's load average at the beginning.

    python benchmarks/imagine.py --rounds 5 --out benchmarks/imagine.json
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dreamloom.eval.provenance import publish
from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.imagined import ImaginedVectorEnv

HORIZON = 64


def arms(world: object, num_envs: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of so many copies, together and one by one."""
    random = np.random.default_rng(0)
    together = ImaginedVectorEnv(num_envs, world=world, horizon=HORIZON)
    alone = [ImaginedVectorEnv(1, world=world, horizon=HORIZON) for _ in range(num_envs)]
    together.reset(seed=0)
    for seed, env in enumerate(alone):
        env.reset(seed=seed)
    count = int(together.single_action_space.n)  # type: ignore[attr-defined]

    def batch() -> None:
        together.step(random.integers(count, size=num_envs))

    def one_by_one() -> None:
        for env in alone:
            env.step(random.integers(count, size=1))

    return batch, one_by_one


def timed(step: Callable[[], None], device: torch.device) -> float:
    """CPU-seconds of a step, or seconds on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()  # frames come back to the CPU, so that a GPU's work is done
    return clock() - start


def compare(world: object, num_envs: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Steps a second of both ways, taking turns."""
    batch, one_by_one = arms(world, num_envs)
    batch(), one_by_one()
    times = [(timed(batch, device), timed(one_by_one, device)) for _ in tqdm(range(rounds), desc=f"{num_envs} copies")]
    together, alone = (num_envs / statistics.median(column) for column in zip(*times, strict=True))
    return {"steps_per_s": round(together, 2), "one_by_one_per_s": round(alone, 2), "speedup": round(together / alone, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="coinrun")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, load = torch.device(args.device), os.getloadavg()[0]
    world = load_world(args.world, device=device)
    report = {
        "benchmark": "imagine",
        "unit": "steps of copies a CPU-second" if device.type == "cpu" else "steps of copies a second",
        "world": world.name,
        "horizon": HORIZON,
        "rounds": args.rounds,
        "load": round(load, 1),
        "num_envs": {str(n): compare(world, n, args.rounds, device) for n in args.num_envs},
    }
    publish(report, args.out, device)


if __name__ == "__main__":
    main()
