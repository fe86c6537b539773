"""Checkpoints that survive a kill: written whole or not at all, and `last.ckpt` is where training stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from dreamloom.datasets.atomic import atomic_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames (Lightning's own passes through /tmp, so a kill may cut a file short)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Replaces the file at `path`, which holds the old or the new checkpoint at every moment."""
        with atomic_path(path) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads tensors and plain values only: a checkpoint may come from a stranger."""
        return super().load_checkpoint(path, map_location or (lambda storage, _: storage), weights_only=True)


class LastCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that also saves the last step, whatever its number."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves `last.ckpt` unless this step is in it already."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
