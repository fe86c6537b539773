"""Long runs of a dataset's own actions, episode after episode, and the real frames that they led to."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from dreamloom.datasets.types import Clip
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.protocols.trial import Trial
from dreamloom.eval.steadiness import motion

# Frames of an episode that the latent action model looks at at once, and those before them that it may look back to.
_PART, _PAST = 64, 16


@dataclass(frozen=True)
class Piece:
    """A run of neighbouring frames of an episode.

    Attributes:
        first: row of its first frame.
        length: its frames, one more than its steps.
    """

    first: int
    length: int

    def rows(self, stride: int) -> slice:
        """The rows of its frames."""
        return slice(self.first, self.first + (self.length - 1) * stride + 1, stride)


@dataclass(frozen=True)
class Sequences:
    """What rollouts do, and what the real game showed.

    Attributes:
        test: the episodes they are from.
        pieces: of each rollout; the first begins with its prompt's last frame, the others are further episodes from the start.
        context: frames of a prompt.
        actions: (b, s), as the world takes them.
        moved: (b, s), whether something moved in these steps of the real game.
    """

    test: Episodes
    pieces: list[list[Piece]]
    context: int
    actions: Int[Tensor, "b s"]
    moved: Bool[Tensor, "b s"]

    def prompt(self, rows: Int[Tensor, "m"]) -> UInt8[Tensor, "m p c h w"]:
        """The real frames that some rollouts start from."""
        back = (self.context - 1) * self.test.stride
        firsts = [self.pieces[row][0].first - back for row in rows.tolist()]
        return torch.stack([_frames(self.test, Piece(first, self.context)) for first in firsts])

    def frames(self, rows: Int[Tensor, "m"]) -> UInt8[Tensor, "m s c h w"]:
        """The real frames after each step of some rollouts."""
        steps = self.actions.shape[1]
        runs = [torch.cat([_frames(self.test, piece)[1:] for piece in self.pieces[row]])[:steps] for row in rows.tolist()]
        return torch.stack(runs)


def draw_sequences(trial: Trial, count: int, steps: int) -> Sequences:
    """Rollouts that start in the midst of episodes, spread over them, and go on with others where one ends.

    Args:
        trial: the world, and the episodes to draw from.
        count: rollouts.
        steps: of each.
    """
    test, stride = trial.test, trial.test.stride
    lengths = (test.ends - test.starts - 1) // stride + 1
    random = np.random.default_rng((trial.seed, steps))
    starts, onward = np.flatnonzero(lengths > trial.context), np.flatnonzero(lengths > 1)
    pieces = []
    for episode in np.resize(random.permutation(starts), count):
        spare = int(lengths[episode]) - trial.context
        at = trial.context - 1 + int(random.integers(max(spare - steps, spare // 2) + 1))
        run = [Piece(int(test.starts[episode]) + at * stride, min(int(lengths[episode]) - at, steps + 1))]
        while sum(piece.length - 1 for piece in run) < steps:
            following = random.choice(onward)
            run.append(Piece(int(test.starts[following]), min(int(lengths[following]), steps + 1)))
        pieces.append(run)
    known = {piece: _steps(trial, piece) for piece in {piece for run in pieces for piece in run}}
    columns = [[torch.cat([known[piece][i] for piece in run])[:steps] for run in pieces] for i in (0, 1)]
    return Sequences(test, pieces, trial.context, torch.stack(columns[0]), torch.stack(columns[1]))


def _steps(trial: Trial, piece: Piece) -> tuple[Int[Tensor, "s"], Bool[Tensor, "s"]]:
    """The actions between a piece's frames, and whether something moved under them."""
    frames = _frames(trial.test, piece)[None]
    if trial.latent is None:
        assert trial.test.data.actions is not None
        taken = torch.from_numpy(trial.test.data.actions[piece.rows(trial.test.stride)])[None]
        return trial.actions(Clip(frames, taken))[0], motion(frames)[0]
    parts = []
    for begin in range(0, piece.length - 1, _PART):
        past = max(0, begin - _PAST)
        parts.append(trial.actions(Clip(frames[:, past : begin + _PART + 1], None))[0, begin - past :])
    return torch.cat(parts), motion(frames)[0]


def _frames(test: Episodes, piece: Piece) -> UInt8[Tensor, "t c h w"]:
    frames = torch.from_numpy(test.data.frames[piece.rows(test.stride)])
    return rearrange(frames, "t h w c -> t c h w").contiguous()
