"""Rows imagined in a world: short branches off real frames (Janner et al. 2019, MBPO) or whole episodes, under a policy.

A rollout is `horizon` steps and the frame that they end in, so that its rows hold every frame once and all of its transitions:
the last row only closes it, as D4RL has it. Rollout i of a shard depends on the seed, the shard's first row and i alone.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from dreamloom.train.actors import Batch, Policy
from dreamloom.train.generation import Shard
from dreamloom.worldmodels.starts import DataStarts, Starts
from dreamloom.worldmodels.world import Outcome, Sampling, select_states

RULE = "uncertainty"
_FIRST = 256  # steps from real frames that show how unsure the world is where it is at its best


@dataclass(frozen=True)
class Rollout:
    """Rows of one rollout, in order of time.

    Attributes:
        frames: (s, h, w, c) uint8.
        actions: (s, ...) as they are noted.
        rewards: (s,) float32.
        terminals: (s,) bool; only the last may be.
        unsure: (s,) float32, how unsure the world was of what followed; NaN where it does not tell.
        level: seed of the level that it started from; -1 where that is not known.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminals: np.ndarray
    unsure: np.ndarray
    level: int

    def __len__(self) -> int:
        return len(self.rewards)

    def first(self, count: int) -> "Rollout":
        """Its first rows."""
        columns = {name: x[:count] for name, x in vars(self).items() if name != "level"}
        return replace(self, **columns)

    def sure(self, limit: float) -> "Rollout":
        """What came before the world was less sure than the limit; the frame before that closes it."""
        wrong = np.flatnonzero(self.unsure > limit)
        if not len(wrong):
            return self
        kept = self.first(int(wrong[0]) + 1 if wrong[0] else 0)
        return replace(kept, terminals=np.zeros(len(kept), bool))


