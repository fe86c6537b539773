"""Trains the heads that tell what a step earns and whether it ends the episode; rare rows are drawn often, and weigh less."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import MeanAbsoluteError, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
    BinaryPrecision,
    BinaryRecall,
)

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.store import open_dataset
from dreamloom.train.data import ClipData, StepLoader, batches_done
from dreamloom.train.tasks import Task, to_unit
from dreamloom.worldmodels.outcomes import Outcomes


class Step(NamedTuple):
    """Steps of a dataset.

    Attributes:
        frames: (b, t, c, h, w) uint8, the last one that which the action was taken at.
        actions: (b, ...), or None.
        rewards: (b,) what it earned, over all rows to the next frame.
        terminals: (b,) whether the episode ended before the next frame.
        weights: (b,) how much rarer the row is in the data than in the batch.
    """

    frames: Tensor
    actions: Tensor | None
    rewards: Tensor
    terminals: Tensor
    weights: Tensor


class Labels:
    """What the steps of a dataset earn, and which end their episode, at any stride.

    Args:
        path: the dataset.
        stride: rows from one frame to the next.
        ends: one-past-last rows of its episodes; None for the file's own.

    Raises:
        ValueError: the dataset has no rewards.
    """

    def __init__(self, path: Path, stride: int, ends: np.ndarray | None = None):
        with open_dataset(path) as data:
            if data.rewards is None:
                raise ValueError(f"{path}: holds no rewards (unlabelled video?)")
            rewards, ends = data.rewards[:].astype(np.float64), data.episodes[1] if ends is None else ends
            rewards[~np.isfinite(rewards)] = 0.0  # of rows in no window
            total, ended = np.append(0.0, rewards.cumsum()), np.append(0, data.terminals[:].cumsum())
        rows = np.arange(len(rewards))
        # The row behind the last episode, if it was left out, is in no window.
        stop = np.minimum(rows + stride, np.append(ends, len(rows))[np.searchsorted(ends, rows, side="right")])
        self.rewards = (total[stop] - total[rows]).astype(np.float32)
        self.terminals = ended[stop] > ended[rows]
        self.rewards[np.abs(self.rewards) < 1e-6] = 0.0  # of sums that cancel

    @property
    def rare(self) -> np.ndarray:
        """Which steps earn something or end the episode."""
        return (self.rewards != 0) | self.terminals


class StepBatches(Dataset):
    """Batch number `step` of a run, for one rank.

    Args:
        source: where frames come from.
        labels: of all rows.
        batch_size: of one rank.
        rare: share of each batch that is drawn among the steps that earn or end something.
        seed: of the run.
        rank: which part of the batch.
        world_size: of how many.
    """

    def __init__(
        self, source: ClipSource, labels: Labels, *, batch_size: int, rare: float, seed: int, rank: int, world_size: int
    ):
        self.source, self.labels, self.batch_size, self.seed = source, labels, batch_size, seed
        self.rank, self.world_size = rank, world_size
        windows, span = source.windows, (source.length - 1) * source.stride
        self.rows = np.concatenate([np.arange(n) + first for first, n in zip(windows.firsts, windows.counts, strict=True)])
        self.offsets = np.arange(-source.length + 1, 1) * source.stride
        self.rows += span
        often = labels.rare[self.rows]
        self.parts = [(part, share) for part, share in ((self.rows[often], rare), (self.rows[~often], 1 - rare)) if len(part)]

    def __getitem__(self, step: int) -> Step:
        random = np.random.default_rng((self.seed, step))
        total = self.batch_size * self.world_size
        counts = [total] if len(self.parts) == 1 else [round(total * self.parts[0][1]), 0]
        counts[-1] = total - sum(counts[:-1])
        drawn, weights = [], []
        for (part, _), count in zip(self.parts, counts, strict=True):
            drawn.append(part[random.integers(len(part), size=count)])
            weights.append(np.full(count, len(part) / len(self.rows) * total / max(count, 1)))
        mine = random.permutation(total)[self.rank :: self.world_size]
        return self.take(np.concatenate(drawn)[mine], np.concatenate(weights)[mine])

    def take(self, rows: np.ndarray, weights: np.ndarray) -> Step:
        """The steps that are taken at some rows."""
        clip = self.source.take(rows[:, None] + self.offsets)
        rewards, terminals = (torch.from_numpy(x[rows]) for x in (self.labels.rewards, self.labels.terminals))
        actions = None if clip.actions is None else clip.actions[:, -1]
        return Step(clip.frames, actions, rewards, terminals, torch.from_numpy(weights.astype(np.float32)))


class EveryRow(Dataset):
    """Batches of the held-out steps as they are, evenly spread where they are too many."""

    def __init__(self, batches: StepBatches, most: int):
        self.batches = batches
        self.rows = batches.rows[np.linspace(0, len(batches.rows) - 1, min(most, len(batches.rows))).astype(np.int64)]

    def __getitem__(self, number: int) -> Step:
        size = self.batches.batch_size
        rows = self.rows[number * size : (number + 1) * size]
        return self.batches.take(rows, np.ones(len(rows)))


class OutcomeData(ClipData):
    """Labelled steps of a dataset, and the frames before them.

    Args:
        path: dataset of frames with rewards (docs/data.md).
        length: frames that are looked at; as many as the model's.
        batch_size: steps a batch and rank.
        rare: share of a batch drawn among steps that earn something or end the episode.
        val_batches: batches of held-out steps, in their natural frequency.
        settings: further ones of `ClipData`: stride, seed, residence, val_fraction, steps_per_epoch, ...
    """

    def __init__(
        self,
        path: Path | str,
        *,
        length: int = 2,
        batch_size: int = 128,
        rare: float = 0.5,
        val_batches: int = 64,
        **settings: Any,
    ):
        super().__init__(path, length=length, batch_size=batch_size, val_batches=val_batches, **settings)
        if not 0 < rare < 1:
            raise ValueError(f"rare must lie in (0, 1), got {rare}")
        self.rare = rare

    def setup(self, stage: str) -> None:
        """Opens the file and reads the labels, once."""
        super().setup(stage)
        self.labels = Labels(self.path, self.stride, self.source.episodes[1] if self.source else None)

    def shares(self) -> tuple[float, float]:
        """Which share of the training steps earns something, and which ends the episode."""
        rows = self._batches(self.train_source).rows
        return float((self.labels.rewards[rows] != 0).mean()), float(self.labels.terminals[rows].mean())

    def train_dataloader(self) -> StepLoader:
        """An endless stream, at the place where the trainer is."""
        return StepLoader(self._batches(self.train_source), first=lambda: batches_done(self), length=self.steps_per_epoch)

    def val_dataloader(self) -> StepLoader | list:
        """Held-out steps; none where nothing is held out."""
        if not self.val_fraction:
            return []
        every = EveryRow(self._batches(self.val_source), self.val_batches * self.batch_size)
        return StepLoader(every, first=lambda: 0, length=-(-len(every.rows) // self.batch_size))

    def _batches(self, source: ClipSource) -> StepBatches:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        kept: dict[str, Any] = {"rare": self.rare, "seed": self.seed, "rank": rank, "world_size": world_size}
        return StepBatches(source, self.labels, batch_size=self.batch_size, **kept)


class OutcomesTask(Task):
    """Trains heads on labelled steps. Validation tells how well endings and rewards are foretold on held-out levels.

    `auroc` and `ap` (average precision) need no threshold, `precision` and `recall` are at a probability of one half, `ece` is
    the expected calibration error over 15 bins; `reward_mae` is the mean absolute error of the expected reward.

    Args:
        model: the heads.
    """

    def __init__(self, model: Outcomes, **kwargs: Any):
        super().__init__(model, **kwargs)
        scores: Any = {
            "auroc": BinaryAUROC(),
            "ap": BinaryAveragePrecision(),
            "precision": BinaryPrecision(),
            "recall": BinaryRecall(),
            "ece": BinaryCalibrationError(n_bins=15),
        }
        whole = MetricCollection(scores)
        self.ending, self.rewarded = (whole.clone(prefix=f"val/{name}_") for name in ("ending", "rewarded"))
        self.reward_mae = MeanAbsoluteError()

    def setup(self, stage: str) -> None:
        """Tells the heads how rare is what they look for."""
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if data.length != self.model.frames:
            raise ValueError(f"data.length is {data.length}, the model's encoder looks at {self.model.frames} frames")
        self.model.balance(*data.shares())

    def loss(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        return self.compute(to_unit(step.frames), step.actions, step.rewards, step.terminals, step.weights)

    def validation_step(self, batch: Step, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        told = self.model(to_unit(batch.frames), batch.actions)
        nothing = told.rewards.softmax(-1)[:, self.model.values == 0].squeeze(1)
        for scores, found, truth in (
            (self.ending, told.ending.sigmoid(), batch.terminals),
            (self.rewarded, (1 - nothing).clamp(0, 1), batch.rewards != 0),
        ):
            scores.update(found, truth.long())
            self.log_dict(scores, batch_size=1)
        self.reward_mae.update(self.model.mean_reward(told), batch.rewards)
        self.log("val/reward_mae", self.reward_mae, batch_size=1)
