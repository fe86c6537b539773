"""Checkpoints that survive a kill: written whole or not at all, and `last.ckpt` is where training stopped."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from dreamloom.datasets.atomic import atomic_path
from dreamloom.nn.finite import LossGuard, NonFiniteLoss


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


class FiniteLosses(Callback):
    """Stops a run whose loss turns NaN or infinite; no such weights replace the last checkpoint."""

    def __init__(self) -> None:
        self.guard = LossGuard()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at all that the step returned: its loss, or an agent's losses."""
        found = outputs.values() if isinstance(outputs, Mapping) else [outputs]
        with self._naming_the_checkpoint(trainer):
            self.guard.see(trainer.global_step, [value for value in found if isinstance(value, Tensor)])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is written only of finite weights: a finite loss may have gradients that are not."""
        with self._naming_the_checkpoint(trainer):
            self.guard.require_finite()
            for name, weights in pl_module.named_parameters():
                if not weights.isfinite().all():
                    raise NonFiniteLoss(f"after step {trainer.global_step:,} {name} is not finite: training stopped")

    @contextmanager
    def _naming_the_checkpoint(self, trainer: Trainer) -> Iterator[None]:
        try:
            yield
        except NonFiniteLoss as error:
            last = getattr(trainer.checkpoint_callback, "last_model_path", "")
            kept = f"the last good checkpoint is {last}" if last and Path(last).exists() else "there is no checkpoint yet"
            raise NonFiniteLoss(f"{error}; {kept}") from None
