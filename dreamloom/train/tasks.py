"""One Task for each kind of training. A Task knows Lightning; the model that it trains does not."""

import time
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.types import Clip
from dreamloom.nn.frame_shape import require_shape_of_parts
from dreamloom.tokenizers.autoencoder import Autoencoder
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.train.graphed import GraphedLoss
from dreamloom.train.optimizers import adamw, warmup_then_cosine
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.parts import load_part

FROZEN = ("tokenizer.", "latent_actions.")  # parts of the dynamics task that it does not train


def to_unit(frames: Tensor) -> Tensor:
    """uint8 frames to floats in [0, 1]."""
    return frames.float() / 255


def actions_between(clip: Clip, latent_actions: LatentActions | None) -> Tensor:
    """The t - 1 actions between a clip's t frames, (b, t - 1): inferred, or the dataset's own.

    Raises:
        ValueError: nothing infers them, and the dataset has none, or continuous ones.
    """
    if latent_actions is not None:
        with torch.no_grad():
            return latent_actions.infer(to_unit(clip.frames))
    if clip.actions is None:
        raise ValueError("this dataset has no actions: train a latent action model and pass it as model.latent_actions")
    if clip.actions.ndim != 2 or clip.actions.is_floating_point():
        raise ValueError(f"true actions must be discrete (b, t), got {tuple(clip.actions.shape)} {clip.actions.dtype}")
    return clip.actions[:, :-1].long()


def _clocks() -> tuple[float, float]:
    """Seconds of this process's processor time, and of the clock."""
    return time.process_time(), time.perf_counter()


