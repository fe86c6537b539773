"""Frames for agents that learn from pixels: what `dreamloom fit` draws from, resident on the device."""

from pathlib import Path
from typing import Any

import lightning as L
import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.units import Units
from dreamloom.datasets.augment import Augment
from dreamloom.datasets.bandit import UCBDrAC
from dreamloom.datasets.finite import Nonfinite
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.subset import overlap
from dreamloom.train.agents import Steps
from dreamloom.train.data import StepLoader, batches_done, tell

_JUDGED = 4096  # frames at the least, of which a bandit's rows are


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
        augment: how frames are changed each time that they are drawn (`dreamloom.datasets.augment.Augment`, or
            `dreamloom.datasets.bandit.UCBDrAC`, which finds out which way is best).
        judge: levels by which UCBDrAC judges its choices; of the same datasets, and none of `levels`.
        batch_size: rows an update, for each seed.
        steps_per_epoch: training steps that Lightning calls an epoch; the trainer's max_steps bounds the run.
        nonfinite: whether rows with NaN or infinite actions or rewards are refused or dropped, and episodes cut there.
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
        judge: str | None = None,
        batch_size: int = 256,
        steps_per_epoch: int = 1000,
        nonfinite: Nonfinite = "refuse",
    ):
        super().__init__()
        self.paths = [path] if isinstance(path, str | Path) else path
        chosen = {"levels": levels, "rows": rows, "top_return": top_return}
        self.choose: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if self.choose:
            self.choose["seed"] = subset_seed
        self.stack, self.n_step, self.augment, self.judge = stack, n_step, augment, judge
        if judge is not None and (levels is None or overlap(judge, levels)):
            raise ValueError(f"judge {judge}: data.levels must be set, and have no level in common with these; it is {levels}")
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.nonfinite = nonfinite
        self.frames: FrameBuffer | None = None
        self.attrs: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Reads the frames, once."""
        if self.frames is None:
            with open_dataset(self.paths[0]) as data:
                self.attrs = data.attrs
            judge = None
            if self.judge is not None:
                choose = {"levels": self.judge, "rows": _JUDGED}
                judge = FrameBuffer(self.paths, stack=self.stack, choose=choose, nonfinite=self.nonfinite)
            settings: dict[str, Any] = {"stack": self.stack, "n_step": self.n_step, "choose": self.choose}
            settings |= {"nonfinite": self.nonfinite, "tell": tell}
            self.frames = FrameBuffer(self.paths, augment=self.augment, judge=judge, **settings)

    def prepare(self, agent: Agent, seed: int) -> None:
        """Gives agents the sizes and bounds of the data."""
        assert self.frames is not None
        agent.prepare(self.frames, seed=seed, units=Units.of(self.attrs))

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
        found = {"path": [str(path) for path in self.paths], "choose": self.choose, "attrs": self.attrs}
        return found | ({"augment": self.augment.state_dict()} if isinstance(self.augment, UCBDrAC) else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A bandit goes on with what it has found out."""
        if isinstance(self.augment, UCBDrAC) and "augment" in state_dict:
            self.augment.load_state_dict(state_dict["augment"])
