"""Trains worlds whole: a checkpoint of these tasks is a world, to be played, evaluated and bundled as it is."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamloom.datasets.types import Clip
from dreamloom.diffusion.training import generator_of_step
from dreamloom.tokenizers.autoencoder import Autoencoder
from dreamloom.train.tasks import Task, actions_between, to_unit
from dreamloom.worldmodels.canvas.denoiser import CanvasDenoiser
from dreamloom.worldmodels.canvas.world import CanvasWorld
from dreamloom.worldmodels.diffusion_world import DiffusionWorld, NextFrameDenoiser
from dreamloom.worldmodels.forcing import ForcingDynamics
from dreamloom.worldmodels.forcing_world import ForcingWorld
from dreamloom.worldmodels.labels import action_names_of
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.parts import load_part, train_cpu_s, train_wall_s
from dreamloom.worldmodels.playable import Playable, identity_of_data
from dreamloom.worldmodels.prompts import choose_prompts

PROMPTS, PROMPT_FRAMES = 8, 4  # kept in checkpoints, so that they can be played


class WorldTask(Task):
    """Trains the part of a world that learns; the world has an average of its weights, and all that it needs beside it.

    Args:
        model: the part that is trained.
        world: the world, with frozen parts and a copy of the model in it.
        averaged: that copy, which follows the model (diffusion samples far better from averaged weights).
        parts: checkpoints of the frozen parts; what they cost is part of what the world cost.
        average: decay of the average; less in the first steps, so that the first weights are soon forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        world: Playable,
        averaged: nn.Module,
        parts: Sequence[str | None],
        *,
        average: float = 0.999,
        **kwargs: Any,
    ):
        super().__init__(model, **kwargs)
        self.parts_cpu_s, self.parts_wall_s = (
            sum(cost(part) or 0.0 for part in parts if part) for cost in (train_cpu_s, train_wall_s)
        )
        self.world: Any = world.requires_grad_(False)
        self.average = average
        self._pairs = list(zip(averaged.parameters(), model.parameters(), strict=True))

    def setup(self, stage: str) -> None:
        """Tells the world of what data it is."""
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        told = identity_of_data(data.path, data.stride)
        prompts = choose_prompts(data.path, PROMPTS, PROMPT_FRAMES, data.stride, 0, fewer=True)
        self.world.introduce(**told, name=told["game"] or data.path.stem, prompts=prompts)
        self.world.introduce(**told, name=self.world.name, prompts=prompts, action_names=action_names_of(self.world, data.path))

    def train(self, mode: bool = True) -> "WorldTask":
        """Frozen parts stay in eval mode: their codebooks must not move."""
        super().train(mode)
        self.world.eval()
        return self

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then the average follows: before any checkpoint of this step is written."""
        super().optimizer_step(*args, **kwargs)
        step = self.global_step + 1
        decay = min(self.average, (1 + step) / (10 + step))
        averages, weights = zip(*self._pairs, strict=True)
        torch._foreach_lerp_(averages, [weight.detach() for weight in weights], 1 - decay)

    def step_generator(self) -> torch.Generator | None:
        """Randomness of a training step, another one on each rank; validation has the global one, which is seeded."""
        if not self.training:
            return None
        return generator_of_step(self.seed, self.global_step, self.device, rank=self.global_rank)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.world.train_levels = sorted(self.trainer.datamodule.levels)  # type: ignore[attr-defined]
        self.world.train_cpu_s = self.train_cpu_s + self.parts_cpu_s
        self.world.train_wall_s = self.train_wall_s + self.parts_wall_s
        checkpoint["world"] = {"config": self.world.config, "identity": self.world.identity}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that goes on with another file keeps its prompts."""
        super().on_load_checkpoint(checkpoint)
        self.world.prompts = torch.zeros_like(checkpoint["state_dict"]["world.prompts"])


class PixelWorldTask(WorldTask):
    """Trains the denoiser of a world that works on pixels, on true actions or on those of a frozen latent action model."""

    def loss(self, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the trained weights, or in validation of their average."""
        compute = self.compute if self.training else self.world.denoiser.loss
        actions = actions_between(clip, self.world.latent_actions)
        return compute(to_unit(clip.frames), actions, self.step_generator())


class DiffusionWorldTask(PixelWorldTask):
    """Trains a world that diffuses its next frame in pixels.

    Args:
        model: the denoiser.
        latent_actions: checkpoint of a latent action model, or the folder of its runs, whose newest is taken; null trains
            on the dataset's own discrete actions.
        steps: default steps a frame of the world.
    """

    def __init__(self, model: NextFrameDenoiser, *, latent_actions: str | None = None, steps: int = 3, **kwargs: Any):
        world = DiffusionWorld(copy.deepcopy(model), _frozen(latent_actions), steps=steps)
        super().__init__(model, world, world.denoiser, [latent_actions], **kwargs)


class CanvasWorldTask(PixelWorldTask):
    """Trains a world that paints on a canvas: a camera that moves first, and a denoiser of what changes.

    Args:
        model: the denoiser.
        latent_actions: checkpoint of a latent action model, or the folder of its runs, whose newest is taken; null trains
            on the dataset's own discrete actions.
        steps: default steps a frame of the world.
        least_change: grey levels of 255 below which a pixel of the world stays as it is.
    """

    def __init__(
        self,
        model: CanvasDenoiser,
        *,
        latent_actions: str | None = None,
        steps: int = 4,
        least_change: float = 8.0,
        **kwargs: Any,
    ):
        world = CanvasWorld(copy.deepcopy(model), _frozen(latent_actions), steps=steps, least_change=least_change)
        super().__init__(model, world, world.denoiser, [latent_actions], **kwargs)


def _frozen(latent_actions: str | None) -> LatentActions | None:
    return None if latent_actions is None else load_part(latent_actions, LatentActions)


class ForcingWorldTask(WorldTask):
    """Trains the dynamics of a world on latents of a frozen autoencoder, under true actions or those of a frozen model.

    Args:
        model: the dynamics; its tokens and latents must fit the autoencoder.
        autoencoder: checkpoint of the autoencoder, or the folder of its runs, whose newest is taken.
        latent_actions: likewise of a latent action model; null trains on the dataset's own discrete actions.
        steps: default steps a frame of the world.
    """

    def __init__(
        self, model: ForcingDynamics, *, autoencoder: str, latent_actions: str | None = None, steps: int = 4, **kwargs: Any
    ):
        parts = load_part(autoencoder, Autoencoder), copy.deepcopy(model), _frozen(latent_actions)
        world = ForcingWorld(*parts, steps=steps)
        super().__init__(model, world, world.dynamics, [autoencoder, latent_actions], **kwargs)

    def loss(self, clip: Clip) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the trained weights, or in validation of their average."""
        compute = self.compute if self.training else self.world.dynamics.loss
        with torch.no_grad():
            latents = self.world.autoencoder.encode(to_unit(clip.frames)).float()
        return compute(latents, actions_between(clip, self.world.latent_actions), self.step_generator())
