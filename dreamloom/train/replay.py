"""Trains an upsampler of transitions: its task, and the rows of a dataset, resident on the device."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils.data import Dataset

from dreamloom.datasets.finite import Nonfinite
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.training import adamw, batch_of_step, generator_of_step
from dreamloom.diffusion.upsampler import Batch, Upsampler
from dreamloom.train.data import StepLoader, batches_done, tell
from dreamloom.train.tasks import Task


class RowNumbers(Dataset):
    """Batch number `step` of a run, for one rank: which rows it holds."""

    def __init__(self, rows: np.ndarray, *, seed: int, batch_size: int, rank: int, world_size: int):
        self.rows, self.seed, self.batch_size = torch.from_numpy(rows), seed, batch_size
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Tensor:
        places = batch_of_step(self.seed, step, self.batch_size * self.world_size, len(self.rows))
        return self.rows[places[self.rank :: self.world_size]]


class TransitionData(L.LightningDataModule):
    """Transitions of a dataset, for training and validation.

    Args:
        path: whatever holds transitions: an HDF5 file, a folder of shards, an .npz, minari:NAME or d4rl:NAME (docs/data.md).
        batch_size: rows a step and rank.
        seed: of the order of training rows.
        limit: read no more than the first so many rows.
        val_fraction: share of the rows held out for validation; 0 for none.
        val_batches: batches of the fixed validation set.
        steps_per_epoch: batches that Lightning calls an epoch; the trainer's max_steps bounds the run.
        nonfinite: whether rows with NaN or infinite numbers are refused or dropped.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        batch_size: int = 256,
        seed: int = 0,
        limit: int | None = None,
        val_fraction: float = 0.05,
        val_batches: int = 8,
        steps_per_epoch: int = 1000,
        nonfinite: Nonfinite = "refuse",
    ):
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
        self.path, self.batch_size, self.seed, self.limit = path, batch_size, seed, limit
        self.val_fraction, self.val_batches, self.steps_per_epoch = val_fraction, val_batches, steps_per_epoch
        self.nonfinite = nonfinite
        self.transitions: Transitions | None = None
        self.attrs: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Reads the rows, once."""
        if self.transitions is not None:
            return
        with open_dataset(self.path) as data:
            self.attrs = data.attrs
            self.transitions = load_transitions(data, limit=self.limit, nonfinite=self.nonfinite, tell=tell)
        # The same rows are held out whatever the seed, so runs can be compared.
        order = np.random.default_rng(0).permutation(len(self.transitions))
        held_out = round(self.val_fraction * len(order))
        self.val_rows, self.train_rows = order[:held_out], np.sort(order[held_out:])

    def state_dict(self) -> dict[str, Any]:
        """Which data it was, kept in checkpoints: generated rows say what they are made after."""
        assert self.transitions is not None
        return {"path": str(self.path), "rows": len(self.transitions), "attrs": self.attrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""

    def train_dataloader(self) -> StepLoader:
        """An endless stream of row numbers, at the place where the trainer is."""
        return StepLoader(
            self._numbers(self.train_rows, self.seed), first=lambda: batches_done(self), length=self.steps_per_epoch
        )

    def val_dataloader(self) -> StepLoader | list:
        """The same batches at every call and for every seed; none where nothing is held out."""
        if not len(self.val_rows):
            return []
        return StepLoader(self._numbers(self.val_rows, 0), first=lambda: 0, length=self.val_batches)

    def _numbers(self, rows: np.ndarray, seed: int) -> RowNumbers:
        trainer = self.trainer
        assert trainer is not None
        rank, world_size = trainer.global_rank, trainer.world_size
        return RowNumbers(rows, seed=seed, batch_size=self.batch_size, rank=rank, world_size=world_size)


class UpsamplerTask(Task):
    """Trains an upsampler with SynthER's settings: AdamW, a cosine down to 0, averaged weights.

    Args:
        model: the upsampler; the columns of the data decide the rest of its shape.
        optimizer: from parameters to an optimizer.
        warmup_steps: steps of linear warm-up.
        final_lr: share of the learning rate that is left at the end of the cosine decay.
    """

    model: Upsampler

    def __init__(
        self,
        model: Upsampler,
        *,
        optimizer: OptimizerCallable = lambda p: adamw(p),
        warmup_steps: int = 0,
        final_lr: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(model, optimizer=optimizer, warmup_steps=warmup_steps, final_lr=final_lr, **kwargs)
        self.rows: Batch | None = None

    def setup(self, stage: str) -> None:
        """Gives the model its columns and statistics, and keeps the encoded rows."""
        if self.rows is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.rows = self.model.prepare(data.transitions, seed=self.seed)

    def on_fit_start(self) -> None:
        """Puts the rows where the model is by now."""
        super().on_fit_start()
        assert self.rows is not None
        self.rows = Batch(*(column.to(self.device) for column in self.rows))

    def loss(self, numbers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Loss on the rows with these numbers; validation's noise is the same each time."""
        assert self.rows is not None
        step = self.global_step if self.training else 0
        generator = generator_of_step(self.seed, step, self.device, rank=self.global_rank)
        return self.compute(self.rows.take(numbers), generator)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then the averaged weights follow: before any checkpoint of this step is written."""
        super().optimizer_step(*args, **kwargs)
        self.model.update_average(self.global_step + 1)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run is resumed on the data that it began with."""
        before, now = (config["init_args"]["rows"] for config in (checkpoint["model_config"], self.model.config))
        if before != now:
            raise ValueError(f"the checkpoint was trained on rows of {before['init_args']}, the data has {now['init_args']}")
