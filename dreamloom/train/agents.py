"""Trains agents: k updates a training step, from rows that are resident on the device."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dreamloom.agents.agent import Agent, load_agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.training import Updates
from dreamloom.agents.units import Units
from dreamloom.agents.vision import Combination, Latents
from dreamloom.datasets.finite import Nonfinite
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.train.data import StepLoader, batches_done, tell
from dreamloom.train.latents import require_latents


class Steps(Dataset):
    """Numbers of the training steps: rows are drawn where they are, on the device."""

    def __getitem__(self, step: int) -> int:
        return step


class AgentData(L.LightningDataModule):
    """Transitions of one dataset or of several, mixed.

    Args:
        path: what holds transitions: an HDF5 file, a folder of shards, an .npz, minari:NAME or d4rl:NAME (docs/data.md); or a
            list of these, e.g. a real and a synthetic one.
        shares: of each dataset in every batch, e.g. [0.5, 0.5]; null draws uniformly from all rows together.
        batch_size: rows an update, for each seed.
        reward_scale: factor of the rewards.
        limit: of each dataset, read no more than the first so many rows.
        steps_per_epoch: training steps that Lightning calls an epoch; the trainer's max_steps bounds the run.
        nonfinite: whether rows with NaN or infinite numbers are refused or dropped.
    """

    def __init__(
        self,
        path: str | list[str],
        *,
        shares: list[float] | None = None,
        batch_size: int = 256,
        reward_scale: float = 1.0,
        limit: int | None = None,
        steps_per_epoch: int = 1000,
        nonfinite: Nonfinite = "refuse",
    ):
        super().__init__()
        self.paths = [path] if isinstance(path, str | Path) else path
        self.shares, self.batch_size, self.reward_scale = shares, batch_size, reward_scale
        self.limit, self.steps_per_epoch, self.nonfinite = limit, steps_per_epoch, nonfinite
        self.parts: list[Transitions] = []
        self.attrs: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Reads the rows, once."""
        if not self.parts:
            attrs = []
            for path in self.paths:
                with open_dataset(path) as data:
                    attrs.append(data.attrs)
                    part = load_transitions(data, limit=self.limit, nonfinite=self.nonfinite, tell=tell)
                    self.parts.append(part)
            self.attrs = next(filter(None, attrs), {})
            self.units = Units.common(attrs, [str(path) for path in self.paths])

    def prepare(self, agent: Agent, seed: int) -> None:
        """Gives agents the sizes, bounds and statistics of the data."""
        agent.prepare(self.parts, seed=seed, actions=len(self.attrs.get("action_names") or []), units=self.units)

    def buffer(self, device: torch.device, gamma: float) -> Buffer:
        """All rows on a device."""
        return Buffer(self.parts, self.shares, device, reward_scale=self.reward_scale)

    def train_dataloader(self) -> StepLoader:
        """Numbers of training steps, from where the trainer is."""
        return StepLoader(Steps(), first=lambda: batches_done(self), length=self.steps_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which data it was, kept in checkpoints: an evaluation needs the environment's settings."""
        return {"path": [str(path) for path in self.paths], "attrs": self.attrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


class AgentTask(L.LightningModule):
    """Trains agents of one algorithm, all seeds at once; the data's rows are drawn as `agents.training.train` draws them.

    Args:
        model: the agents.
        updates_per_step: updates in a training step of the trainer: what its max_steps, its log and its checkpoints count.
        seed: number of the first agent's seed.
        learner: of agents on latents: checkpoint of the learner whose latents they are, or the folder of its run. Through it
            the agents see frames when they act; it is kept in their checkpoints.
        learner_seed: which of the learner's seeds, counted from 0.
        combine: how the latents were made of those of the learner's networks.
    """

    model: Agent

    def __init__(
        self,
        model: Agent,
        *,
        updates_per_step: int = 100,
        seed: int = 0,
        learner: str | None = None,
        learner_seed: int = 0,
        combine: Combination = "sum",
    ):
        super().__init__()
        self.automatic_optimization = False
        if learner is not None:
            model.see_with(Latents.of(load_agent(learner), seed=learner_seed, combine=combine))
        self.model, self.updates_per_step, self.seed = model, updates_per_step, seed

    def setup(self, stage: str) -> None:
        """Gives the agents their sizes, statistics and first weights."""
        if self.trainer.world_size > 1:
            raise ValueError(f"agents train on one device, got {self.trainer.world_size}: set trainer.devices to 1")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.batch_size = data.batch_size
        if isinstance(self.model.vision, Latents):
            require_latents(self.model.vision, data.attrs)
        data.prepare(self.model, self.seed)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.model.optimizer is not None
        return self.model.optimizer

    def on_fit_start(self) -> None:
        """Puts the rows on the device, and tells the agents how long the run is."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.update = Updates(self.model, data.buffer(self.device, self.model.gamma), self.batch_size)
        steps = self.trainer.estimated_stepping_batches
        self.model.horizon = int(steps) * self.updates_per_step if steps < float("inf") else None

    def training_step(self, step: int, batch_idx: int) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}

        def updates() -> None:
            for _ in range(self.updates_per_step):
                metrics.update(self.update())

        # The updates step the optimizer themselves, network by network, and leave no gradient for this step: through it
        # Lightning counts the training step.
        self.optimizers().step(closure=updates)  # type: ignore[union-attr]
        self.log_dict({f"train/{name}": value.mean() for name, value in metrics.items()}, batch_size=1, prog_bar=True)
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.model.config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run is resumed with the agents that it began with."""
        before, now = checkpoint["model_config"], self.model.config
        if before != now:
            raise ValueError(f"the checkpoint holds other agents than the recipe: {before}, not {now}")
