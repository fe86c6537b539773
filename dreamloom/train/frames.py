"""Frames for agents that learn from pixels: what `dreamloom fit` draws from, resident on the device."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.frames import FrameBuffer
from dreamloom.datasets.augment import Augment
from dreamloom.datasets.store import open_dataset
from dreamloom.train.agents import Steps
from dreamloom.train.data import StepLoader, batches_done


class FrameData(L.LightningDataModule):
    """Transitions of frames, of one dataset or of several together. A frame is kept once, as uint8, on the device.

    Args:
        path: what holds pixels, actions and rewards (docs/data.md), DGRL's and V-D4RL's files included; or a list of these.
        levels: level seeds LO:HI, or DGRL's train, validation or test; null for all.
        rows: draw episodes at random until they have so many rows; null for all.
        top_return: only this share of the episodes, those of the highest return; null for all.
        subset_seed: of the draw of `rows`.
        stack: frames of an observation.
        n_step: rewards that are summed before the bootstrap.
        augment: how frames are changed each time that they are drawn (`dreamloom.datasets.augment.Augment`).
        batch_size: rows an update, for each seed.
        steps_per_epoch: training steps that Lightning calls an epoch; the trainer's max_steps bounds the run.
    """

    def __init__(
        self,
        path: str | list[str],
        *,
        levels: str | None = None,
        rows: int | None = None,
        top_return: float | None = None,
        subset_seed: int = 0,
        stack: int = 1,
        n_step: int = 1,
        augment: Augment | None = None,
        batch_size: int = 256,
        steps_per_epoch: int = 1000,
    ):
        super().__init__()
        self.paths = [path] if isinstance(path, str | Path) else path
        chosen = {"levels": levels, "rows": rows, "top_return": top_return}
        self.choose: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if self.choose:
            self.choose["seed"] = subset_seed
        self.stack, self.n_step, self.augment = stack, n_step, augment
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.frames: FrameBuffer | None = None
        self.attrs: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Reads the frames, once."""
        if self.frames is None:
            with open_dataset(self.paths[0]) as data:
                self.attrs = data.attrs
            self.frames = FrameBuffer(
                self.paths, stack=self.stack, n_step=self.n_step, choose=self.choose, augment=self.augment
            )

    def prepare(self, agent: Agent, seed: int) -> None:
        """Gives agents the sizes and bounds of the data."""
        assert self.frames is not None
        agent.prepare(self.frames, seed=seed)

    def buffer(self, device: torch.device, gamma: float) -> FrameBuffer:
        """All frames on a device; they are no longer anywhere else."""
        assert self.frames is not None
        self.frames.gamma = gamma
        return self.frames.to(device)

    def train_dataloader(self) -> StepLoader:
        """Numbers of training steps, from where the trainer is."""
        return StepLoader(Steps(), first=lambda: batches_done(self), length=self.steps_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which data it was, kept in checkpoints: an evaluation needs the environment's settings and the levels."""
        return {"path": [str(path) for path in self.paths], "choose": self.choose, "attrs": self.attrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
