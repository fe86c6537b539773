"""Training steps and sampling of the upsampler, beside a plain re-statement of the published method at the same width.

Both train on batches of 256 rows of 41 columns (HalfCheetah), resident in memory. The plain sampler is the published one: 128
steps of stochastic Heun, 255 calls, float32, noise from torch's generator, all rows in one batch like ours. The arms take
turns, round by round; figures are medians of CPU-seconds on one thread (on an idle machine these are seconds).

    python benchmarks/upsample.py --rounds 7 --out benchmarks/upsample.json
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import trange

from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.solvers import SDEDPMSolver, Solver, StochasticHeun
from dreamloom.diffusion.training import adamw
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.eval.provenance import publish

BATCH = 256
DRAWN = {256: 1024, 1024: 128}  # rows drawn at a width; at 1024 a row of 255 calls takes a tenth of a second
SOLVERS: dict[str, Solver] = {
    "stochastic_heun_255": StochasticHeun(128),
    "sde_dpm_32": SDEDPMSolver(32),
    "sde_dpm_16": SDEDPMSolver(16),
}
Arm = Callable[[], object]


class PlainBlock(nn.Module):
    """One residual block."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(torch.relu(x))


class Plain(nn.Module):
    """The published denoiser, loss and sampler, written down with nothing shared: no code of dreamloom's."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(8))
        self.time = nn.Sequential(nn.Linear(17, 128), nn.SiLU(), nn.Linear(128, 128))
        self.project = nn.Linear(size, 128)
        self.body = nn.Sequential(
            nn.Linear(128, width), *(PlainBlock(width) for _ in range(6)), nn.ReLU(), nn.Linear(width, size)
        )

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        label = sigma.log() / 4
        phase = 2 * math.pi * label[:, None] * self.frequencies
        embedded = self.time(torch.cat([label[:, None], phase.sin(), phase.cos()], 1))
        s = sigma[:, None]
        total = (s**2 + 1).sqrt()
        return x / total**2 + s / total * self.body(self.project(x / total) + embedded)

    def loss(self, x: Tensor) -> Tensor:
        sigma = (torch.randn(len(x)) * 1.2 - 1.2).exp()
        denoised = self.denoise(x + sigma[:, None] * torch.randn_like(x), sigma)
        return (((denoised - x) ** 2).mean(1) * (sigma**2 + 1) / sigma**2).mean()

    @torch.no_grad()
    def sample(self, rows: int, size: int, steps: int = 128) -> Tensor:
        ramp = torch.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), steps) ** 7
        sigmas = [*ramp.tolist(), 0.0]
        x = sigmas[0] * torch.randn(rows, size)
        for now, after in itertools.pairwise(sigmas):
            gamma = min(80 / steps, math.sqrt(2) - 1) if 0.05 <= now <= 50 else 0.0
            raised = now * (1 + gamma)
            x = x + math.sqrt(raised**2 - now**2) * 1.003 * torch.randn_like(x)
            slope = (x - self.denoise(x, torch.full((rows,), raised))) / raised
            ahead = x + (after - raised) * slope
            if after:
                again = (ahead - self.denoise(ahead, torch.full((rows,), after))) / after
                ahead = x + (after - raised) * (slope + again) / 2
            x = ahead
        return x


def data() -> Transitions:
    random = np.random.default_rng(0)
    observations, following = random.normal(size=(2, 20_000, 17)).astype(np.float32)
    actions, rewards = random.uniform(-1, 1, (20_000, 6)).astype(np.float32), random.normal(size=20_000).astype(np.float32)
    never = np.zeros(20_000, bool)
    return Transitions(observations, actions, rewards, following, never, never)


def stepped(parameters: list[Tensor], optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Arm:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def arms(width: int, rows: Transitions) -> dict[str, tuple[Arm, int]]:
    """Arm -> what to time, and rows that it makes or trains on."""
    torch.manual_seed(0)
    found: dict[str, tuple[Arm, int]] = {}
    drawn = DRAWN.get(width, 128)
    model = Upsampler(width=width)
    batch = model.prepare(rows).take(torch.randint(len(rows), (BATCH,)))
    plain = Plain(batch.values.shape[1], width)
    theirs = list(plain.parameters())
    # As published: torch's default, unfused AdamW.
    optimizer = torch.optim.AdamW(theirs, lr=3e-4, betas=(0.9, 0.99), weight_decay=0.0)
    found["train_plain"] = stepped(theirs, optimizer, lambda: plain.loss(batch.values)), BATCH
    found["sample_plain_255"] = (lambda: plain.sample(drawn, batch.values.shape[1])), drawn
    for precision in ("float32", "bfloat16"):
        ours = Upsampler(width=width, precision=precision)
        ours.prepare(rows)
        ours.train()
        weights = list(ours.network.parameters())
        found[f"train_{precision}"] = stepped(weights, adamw(weights), lambda ours=ours: ours.loss(batch)[0]), BATCH
        for name, solver in SOLVERS.items():
            found[f"sample_{precision}_{name}"] = (lambda o=ours, s=solver: o.sample(drawn, solver=s)), drawn
    return found


def timed(arm: Arm) -> float:
    """CPU-seconds of one call."""
    began = time.process_time()
    arm()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows, report = data(), {}
    for width in args.widths:
        every = arms(width, rows)
        times: dict[str, list[float]] = {name: [] for name in every}
        for number in trange(args.rounds + 1, desc=f"width {width}"):
            for name, (arm, _) in every.items():
                # Where 255 calls take seconds, fewer rounds are enough.
                if number and (width < 512 or number <= 3 or name.startswith("train")):
                    times[name].append(timed(arm))
                elif not number and name.startswith("train"):
                    timed(arm)
        medians = {name: statistics.median(some) for name, some in times.items()}
        report[f"width_{width}"] = {
            "train_steps_per_s": {
                n.removeprefix("train_"): round(1 / s, 1) for n, s in medians.items() if n.startswith("train")
            },
            "rows_per_s": {
                n.removeprefix("sample_"): round(every[n][1] / s, 1) for n, s in medians.items() if n.startswith("sample")
            },
        }
    publish({"benchmark": "upsample", "rounds": args.rounds, "batch": BATCH, **report}, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