class Task(LightningModule):
    """Optimizer, schedule, logging and the seed of every step; a subclass says what a batch's loss is.

    Args:
        model: what is trained.
        optimizer: from parameters to an optimizer; the default is the paper's (tables 10 to 12).
        warmup_steps: steps of linear warm-up.
        final_lr: share of the learning rate that is left at the end of a cosine decay; 1 keeps it flat. The end is the
            trainer's max_steps or its max_time, whichever is nearer.
        seed: with the step it fixes all randomness of a step, so that a resumed run repeats it and ranks share it.
        compile: whether the loss is compiled by torch.
        graphs: whether CUDA graphs repeat the passes of the loss, which spares a small model most of a GPU's launches; not for
            a learned codebook (VQ), nor for several GPUs.
    """

    model: Any  # a module with `loss` and `config`

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerCallable = adamw,
        warmup_steps: int = 500,
        final_lr: float = 1.0,
        seed: int = 0,
        compile: bool = False,
        graphs: bool = False,
    ):
        super().__init__()
        self.model = model
        self.optimizer, self.warmup_steps, self.final_lr, self.seed = optimizer, warmup_steps, final_lr, seed
        self.compute: Any = torch.compile(self.model.loss) if compile else self.model.loss
        if graphs:
            self.compute = GraphedLoss(self.model)
        # Of processor and clock: before this process took the training up, and since.
        self.cpu_s_before, self.wall_s_before, self._began = 0.0, 0.0, _clocks()

    def loss(self, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a batch."""
        return self.compute(to_unit(clip.frames))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(self.seed + 1_000_003 * self.global_step)
        loss, metrics = self.loss(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=1)
        self._log("train", metrics)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(self.seed + batch_idx)
        loss, metrics = self.loss(batch)
        self._log("val", {"loss": loss.detach(), **metrics}, sync_dist=True)

    def _log(self, stage: str, metrics: dict[str, Tensor], **kwargs: Any) -> None:
        # Batches are of equal size, so any batch_size gives the same mean; it is named because Lightning cannot infer it.
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()}, batch_size=1, **kwargs)

    def setup(self, stage: str) -> None:
        """Refuses clips of another size than that of the parts that see them."""
        source = getattr(self.trainer.datamodule, "source", None)  # type: ignore[attr-defined]
        if isinstance(source, ClipSource):
            require_shape_of_parts(source.frame_shape, self, str(source.path))

    def on_fit_start(self) -> None:
        if isinstance(self.compute, GraphedLoss) and self.trainer.world_size > 1:
            raise ValueError(f"model.graphs is for one device, got {self.trainer.world_size}: set trainer.devices to 1")
        self._began = _clocks()

    @property
    def train_cpu_s(self) -> float:
        """Processor time of this training up to now, s: what it cost on a machine that others use too."""
        return self.cpu_s_before + _clocks()[0] - self._began[0]

    @property
    def train_wall_s(self) -> float:
        """Seconds of this training up to now: what it cost where a GPU does the work."""
        return self.wall_s_before + _clocks()[1] - self._began[1]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.model.config
        checkpoint["train_cpu_s"], checkpoint["train_wall_s"] = self.train_cpu_s, self.train_wall_s

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A resumed run counts on."""
        self.cpu_s_before = checkpoint.get("train_cpu_s", 0.0)
        self.wall_s_before = checkpoint.get("train_wall_s", 0.0)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(p for p in self.model.parameters() if p.requires_grad)
        total = max(self.trainer.estimated_stepping_batches, 1)
        factor = warmup_then_cosine(self.warmup_steps, total, self.final_lr, self._time_over)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _time_over(self) -> float:
        """How much of the trainer's max_time is over, the same on all ranks; 0 where it has none."""
        timers = [callback for callback in self.trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
        left = timers[0].time_remaining() if timers else None
        if left is None:
            return 0.0
        spent = timers[0].time_elapsed()
        return self.trainer.strategy.broadcast(spent / (spent + left))


class TokenizerTask(Task):
    """Trains a tokenizer to reconstruct clips.

    Args:
        model: the tokenizer.
    """

    def __init__(self, model: Tokenizer, **kwargs: Any):
        super().__init__(model, **kwargs)


class AutoencoderTask(Task):
    """Trains a continuous autoencoder to reconstruct clips of which it sees a part.

    Args:
        model: the autoencoder.
    """

    def __init__(self, model: Autoencoder, **kwargs: Any):
        super().__init__(model, **kwargs)


class LatentActionTask(Task):
    """Trains a latent action model to predict the next frame through a few codes.

    Args:
        model: the latent action model.
    """

    def __init__(self, model: LatentActions, **kwargs: Any):
        super().__init__(model, **kwargs)


class DynamicsTask(Task):
    """Trains the dynamics on tokens of a frozen tokenizer and actions of a frozen latent action model, or true ones.

    Args:
        model: the dynamics; its codes, tokens and actions must fit the tokenizer and the actions.
        tokenizer: checkpoint of the tokenizer, or the folder of its runs, whose newest is taken.
        latent_actions: likewise of the latent action model; null trains on the dataset's own discrete actions.
        steps: default MaskGIT steps a frame of the world that is bundled with these dynamics.
        temperature: its default temperature.
        order: its order of unmasking.
    """

    def __init__(
        self,
        model: Dynamics,
        *,
        tokenizer: str,
        latent_actions: str | None = None,
        steps: int = 8,
        temperature: float = 1.0,
        order: Order = "random",
        **kwargs: Any,
    ):
        super().__init__(model, **kwargs)
        if steps < 1 or not 0 <= temperature < float("inf"):
            raise ValueError(f"need steps >= 1 and a finite temperature >= 0, got steps {steps} and temperature {temperature}")
        self.sampling = {"steps": steps, "temperature": temperature, "order": order}
        self.tokenizer: Tokenizer = load_part(tokenizer, Tokenizer)
        self.latent_actions: LatentActions | None = None
        if latent_actions is not None:
            self.latent_actions = load_part(latent_actions, LatentActions)
        self._check()

    def _check(self) -> None:
        model, tokenizer = self.model, self.tokenizer
        if (model.codes, model.tokens) != (tokenizer.codes, tokenizer.tokens):
            raise ValueError(
                f"the dynamics has codes {model.codes} and tokens {model.tokens}, "
                f"the tokenizer has codes {tokenizer.codes} and tokens {tokenizer.tokens}; make them equal"
            )
        if self.latent_actions is not None and model.actions != self.latent_actions.actions:
            raise ValueError(
                f"the dynamics has actions {model.actions}, the latent action model has {self.latent_actions.actions}"
            )

    def train(self, mode: bool = True) -> "DynamicsTask":
        """Frozen parts stay in eval mode: their codebooks must not move."""
        super().train(mode)
        for part in (self.tokenizer, self.latent_actions):
            if part is not None:
                part.eval()
        return self

    def loss(self, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            frames = to_unit(clip.frames)
            tokens, actions = self.tokenizer.encode(frames), actions_between(clip, self.latent_actions)
        return self.compute(tokens, actions, part=_part_of_batch())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampling"] = self.sampling
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The frozen parts are not in the checkpoint: they came from their own files."""
        super().on_load_checkpoint(checkpoint)
        frozen = {k: v for k, v in self.state_dict().items() if k.startswith(FROZEN)}
        checkpoint["state_dict"] = checkpoint["state_dict"] | frozen


def _part_of_batch() -> tuple[int, int]:
    """Which part of the batch this rank has, and of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
