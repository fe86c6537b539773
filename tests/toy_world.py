"""Two worlds small enough to be learned in seconds: a square that moves as its action says, as pixels and as tokens."""

import torch
from torch import Tensor

MOVES = torch.tensor([[0, -1], [0, 1], [-1, 0], [1, 0]])  # left, right, up, down
GRID = 4


def square_clips(b: int, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clips (b t 3 8 8) of a square that moves by its own size on a torus, and the directions (b t-1) that moved it."""
    actions = torch.randint(4, (b, t - 1), generator=generator)
    start = torch.randint(GRID, (b, 1, 2), generator=generator)
    place = torch.cat([start, start + MOVES[actions].cumsum(1)], 1) % GRID
    cells = torch.nn.functional.one_hot(place[..., 0] * GRID + place[..., 1], GRID * GRID).reshape(b, t, 1, GRID, GRID)
    return cells.float().repeat_interleave(2, -1).repeat_interleave(2, -2).expand(b, t, 3, 8, 8).contiguous(), actions


def counter_clips(b: int, t: int, generator: torch.Generator, *, n: int = 4, codes: int = 6) -> tuple[Tensor, Tensor]:
    """Tokens (b t n) of a counter that action a turns by a, each token at an offset of its own, and the actions (b t-1)."""
    actions = torch.randint(3, (b, t - 1), generator=generator)
    start = torch.randint(codes, (b, 1), generator=generator)
    count = torch.cat([start, start + actions.cumsum(1)], 1)
    return (count[..., None] + torch.arange(n)) % codes, actions
