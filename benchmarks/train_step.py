"""One training step of tokenizer, latent action model and dynamics, and how much of it is matrix products.

Forward, backward and AdamW on one clip of 16 frames, 64x64, patch 4 (256 tokens a frame), width 128, 4 heads, 4 layers
(in the encoder and in the decoder where there are both), 1024 codes, 6 actions. The arms take turns, round by round;
medians of the rounds are reported, in seconds and in CPU-seconds of the process. `dynamics_masked_past` makes one pass
over the masked clip, as peers do; `dynamics` also runs the clean clip, which masked frames then see as their past.

    python benchmarks/train_step.py --threads 1 --rounds 10 --out train_step.json
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from dreamloom.eval.provenance import publish
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions

FRAMES, WIDTH, HEADS, DEPTH, CODES, ACTIONS = 16, 128, 4, 4, 1024, 6
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
Step = Callable[[], None]


def optimised(model: nn.Module, loss: Callable[[], tuple[Tensor, object]]) -> Step:
    """One step of AdamW on a fixed batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.9), weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss()[0].backward()
        optimizer.step()

    return step


def arms() -> dict[str, Step]:
    """Each model and its batch of one clip."""
    torch.manual_seed(0)
    sizes = {"size": 64, "patch": 4, "width": WIDTH, "heads": HEADS, "encoder_depth": DEPTH, "decoder_depth": DEPTH}
    frames = torch.rand(1, FRAMES, 3, 64, 64)
    tokens, actions = torch.randint(CODES, (1, FRAMES, 256)), torch.randint(ACTIONS, (1, FRAMES - 1))
    tokenizer = Tokenizer(VQ(WIDTH, CODES), **sizes)
    latent_actions = LatentActions(VQ(WIDTH, ACTIONS), **sizes)
    clean = Dynamics(CODES, 256, ACTIONS, width=WIDTH, depth=DEPTH, heads=HEADS, past="clean")
    masked = Dynamics(CODES, 256, ACTIONS, width=WIDTH, depth=DEPTH, heads=HEADS, past="masked")
    return {
        "tokenizer": optimised(tokenizer, lambda: tokenizer.loss(frames)),
        "latent_actions": optimised(latent_actions, lambda: latent_actions.loss(frames)),
        "dynamics": optimised(clean, lambda: clean.loss(tokens, actions)),
        "dynamics_masked_past": optimised(masked, lambda: masked.loss(tokens, actions)),
    }


def timed(step: Step) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def shares(step: Step) -> dict[str, float]:
    """Share of the operators' own time that matrix products take, and fused attention (products and softmax in one)."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    attention = sum(spent for key, spent in own.items() if "scaled_dot_product" in key)
    products = sum(own.get(key, 0) for key in PRODUCTS)
    total = sum(own.values())
    return {"matrix_products": round(products / total, 3), "attention": round(attention / total, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    steps = arms()
    share = {name: shares(step) for name, step in steps.items()}  # also warms up
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        for name, step in steps.items():
            times[name].append(timed(step))
    report = {
        "benchmark": "train_step",
        "rounds": args.rounds,
        "seconds": {name: round(statistics.median(wall for wall, _ in rows), 4) for name, rows in times.items()},
        "cpu_seconds": {name: round(statistics.median(cpu for _, cpu in rows), 4) for name, rows in times.items()},
        "share": share,
    }
    publish(report, args.out, torch.device("cpu"))


if __name__ == "__main__":
    main()
