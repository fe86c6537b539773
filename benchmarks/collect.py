"""Recording Procgen to disk against the bare environment, in steps a second.

The bare arm steps the environments with random actions and drops what they show. The recording arms are
`dreamloom collect procgen` with the random and with the default policy, from making the file to its last byte on the
disk. The arms take turns; medians of the rounds are reported. A scripted agent dies more often than a random one and so
makes the environment build more levels: its ratio is counted against it.

    python benchmarks/collect.py --steps 128000 --rounds 5 --out collect.json
"""

import argparse
import inspect
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dreamloom.datasets.procgen import collect_procgen, make_procgen
from dreamloom.eval.provenance import publish

LEVELS = 10_000


def bare(game: str, steps: int, envs: int, threads: int, seed: int) -> float:
    """Steps a second of the environments alone, in segments as the recording makes them."""
    actions = np.random.default_rng(seed).integers(0, 15, (1000, envs))
    started, done = time.perf_counter(), 0
    while done < steps:
        env = make_procgen(
            envs, env_name=game, num_levels=LEVELS, distribution_mode="easy", rand_seed=seed + done, num_threads=threads
        )
        for action in actions[: (steps - done) // envs]:
            env.observe()
            env.act(action)
        env.observe()
        done += len(actions) * envs
    return steps / (time.perf_counter() - started)


def recorded(game: str, steps: int, envs: int, threads: int, seed: int, policy: str, folder: Path) -> float:
    """Steps a second of a recording."""
    out = folder / "recording.hdf5"
    started = time.perf_counter()
    collect_procgen(
        game=game, steps=steps, out=out, policy=policy, seed=seed, levels=f"0:{LEVELS}", num_envs=envs, num_threads=threads
    )
    rate = steps / (time.perf_counter() - started)
    out.unlink()
    return rate


def main() -> None:
    default = inspect.signature(collect_procgen).parameters["policy"].default
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="coinrun")
    parser.add_argument("--steps", type=int, default=128_000, help="of each arm in each round")
    parser.add_argument("--envs", type=int, default=64)
    parser.add_argument("--threads", type=int, default=4, help="that step the environments")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the recordings go; the system's temporary folder by default")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    plan = (args.game, args.steps, args.envs, args.threads)
    rates: dict[str, list[float]] = {"bare": [], "random": [], "default": []}
    bare(args.game, 2 * args.envs, args.envs, args.threads, 0)  # loads the pictures
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for seed in tqdm(range(args.rounds), desc="rounds"):
            rates["bare"].append(bare(*plan, seed))
            rates["random"].append(recorded(*plan, seed, "random", Path(folder)))
            rates["default"].append(recorded(*plan, seed, default, Path(folder)))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "benchmark": "collect",
        **{key: getattr(args, key) for key in ("game", "steps", "envs", "threads", "rounds")},
        "policy_default": default,
        "steps_per_s": {name: round(value) for name, value in medians.items()},
        "all_steps_per_s": {name: [round(value) for value in values] for name, values in rates.items()},
        "ratio": round(medians["random"] / medians["bare"], 3),
        "ratio_default_policy": round(medians["default"] / medians["bare"], 3),
    }
    publish(report, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
