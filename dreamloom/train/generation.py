"""The Lightning side of bulk generation: every rank makes whole shards; nothing is gathered, nothing is exchanged.

A shard depends on the model, the seed and its number alone. On a CPU its batches are computed side by side, each by one
thread: a matrix product that is split over threads may be summed in another order, and then the bytes would depend on how
many cores a rank has.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader
from tqdm import tqdm

from dreamloom.datasets.shards import INDEX, Plan, missing_shards, write_shard
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.curation import Rule, RuleName, curate
from dreamloom.diffusion.upsampler import Upsampler


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside it torch splits no operation over threads, so that results do not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Shard(NamedTuple):
    """What was generated for a shard: the rows that were kept, and how many each rule of curation dropped."""

    data: Transitions
    dropped: dict[RuleName, int]


class ShardGenerator(LightningModule):
    """Generates the shards of a folder that are missing, each rank its share of them.

    Args:
        upsampler: the trained model.
        folder: of the shards.
        plan: which rows are in which shard.
        batch_size: rows that are generated at once.
        rules: of curation.
        options: further arguments of `Upsampler.sample`.
    """

    # There may be fewer missing shards than ranks.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        upsampler: Upsampler,
        folder: Path,
        plan: Plan,
        *,
        batch_size: int,
        rules: Mapping[RuleName, Rule],
        options: Mapping[str, Any],
    ):
        super().__init__()
        self.upsampler, self.folder, self.plan, self.batch_size = upsampler, folder, plan, batch_size
        self.rules, self.options = rules, options

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
        rows, parts = self.plan.rows_of(shard), []
        with self._pool() as pool:
            for part in pool.map(partial(self._generate, rows.stop), rows[:: self.batch_size]):
                parts.append(part)
                self.progress.update(len(part.data) + sum(part.dropped.values()))
        data = Transitions.concatenate([part.data for part in parts])
        if data.next_known is None:  # all shards of a folder have the same columns
            data = replace(data, next_known=np.ones(len(data), bool))
        return Shard(data, {name: sum(part.dropped[name] for part in parts) for name in self.rules})

    def on_predict_end(self) -> None:
        self.progress.close()

    @torch.inference_mode()  # which holds for one thread only
    def _generate(self, stop: int, start: int) -> Shard:
        count = min(self.batch_size, stop - start)
        rows = self.upsampler.sample(count, seed=self.plan.seed, start=start, batch_size=count, **self.options)
        return Shard(*curate(rows, self.rules))

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
        data, dropped = prediction
        generated = len(data) + sum(dropped.values())
        write_shard(self.folder, batch, data, self.attrs, generated=generated, dropped=dropped, **self.notes)
