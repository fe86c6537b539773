"""Noise that belongs to rows: the noise of row i of stream `seed` is the same however rows are batched or shared out.

Philox is a block cipher in counter mode (Salmon et al. 2011): its key is (seed, step), and row i owns the counters from
i * blocks to (i + 1) * blocks, so any row can be drawn without those before it.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

WORDS = 4  # 64-bit words of one Philox block


class RowNoise:
    """Standard normal noise for rows start to start + rows of stream `seed`: `noise(step)` is (rows, size) float32.

    Args:
        seed: of the stream, 0 or more.
        start: first row.
        rows: number of rows.
        size: columns of a row.
        device: where the noise is wanted; it is drawn on the CPU.
    """

    def __init__(self, seed: int, start: int, rows: int, size: int, *, device: torch.device | str = "cpu"):
        if seed < 0 or start < 0 or rows < 0:
            raise ValueError(f"seed, start and number of rows must be 0 or more, got {seed}, {start}, {rows}")
        self.seed, self.start, self.rows, self.size, self.device = seed, start, rows, size, torch.device(device)

    def __call__(self, step: int) -> Float[Tensor, "rows size"]:
        """Noise of a step; different steps are independent."""
        words = random_words(self.seed, step, self.start, self.rows, blocks=math.ceil(self.size / (2 * WORDS)))
        return box_muller(words)[:, : self.size].to(self.device)


def random_words(seed: int, step: int, start: int, rows: int, *, blocks: int) -> np.ndarray:
    """(rows, 4 * blocks) uniform 64-bit words that belong to rows start to start + rows."""
    cipher = np.random.Philox(key=np.array([seed, step], np.uint64))
    cipher.advance(start * blocks)
    return cipher.random_raw(rows * blocks * WORDS).reshape(rows, blocks * WORDS)


def box_muller(words: np.ndarray) -> Tensor:
    """(n, w) 64-bit words to (n, 2 w) standard normals (Box and Muller 1958); each word's halves are radius and angle."""
    halves = words.view(np.uint32).reshape(*words.shape, 2)
    # The half avoids ln 0; the least uniform, 2^-33, is a radius of 6.8.
    uniform = (torch.from_numpy(halves.astype(np.float32)) + 0.5) * 2.0**-32
    radius = (-2 * uniform[..., 0].log()).sqrt_()
    angle = uniform[..., 1] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
