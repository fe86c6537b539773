"""Feeds the trainer with clips: an endless stream whose place is the trainer's own count of batches."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from dreamloom.datasets.clips import ClipSource, Residence
from dreamloom.datasets.finite import Nonfinite
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.types import Clip


class ClipBatches(Dataset):
    """Batch number `step` of a run, for one rank: a map-style dataset, so that any number of workers gives the same."""

    def __init__(self, source: ClipSource, *, seed: int, batch_size: int, rank: int, world_size: int):
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Clip:
        return self.source.sample(self.seed, step, self.batch_size, rank=self.rank, world_size=self.world_size)


class StepLoader:
    """Batches of a run from `first()` on, `length` of them to an epoch.

    `first` is asked when the first batch is fetched, not when the iterator is made: only then has the trainer restored
    its counters from a checkpoint. Nothing else is state, so a resumed run sees the batches of an uninterrupted one.
    """

    def __init__(self, batches: Dataset, *, first: Callable[[], int], length: int, num_workers: int = 0, pin: bool = False):
        self.batches, self.first, self.length = batches, first, length
        self.num_workers, self.pin = num_workers, pin

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        first = self.first()
        steps = range(first, first + self.length)
        yield from DataLoader(self.batches, batch_size=None, sampler=steps, num_workers=self.num_workers, pin_memory=self.pin)

    def state_dict(self) -> dict[str, Any]:
        """Empty: tells the trainer that it may resume within an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class ClipData(L.LightningDataModule):
    """Clips of a dataset file for training and validation.

    Args:
        path: HDF5 file with pixel observations (docs/data.md).
        length: frames of a clip.
        batch_size: clips a batch and rank.
        stride: rows from one frame to the next.
        seed: of the order of training clips.
        residence: where frames live: on the device, in RAM or on disk; "auto" chooses by size.
        num_workers: reading processes; worth having for compressed files on disk only.
        val_fraction: share of the levels (without levels: of the episodes) held out for validation; 0 for none.
        val_batches: batches of the fixed validation set.
        steps_per_epoch: batches that Lightning calls an epoch; the trainer's max_steps bounds the run.
        nonfinite: whether rows with NaN or infinite actions or rewards are refused or dropped, and episodes cut there.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        length: int = 16,
        batch_size: int = 16,
        stride: int = 1,
        seed: int = 0,
        residence: Residence = "auto",
        num_workers: int = 0,
        val_fraction: float = 0.05,
        val_batches: int = 8,
        steps_per_epoch: int = 1000,
        nonfinite: Nonfinite = "refuse",
    ):
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {val_fraction}")
        self.path, self.length, self.batch_size, self.stride = Path(path), length, batch_size, stride
        self.seed, self.residence, self.num_workers = seed, residence, num_workers
        self.val_fraction, self.val_batches, self.steps_per_epoch = val_fraction, val_batches, steps_per_epoch
        self.nonfinite = nonfinite
        self.source: ClipSource | None = None
        self.levels: set[str] = set()

    def setup(self, stage: str) -> None:
        """Opens the file and loads what is to be resident, once."""
        if self.source is not None:
            return
        trainer = self.trainer
        assert trainer is not None
        self.source = ClipSource(
            self.path,
            length=self.length,
            stride=self.stride,
            residence=self.residence,
            device=trainer.strategy.root_device,
            processes=trainer.num_devices,
            nonfinite=self.nonfinite,
        )
        for line in self.source.left_out:
            tell(line)
        if self.num_workers and self.source.residence == "device":
            warnings.warn(f"num_workers={self.num_workers} is ignored: the frames are on the device already", stacklevel=2)
        self.levels |= recorded_levels(self.path)
        self.train_source = self.val_source = self.source
        if self.val_fraction:
            self.train_source, self.val_source = self.source.split(self.val_fraction)

    def state_dict(self) -> dict[str, Any]:
        """The levels trained on, kept in checkpoints: a bundle needs them to tell held-out levels from others."""
        return {"levels": sorted(self.levels)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that goes on with another file was trained on the levels of both."""
        self.levels |= set(state_dict["levels"])

    def train_dataloader(self) -> StepLoader:
        """An endless stream, at the place where the trainer is."""
        return self._loader(self.train_source, self.seed, lambda: batches_done(self), self.steps_per_epoch)

    def val_dataloader(self) -> StepLoader | list:
        """The same batches at every call and for every seed; none where nothing is held out."""
        if not self.val_fraction:
            return []
        return self._loader(self.val_source, 0, lambda: 0, self.val_batches)

    def _loader(self, source: ClipSource, seed: int, first: Callable[[], int], length: int) -> StepLoader:
        trainer = self.trainer
        assert trainer is not None
        rank, world_size = trainer.global_rank, trainer.world_size
        batches = ClipBatches(source, seed=seed, batch_size=self.batch_size, rank=rank, world_size=world_size)
        on_device = source.residence == "device"
        pin = trainer.strategy.root_device.type == "cuda" and not on_device
        workers = 0 if on_device else self.num_workers
        return StepLoader(batches, first=first, length=length, num_workers=workers, pin=pin)


@rank_zero_only
def tell(line: str) -> None:
    """Says what becomes of the data, once for all ranks, beside what a run prints of its progress."""
    print(line, file=sys.stderr)


def recorded_levels(path: Path) -> set[str]:
    """The range LO:HI of a dataset's levels: the one that it was recorded from, else that of the levels in it, if any."""
    with open_dataset(path) as data:
        source, seeds = data.attrs.get("source"), data.infos.get("level_seed")
        told = str(source.get("levels")) if isinstance(source, dict) else ""
        if re.fullmatch(r"\d+:\d+", told):
            return {told}
        return set() if seeds is None or not len(seeds) else {f"{seeds[:].min()}:{seeds[:].max() + 1}"}


def batches_done(data: L.LightningDataModule) -> int:
    """Training batches that the trainer of this data has behind it, over all of a resumed run."""
    # Not global_step: that counts optimizer steps, which accumulation and manual optimisation make fewer or more.
    assert data.trainer is not None
    return data.trainer.fit_loop.epoch_loop.batch_progress.total.completed
