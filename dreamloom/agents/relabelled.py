"""Frames under labels that are not their actions: what a labeler made of them, each seed its own, on rows of its own."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from dreamloom.agents.frames import FrameBuffer, PixelBatch


class Relabelled(FrameBuffer):
    """The frames of a buffer, kept once, under other labels.

    Args:
        frames: what is labelled.
        labels: of each seed and row.
        rows: of each seed, the rows that are drawn.
        count: how many labels there are.
    """

    def __init__(self, frames: FrameBuffer, labels: Int[Tensor, "s n"], rows: Sequence[Int[Tensor, "m"]], count: int):
        vars(self).update(vars(frames))
        self.labels, self.drawn, self.action_size = labels, list(rows), count

    def sample(self, batch_size: int, generators: Sequence[torch.Generator], *, ahead: bool = True) -> PixelBatch:
        """As `FrameBuffer.sample`, from each seed's own rows, with its own labels in the place of actions."""
        pairs = zip(self.drawn, generators, strict=True)
        rows = torch.stack([own[torch.randint(len(own), (batch_size,), generator=g, device=own.device)] for own, g in pairs])
        return self.take(rows, ahead=ahead)._replace(actions=self.labels.gather(1, rows))
