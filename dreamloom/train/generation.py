"""The Lightning side of bulk generation: every rank makes whole shards; nothing is gathered, nothing is exchanged.

A shard depends on the model, the seed and its number alone. On a CPU its batches are computed side by side, each by one
thread: a matrix product that is split over threads may be summed in another order, and then the bytes would depend on how
many cores a rank has.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dreamloom.datasets.shards import INDEX, Plan, missing_shards, write_shard
from dreamloom.nn.threads import one_thread

Columns = dict[str, np.ndarray]


class Shard(NamedTuple):
    """What was generated for a shard: the columns of the rows that were kept, and how many each rule of curation dropped."""

    columns: Columns
    dropped: dict[str, int]


class Source(Protocol):
    """What rows come from: a module, so that it is moved to the device."""

    def shard(self, rows: range, workers: Executor, tell: Callable[[int], object]) -> Shard:
        """The rows of a shard, which depend on nothing but the source and their numbers.

        Args:
            rows: their numbers in the endless stream.
            workers: compute side by side, each in one thread.
            tell: hears of how many rows more there are.
        """


class Made(NamedTuple):
    """What rows come from, all that they depend on, what their files say of themselves, and the bytes of a row."""

    source: Any
    settings: dict[str, Any]
    attrs: dict[str, Any]
    row_bytes: int


class ShardGenerator(LightningModule):
    """Generates the shards of a folder that are missing, each rank its share of them.

    Args:
        source: what rows come from, see `Source`.
        folder: of the shards.
        plan: which rows are in which shard.
    """

    # There may be fewer missing shards than ranks.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, source: Any, folder: Path, plan: Plan):
        super().__init__()
        self.source, self.folder, self.plan = source, folder, plan

    def predict_dataloader(self) -> DataLoader:
        """Numbers of the shards that this rank makes.

        Lightning lets no rank go on before all have been here, so all find the same shards missing.
        """
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        mine = missing_shards(self.folder, self.plan)[rank::ranks]
        rows = sum(len(self.plan.rows_of(shard)) for shard in mine)
        title = str(self.folder) if ranks == 1 else f"{self.folder}, rank 0 of {ranks}"
        self.progress = tqdm(total=rows, unit=" rows", unit_scale=True, desc=title, disable=bool(rank) or not rows)
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    def predict_step(self, shard: int) -> Shard:
        """All rows of a shard."""
        with self._pool() as pool:
            return self.source.shard(self.plan.rows_of(shard), pool, self.progress.update)

    def on_predict_end(self) -> None:
        self.progress.close()

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """As many workers as this rank has cores, each of which computes alone; for a GPU just one."""
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        with one_thread(), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C nobody wants the other batches


class ShardWriter(BasePredictionWriter):
    """Writes each shard with its manifest as soon as it is generated.

    Args:
        folder: of the shards.
        attrs: attributes of every file.
        notes: what every manifest holds.
    """

    def __init__(self, folder: Path, attrs: Mapping[str, Any], notes: Mapping[str, Any]):
        super().__init__(write_interval="batch")
        self.folder, self.attrs, self.notes = folder, attrs, notes

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Any, batch: Any, *_: Any
    ) -> None:
        """Writes the shard whose number is the batch."""
        self.folder.joinpath(INDEX).unlink(missing_ok=True)  # it speaks of another set of shards
        columns, dropped = prediction
        generated = len(columns["observations"]) + sum(dropped.values())
        write_shard(self.folder, batch, columns, self.attrs, generated=generated, dropped=dropped, **self.notes)


def fingerprint(module: nn.Module, config: Any = None) -> str:
    """sha256 of a module's weights, and of what else it is made of."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.cpu().numpy().tobytes())
        else:  # of agents: seed and updates
            total.update(f"{name} {json.dumps(value, sort_keys=True)}".encode())
    return total.hexdigest()


def require_at_least_1(**numbers: int) -> None:
    """Options that count something.

    Raises:
        ValueError: one is less than 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number}: expected at least 1")


def kept_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of real data that hold of rows made after it, too."""
    return {name: value for name, value in attrs.items() if name not in ("format", "format_version", "source")}
