"""SynthER online: SAC with many updates a step, on real rows alone and on real and upsampled rows, against plain SAC.

Three arms, the same Stable-Baselines3 SAC in each: one update a step; 20 updates a step; 20 updates a step with half of every
batch drawn from an upsampler that is fitted anew as the real rows grow. Writes a JSON with every evaluation, and a plot.

    python examples/online_synther.py --env InvertedDoublePendulum-v5 --steps 4000 --seeds 3 --out reports/online
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from matplotlib.figure import Figure
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from dreamloom.agents.online import UpsampledReplayBuffer
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.eval.provenance import provenance

ARMS = {"SAC, UTD 1": (1, False), "SAC, UTD 20": (20, False), "SAC, UTD 20, upsampled": (20, True)}


class Evaluations(BaseCallback):
    """Lets the policy act greedily in a second environment every so many steps."""

    def __init__(self, env: gymnasium.Env, every: int, episodes: int):
        super().__init__()
        self.env, self.every, self.episodes = env, every, episodes
        self.steps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            mean, _ = evaluate_policy(self.model, self.env, n_eval_episodes=self.episodes, warn=False)
            self.steps.append(self.num_timesteps)
            self.returns.append(float(np.mean(mean)))
        return True


def run(args: argparse.Namespace, updates: int, upsampled: bool, seed: int) -> dict[str, Any]:
    """One arm with one seed: its learning curve and its cost."""
    settings: dict[str, Any] = {}
    if upsampled:
        settings = {
            "replay_buffer_class": UpsampledReplayBuffer,
            "replay_buffer_kwargs": {
                "upsampler": Upsampler(width=256, next_observation="change"),
                "refit_every": args.refit_every,
                "fit_steps": args.fit_steps,
                "fit_lr": 1e-3,
                "synthetic_rows": args.synthetic_rows,
                "upsampler_seed": seed,
            },
        }
    model = SAC(
        "MlpPolicy",
        gymnasium.make(args.env),
        gradient_steps=updates,
        learning_starts=args.learning_starts,
        policy_kwargs={"net_arch": [args.width, args.width]},
        seed=seed,
        device=args.device,
        **settings,
    )
    curve = Evaluations(gymnasium.make(args.env), args.every, args.episodes)
    curve.env.reset(seed=10_000 + seed)
    began = time.perf_counter()
    model.learn(args.steps, callback=curve, progress_bar=False)
    return {"seed": seed, "steps": curve.steps, "returns": curve.returns, "wall_s": time.perf_counter() - began}


def plot(report: dict[str, Any]) -> Figure:
    """Mean return over environment steps; the band spans the seeds."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    panel = figure.subplots()
    for name, runs in report["arms"].items():
        curves = np.array([one["returns"] for one in runs])
        panel.plot(runs[0]["steps"], curves.mean(0), label=f"{name} ({np.mean([one['wall_s'] for one in runs]):.0f} s)")
        panel.fill_between(runs[0]["steps"], curves.min(0), curves.max(0), alpha=0.2)
    panel.set(xlabel="environment steps", ylabel="return", title=f"{report['env']}: mean and range of {report['seeds']} seeds")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def main() -> None:
    """Runs the arms, a seed at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="InvertedDoublePendulum-v5")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=128, help="of SAC's networks")
    parser.add_argument("--learning-starts", type=int, default=500)
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations")
    parser.add_argument("--episodes", type=int, default=5, help="of an evaluation")
    parser.add_argument("--refit-every", type=int, default=1000)
    parser.add_argument("--fit-steps", type=int, default=2000)
    parser.add_argument("--synthetic-rows", type=int, default=50_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for online.json and online.png")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    arms: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in range(args.seeds):
        for name, (updates, upsampled) in ARMS.items():
            arms[name].append(run(args, updates, upsampled, seed))
            print(
                f"seed {seed}, {name}: last return {arms[name][-1]['returns'][-1]:.0f}, {arms[name][-1]['wall_s']:.0f} s",
                flush=True,
            )
            report = {
                **{k: v for k, v in vars(args).items() if k != "out"},
                "arms": arms,
                **provenance(torch.device(args.device)),
            }
            (args.out / "online.json").write_text(json.dumps(report, indent=1) + "\n")
    plot(report).savefig(args.out / "online.png", dpi=120)


if __name__ == "__main__":
    main()