class Rollouts(nn.Module):
    """Rows of rollouts; a `dreamloom.train.generation.Source`.

    Args:
        world: any World.
        starts: of the rollouts.
        policy: who acts.
        seed: of the stream of rows.
        horizon: steps of a rollout.
        batch_size: rollouts that are stepped side by side.
        sampling: how frames are drawn.
        penalty: how much of its uncertainty is taken off a reward.
        limit: uncertainty above which a rollout is cut; None for no limit.
    """

    def __init__(
        self,
        world: Any,
        starts: Starts,
        policy: Policy,
        *,
        seed: int,
        horizon: int,
        batch_size: int,
        sampling: Sampling,
        penalty: float = 0.0,
        limit: float | None = None,
    ):
        super().__init__()
        self.world, self.starts, self.policy = world, starts, policy
        self.seed, self.horizon, self.batch_size, self.sampling = seed, horizon, batch_size, sampling
        self.penalty, self.limit = penalty, limit
        held = (getattr(world, "world", world), getattr(world, "outcomes", None), getattr(policy, "agent", None))
        self.parts = nn.ModuleList([part for part in held if isinstance(part, nn.Module)])  # which go to the device

    def shard(self, rows: range, workers: Executor, tell: Callable[[int], object]) -> Shard:
        """See `Source.shard`."""
        made: list[Rollout] = []
        have = 0
        while have < len(rows):
            mean = have / len(made) if made else self.horizon + 1
            first, count = len(made), ceil((len(rows) - have) / mean)
            batches = [range(i, min(i + self.batch_size, first + count)) for i in range(first, first + count, self.batch_size)]
            for part in workers.map(partial(self._roll, rows.start), batches):
                new = min(sum(map(len, part)), len(rows) - have)
                made, have = made + part, have + new
                tell(new)
        return self._shard(_cut(made, len(rows)))

    def example(self) -> int:
        """Bytes of a row; a first step shows early what does not fit."""
        (rollout,) = self._roll(-1, range(1), steps=1)
        return rollout.frames.nbytes + rollout.actions.nbytes + 14

    def limit_from_first_steps(self, quantile: float) -> float:
        """A limit that so large a share of first steps from real frames stays below.

        Raises:
            ValueError: the world does not tell how unsure it is.
        """
        parts = [range(i, min(i + self.batch_size, _FIRST)) for i in range(0, _FIRST, self.batch_size)]
        unsure = np.concatenate([self._roll(-1, part, steps=1)[i].unsure for part in parts for i in range(len(part))])
        if np.isnan(unsure).any():
            raise ValueError(f"--curate {RULE}: {self.world.name} does not tell how unsure it is")
        return float(f"{np.quantile(unsure, quantile):.6g}")

    @torch.inference_mode()  # which holds for one thread only
    def _roll(self, stream: int, numbers: range, steps: int | None = None) -> list[Rollout]:
        """Rollouts of some numbers, each from a source of randomness of its own."""
        steps = self.horizon + 1 if steps is None else steps
        generators = [_generator(self.seed, stream, number) for number in numbers]
        batch = self._batch(numbers, generators, steps)
        actor, state = self.policy.begin(batch), self.world.reset(batch.prompts)
        logs: list[list[tuple[Any, ...]]] = [[] for _ in numbers]
        playing, rewards = np.arange(len(numbers)), torch.zeros(len(numbers))
        for step in range(steps):
            mine = [generators[i] for i in playing]
            act = actor.act(state.frame, rewards, playing, mine)
            shown, noted = state.frame.permute(0, 2, 3, 1).cpu().numpy(), act.noted.cpu().numpy()
            state, outcome = self.world.step(state, act.taken, mine, self.sampling)
            told = _told(outcome, len(playing))
            for row, i in enumerate(playing):
                logs[i].append((shown[row], noted[row], *(column[row] for column in told)))
            goes_on = ~told[1] & (step + 1 < actor.limits[playing])
            if not goes_on.any():
                break
            rewards = torch.from_numpy(told[0][goes_on])
            if not goes_on.all():
                state = select_states(state, torch.from_numpy(np.flatnonzero(goes_on)))
            playing = playing[goes_on]
        return [self._rollout(log, int(row)) for log, row in zip(logs, batch.rows, strict=True)]

    def _batch(self, numbers: range, generators: Sequence[torch.Generator], steps: int) -> Batch:
        if isinstance(self.starts, DataStarts):
            rows = self.starts.rows(generators)
            return Batch(numbers, self.starts.frames(rows), rows, steps)
        prompts: UInt8[Tensor, "b t c h w"] = self.starts.draw(generators)
        return Batch(numbers, prompts, np.zeros(len(numbers), np.int64), steps)

    def _rollout(self, log: list[tuple[Any, ...]], row: int) -> Rollout:
        frames, actions, rewards, terminals, unsure = (np.stack(column) for column in zip(*log, strict=True))
        if self.penalty:
            rewards = rewards - np.float32(self.penalty) * unsure
        levels = getattr(self.starts, "levels", None)
        return Rollout(frames, actions, rewards, terminals, unsure, -1 if levels is None else int(levels[row]))

    def _shard(self, made: list[Rollout]) -> Shard:
        """The columns of rollouts, curated."""
        kept = made if self.limit is None else [rollout.sure(self.limit) for rollout in made]
        dropped = {} if self.limit is None else {RULE: sum(map(len, made)) - sum(map(len, kept))}
        columns = {
            name: np.concatenate([getattr(rollout, name) for rollout in kept])
            for name in ("frames", "actions", "rewards", "terminals", "unsure")
        }
        last = np.cumsum(np.array([len(rollout) for rollout in kept if len(rollout)], np.int64)) - 1
        timeouts = np.zeros(len(columns["rewards"]), bool)
        timeouts[last] = ~columns["terminals"][last]
        shard = {"observations": columns["frames"], "actions": columns["actions"], "rewards": columns["rewards"]}
        shard |= {"terminals": columns["terminals"], "timeouts": timeouts}
        if not np.isnan(columns["unsure"]).any():
            shard["infos/uncertainty"] = columns["unsure"]
        if getattr(self.starts, "levels", None) is not None:
            shard["infos/level_seed"] = np.concatenate([np.full(len(r), r.level, np.int32) for r in kept])
        return Shard(shard, dropped)


def _cut(made: list[Rollout], rows: int) -> list[Rollout]:
    """The first so many rows of rollouts, in their order."""
    ends = np.cumsum([len(rollout) for rollout in made])
    whole = int(np.searchsorted(ends, rows))
    begun = rows - (int(ends[whole - 1]) if whole else 0)
    return [*made[:whole], made[whole].first(begun)]


def _told(outcome: Outcome, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards, endings and uncertainties; 0, False and NaN where the world does not tell."""
    blank = (np.zeros(b, np.float32), np.zeros(b, bool), np.full(b, np.nan, np.float32))
    columns = (outcome.reward, outcome.terminal, outcome.uncertainty)
    rewards, terminals, unsure = (
        none if column is None else column.cpu().numpy() for column, none in zip(columns, blank, strict=True)
    )
    return rewards, terminals, unsure


def _generator(seed: int, stream: int, number: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, stream + 1, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) >> 1)
