"""What one training step is made of, shared by `Upsampler.fit` and `dreamloom fit`: both end in the same weights."""

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


def adamw(parameters: Iterable[Tensor], lr: float = 3e-4) -> torch.optim.AdamW:
    """SynthER's optimizer."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)


def cosine(steps: int) -> Callable[[int], float]:
    """Factor of the learning rate by step: half a cosine from 1 to 0."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))


def batch_of_step(seed: int, step: int, batch_size: int, rows: int) -> Int64[Tensor, "b"]:
    """Numbers of the rows of a step, drawn with replacement: (seed, step) alone fixes them, so a resumed run repeats them."""
    return torch.from_numpy(np.random.default_rng([seed, step]).integers(0, rows, batch_size))


def generator_of_step(seed: int, step: int, device: torch.device, *, rank: int = 0) -> torch.Generator:
    """Source of a step's noise on one rank."""
    return torch.Generator(device).manual_seed(seed_of_step(seed, step, rank=rank))


def seed_of_step(seed: int, step: int, *, rank: int = 0) -> int:
    """What a step's noise on one rank is seeded with."""
    return seed + 1_000_003 * step + 500_009 * rank
