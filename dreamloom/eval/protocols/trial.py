"""One world on one file of held-out video: the clips, dreams and reconstructions that several metrics share."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dreamloom.datasets.types import Clip
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.protocols.control import DELTA_STEP
from dreamloom.eval.protocols.genie import infer_actions, reconstruct, tokenize
from dreamloom.eval.protocols.rollout import HORIZONS, Take, random_actions, rollout
from dreamloom.worldmodels.genie import Genie
from dreamloom.worldmodels.world import Sampling, World

# The longest horizon of all clips; a quarter of them goes on to the longest of HORIZONS.
NEAR = 16


@dataclass
class Trial:
    """What is tried, and how; everything costly is computed once, when it is first asked for.

    Attributes:
        world: the world.
        test: episodes that all metrics are of.
        clips: number of clips.
        context: real frames that a dream starts from.
        seed: of clips, dreams and random actions.
        sampling: how frames are drawn.

    Raises:
        ValueError: the world's actions or frames do not fit the file's, or no episode is long enough for one step.
    """

    world: World
    test: Episodes
    clips: int
    context: int
    seed: int
    sampling: Sampling

    def __post_init__(self) -> None:
        path, frames = self.test.data.path, self.test.data.frames
        if not isinstance(self.world.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"{self.world.name}: only worlds with discrete actions can be evaluated")
        c, h, w = self.world.frame_shape
        if frames.shape[1:] != (h, w, c):
            raise ValueError(f"{path}: frames are {frames.shape[1:]}, the world's {(h, w, c)} (height, width, channels)")
        if self.latent is None:
            self._check_true_actions()
        if not self.reach:
            longest = self.test.longest()
            raise ValueError(f"{path}: need {self.context + 1} frames of an episode, the longest has {longest}")

    def _check_true_actions(self) -> None:
        path, actions = self.test.data.path, self.test.data.actions
        if actions is None or actions.ndim != 1:
            raise ValueError(f"{path}: {self.world.name} takes true discrete actions, and the file has none")
        if len(actions) and actions[:].max() >= self.count:
            raise ValueError(f"{path}: has action {actions[:].max()}, {self.world.name} takes 0 to {self.count - 1}")

    @property
    def count(self) -> int:
        """Number of actions."""
        assert isinstance(self.world.action_space, gymnasium.spaces.Discrete)
        return int(self.world.action_space.n)

    @property
    def genie(self) -> Genie | None:
        """The world, if it is a Genie: some questions can only be put to one."""
        return self.without_heads if isinstance(self.without_heads, Genie) else None

    @property
    def without_heads(self) -> World:
        """The world without the heads of rewards and endings, where it has some."""
        return getattr(self.world, "world", self.world)

    @property
    def decodes(self) -> bool:
        """Whether the world dreams in codes or latents of frames, so that what these keep is a ceiling."""
        return self.genie is not None or hasattr(self.world, "reconstruct")

    @property
    def latent(self) -> torch.nn.Module | None:
        """The latent action model, or None for a world of true actions."""
        return getattr(self.world, "latent_actions", None)

    @property
    def effective(self) -> Sampling:
        """The sampling with the world's own defaults filled in, where it tells them."""
        own = getattr(self.world, "sampling", Sampling())
        steps, temperature = self.sampling.steps, self.sampling.temperature
        return Sampling(own.steps if steps is None else steps, own.temperature if temperature is None else temperature)

    @property
    def reach(self) -> list[int]:
        """The horizons for which there is an episode."""
        return [h for h in HORIZONS if self.test.affording(self.context + h)]

    @property
    def batch(self) -> int:
        """Worlds stepped at once."""
        return 128 if self.world.device.type == "cuda" else 16

    def actions(self, clip: Clip) -> Int[Tensor, "b s"]:
        """The actions between a clip's frames, as this world takes them: inferred, or the true ones."""
        if self.latent is not None:
            return infer_actions(self.latent, clip.frames)  # type: ignore[arg-type]
        assert clip.actions is not None
        return clip.actions[:, :-1].long()

    def take(self, clips: int, steps: int) -> Take:
        """Dreams of some clips with their own actions."""
        clip = self.test.clips(clips, self.context + steps, seed=self.seed)
        actions = self.actions(clip)
        dream = self.dream(clip.frames[:, : self.context], actions[:, self.context - 1 :], "same actions")
        return Take(clip, actions, self.context, dream)

    @cached_property
    def near(self) -> Take:
        """All clips, up to `NEAR` steps ahead."""
        return self.take(self.clips, max(h for h in self.reach if h <= NEAR))

    @cached_property
    def far(self) -> Take | None:
        """A quarter of the clips, to the longest horizon; None where no episode is that long."""
        return self.take(max(self.clips // 4, 2), HORIZONS[-1]) if HORIZONS[-1] in self.reach else None

    @cached_property
    def random(self) -> Int[Tensor, "b s"]:
        """Random actions for the clips of `near`."""
        steps = min(DELTA_STEP, self.near.truth.shape[1])
        return random_actions((self.clips, steps), self.count, seed=self.seed)

    @cached_property
    def swapped(self) -> UInt8[Tensor, "b s c h w"]:
        """Dreams from the starts of `near`, of equal randomness, under random actions."""
        return self.dream(self.near.prompt, self.random, "random actions")

    def dream(self, prompt: UInt8[Tensor, "b p c h w"], actions: Int[Tensor, "b s"], description: str) -> Tensor:
        """Dreams from a prompt under given actions."""
        return rollout(
            self.world,
            prompt,
            actions,
            seed=self.seed,
            sampling=self.sampling,
            batch=self.batch,
            description=description,
        )

    @cached_property
    def tokens(self) -> Int[Tensor, "b t n"]:
        """Tokens of the clips of `near`; Genie only."""
        assert self.genie is not None
        return tokenize(self.genie.tokenizer, self.near.clip.frames)

    @cached_property
    def near_decoded(self) -> UInt8[Tensor, "b t c h w"]:
        """What codes or latents keep of the clips of `near`; only of a world that decodes."""
        if self.genie is not None:
            return reconstruct(self.genie.tokenizer, self.tokens)
        return self._reconstructed(self.near)

    @cached_property
    def far_decoded(self) -> UInt8[Tensor, "b t c h w"]:
        """What codes or latents keep of the clips of `far`; only of a world that decodes."""
        assert self.far is not None
        if self.genie is not None:
            return reconstruct(self.genie.tokenizer, tokenize(self.genie.tokenizer, self.far.clip.frames))
        return self._reconstructed(self.far)

    def _reconstructed(self, taken: Take) -> UInt8[Tensor, "b t c h w"]:
        world: Any = self.world
        return torch.cat([world.reconstruct(part).cpu() for part in taken.clip.frames.split(4)])
