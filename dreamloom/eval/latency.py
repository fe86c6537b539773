"""How long a frame takes, from the action to the pixels."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from dreamloom.worldmodels.world import Sampling, World

SIDE_BY_SIDE = 16  # worlds that are stepped in one batch to tell how many frames a second they make together


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """`p50` and `p95` in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50": float(p50), "p95": float(p95)}


def measure(step: Callable[[], object], device: torch.device, *, repeats: int, warmup: int = 2) -> dict[str, float]:
    """Times a call, after a few that are not counted; on a GPU its work is waited for."""
    seconds = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
    return percentiles(seconds)


def step_latency(
    world: World, prompt: torch.Tensor, *, default: Sampling, steps: Sequence[int], repeats: int
) -> dict[str, object]:
    """Latency of one world's `step`, from action to uint8 frame, with the past as long as it gets in play.

    Args:
        world: the world.
        prompt: (1, t, c, h, w) uint8 to start from; the window is filled before the clock starts.
        default: sampling whose figures stand at the top.
        steps: refinement steps to measure beside it.
        repeats: frames timed for each.

    Returns:
        `p50` and `p95` (ms) of the default, `by_steps`, and `side_by_side`: how many frames a second a batch of worlds makes.
    """
    state = world.reset(prompt)

    def timed(sampling: Sampling) -> dict[str, float]:
        return measure(lambda: world.step(state, 0, torch.Generator().manual_seed(0), sampling), world.device, repeats=repeats)

    many = world.reset(prompt.expand(SIDE_BY_SIDE, -1, -1, -1, -1))
    generators = [torch.Generator().manual_seed(i) for i in range(SIDE_BY_SIDE)]
    batch = measure(lambda: world.step(many, 0, generators, default), world.device, repeats=5)
    by_steps = {str(n): timed(Sampling(n, default.temperature)) for n in tqdm(steps, desc="latency", leave=False)}
    side_by_side = {"worlds": SIDE_BY_SIDE, "frames_per_s": 1000 * SIDE_BY_SIDE / batch["p50"]}
    return {**timed(default), "by_steps": by_steps, "side_by_side": side_by_side}
