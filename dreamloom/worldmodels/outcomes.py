"""What a step earns and whether it ends the episode, told from frames: heads for worlds that predict frames alone.

`Outcomes` looks at the last few frames, up to the one that an action is taken at, and not at the frame that follows: recordings
do not hold what followed an ending. Rewards are a distribution over bins with two-hot targets (Hafner et al. 2023, DreamerV3),
whose mean is told; endings are drawn. Both are rare: each loss weighs the rare class up until it counts as much as the other,
and the logits are freed of the weight again (Menon et al. 2021, logit adjustment). A cross-entropy weighted by w is least where
the output is w p / sum(w p), so that what is told stays calibrated, as it would not under a focal loss.

Labels from elsewhere join as a `RewardLabeler`, any callable on frames.
"""

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped, UInt8
from safetensors.torch import load, save
from torch import Tensor, nn

from dreamloom.nn.build import Buildable, build
from dreamloom.nn.encoders import ENCODERS, Encoder
from dreamloom.nn.frame_shape import require_frames
from dreamloom.nn.parts import load_part
from dreamloom.worldmodels.maskgit import draw
from dreamloom.worldmodels.prompts import to_prompt
from dreamloom.worldmodels.world import Generators, Outcome, Sampling

ALLOWED = ENCODERS | {"dreamloom.worldmodels.outcomes.Outcomes"}


@runtime_checkable
class RewardLabeler(Protocol):
    """Rewards from elsewhere: a model of preferences, a detector, a rule."""

    def __call__(self, frames: UInt8[Tensor, "b 2 c h w"]) -> Float[Tensor, "b"]:
        """What steps earn, from the frame that each was taken at and the frame that it led to."""


class Told(NamedTuple):
    """What is told of a step.

    Attributes:
        rewards: (b, bins) logits of the reward.
        ending: (b,) logit of the episode's end.
    """

    rewards: Float[Tensor, "b bins"]
    ending: Float[Tensor, "b"]


class Outcomes(nn.Module, Buildable):
    """Reward and ending of the step that is taken at the last of a few frames.

    Args:
        encoder: of a stack of frames; its shape is (c times frames, h, w).
        channels: c.
        actions: how many discrete actions, or the size of one, where heads look at the action too; 0 where they do not, as in
            worlds of latent actions.
        bins: of the reward, an odd number; they lie densely around 0 and ever wider apart (symexp).
        limit: the largest reward that is told, of either sign.

    Raises:
        ValueError: an even number of bins, or channels that are none of the stack's.
    """

    values: Tensor
    reward_odds: Tensor
    ending_odds: Tensor

    def __init__(self, encoder: Encoder, *, channels: int = 3, actions: int = 0, bins: int = 41, limit: float = 20.0):
        super().__init__()
        if bins < 3 or bins % 2 == 0 or encoder.shape[0] % channels:
            raise ValueError(f"need an odd number of bins and whole frames of {channels} channels, got {bins}, {encoder.shape}")
        self.frames, self.actions = encoder.shape[0] // channels, actions
        self.encoder, self.trunk = encoder, encoder.trunk()
        self.head = nn.Linear(encoder.latent_size + actions, bins + 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        steps = torch.linspace(-1, 1, bins) * torch.tensor(1 + limit).log()
        steps[bins // 2] = 0.0
        self.register_buffer("values", steps.sign() * steps.abs().expm1())
        self.register_buffer("reward_odds", torch.tensor(1.0))
        self.register_buffer("ending_odds", torch.tensor(1.0))

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one frame of the stack."""
        c, h, w = self.encoder.shape
        return c // self.frames, h, w

    def balance(self, rewarded: float, ending: float) -> None:
        """Makes the rare classes weigh as much as the others.

        Args:
            rewarded: share of the steps that earn something.
            ending: share of the steps that end the episode.
        """
        for name, share in (("reward_odds", rewarded), ("ending_odds", ending)):
            getattr(self, name).fill_((1 - share) / share if 0 < share < 1 else 1.0)

    def _balanced(self, frames: Float[Tensor, "b t c h w"], actions: Shaped[Tensor, "b ..."] | None) -> Told:
        """Logits under balanced classes, which are what is trained."""
        require_frames(frames, self)
        features = self.trunk(self.encoder(frames.flatten(1, 2)))
        if self.actions:
            if actions is None:
                raise ValueError("these outcomes depend on actions, and the data or the world has none")
            seen = actions if actions.is_floating_point() else F.one_hot(actions.long(), self.actions)
            features = torch.cat([features, seen.to(features.dtype)], 1)
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.float())
        return Told(logits[:, :-1], logits[:, -1])

    def forward(self, frames: Float[Tensor, "b t c h w"], actions: Shaped[Tensor, "b ..."] | None = None) -> Told:
        """Calibrated logits from frames in [0, 1] and, where heads look at them, the actions taken at the last of them."""
        told = self._balanced(frames, actions)
        return Told(told.rewards - self._odds().log(), told.ending - self.ending_odds.log())

    def _odds(self) -> Float[Tensor, "bins"]:
        return torch.where(self.values == 0, 1.0, self.reward_odds)

    def mean_reward(self, told: Told) -> Float[Tensor, "b"]:
        """The expected reward."""
        return told.rewards.softmax(-1) @ self.values

    def loss(
        self,
        frames: Float[Tensor, "b t c h w"],
        actions: Shaped[Tensor, "b ..."] | None,
        rewards: Float[Tensor, "b"],
        terminals: Bool[Tensor, "b"],
        weights: Float[Tensor, "b"],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Cross-entropies (nats) of balanced classes, each ln 2 for endings that nobody knows anything of.

        Args:
            frames: in [0, 1].
            actions: taken at the last frame.
            rewards: earned by that action.
            terminals: whether it ended the episode.
            weights: how much rarer a row is in the data than in the batch.
        """
        told = self._balanced(frames, actions)
        target = two_hot(rewards, self.values)
        reward = -(self._odds() * target * told.rewards.log_softmax(-1)).sum(-1)
        ending = F.binary_cross_entropy_with_logits(
            told.ending, terminals.float(), reduction="none", pos_weight=self.ending_odds
        )
        # Over the data, classes of odds w : 1 weigh 2 w / (1 + w) together.
        reward = (weights * reward).mean() * (1 + self.reward_odds) / (2 * self.reward_odds)
        ending = (weights * ending).mean() * (1 + self.ending_odds) / (2 * self.ending_odds)
        return reward + ending, {"reward_loss": reward.detach(), "ending_loss": ending.detach()}


def two_hot(rewards: Float[Tensor, "b"], values: Float[Tensor, "bins"]) -> Float[Tensor, "b bins"]:
    """Weights on the two neighbouring bins whose mean is the reward; rewards beyond the last bin are that bin.

    Args:
        rewards: what was earned.
        values: of the bins, rising.
    """
    rewards = rewards.clamp(values[0], values[-1])
    above = torch.searchsorted(values, rewards.contiguous()).clamp(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    share = ((rewards - low) / (high - low))[:, None]
    return F.one_hot(above, len(values)) * share + F.one_hot(above - 1, len(values)) * (1 - share)


def load_outcomes(path: str | Path) -> Outcomes:
    """Trained heads, in eval mode on the CPU, from a checkpoint of `dreamloom fit` or the folder of its runs.

    Raises:
        ValueError: the file is not such a checkpoint.
    """
    return load_part(path, Outcomes, ALLOWED)


def to_bytes(outcomes: Outcomes) -> bytes:
    """Heads as one safetensors file, which also says how they are built."""
    weights = {name: tensor.contiguous().cpu() for name, tensor in outcomes.state_dict().items()}
    return save(weights, metadata={"config": json.dumps(outcomes.config)})


def from_bytes(content: bytes) -> Outcomes:
    """What `to_bytes` wrote.

    Raises:
        ValueError: it did not write this.
    """
    length = int.from_bytes(content[:8], "little")
    outcomes = build(json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["config"]), ALLOWED)
    outcomes.load_state_dict(load(content))
    return outcomes.eval().requires_grad_(False)


@dataclass(frozen=True)
class JudgedState:
    """A world's state, and the last frames of each world, (b, t, c, h, w) uint8."""

    frame: UInt8[Tensor, "b c h w"]
    inner: Any
    seen: UInt8[Tensor, "b t c h w"]


class Judged:
    """A world with rewards and endings that are told from its frames; in all else the world that it was.

    Args:
        world: any World.
        outcomes: trained heads, on the world's device; None leaves the world's own rewards and endings.
        labeler: tells rewards instead.

    Raises:
        ValueError: the heads were trained on other frames, or on actions that the world has not.
    """

    def __init__(self, world: Any, outcomes: Outcomes | None = None, labeler: RewardLabeler | None = None):
        self.world, self.outcomes, self.labeler = world, outcomes, labeler
        if outcomes is None:
            return
        c, h, w = world.frame_shape
        shape, space = tuple(outcomes.encoder.shape), world.action_space
        if shape != (c * outcomes.frames, h, w):
            raise ValueError(f"outcomes were trained on stacks {shape}, {world.name} shows frames {world.frame_shape}")
        actions = space.n if isinstance(space, gymnasium.spaces.Discrete) else space.shape[0]
        if outcomes.actions not in (0, actions):
            raise ValueError(f"outcomes were trained on actions of size {outcomes.actions}, {world.name} has {actions}")

    def __getattr__(self, name: str) -> Any:
        if name == "world":  # while it is copied
            raise AttributeError(name)
        return getattr(self.world, name)

    @torch.inference_mode()
    def reset(self, prompt: Any) -> JudgedState:
        """Starts worlds; see `World.reset`."""
        inner = self.world.reset(prompt)
        frames = to_prompt(prompt, self.world.frame_shape).to(inner.frame.device)
        length = 1 if self.outcomes is None else self.outcomes.frames
        first = frames[:, :1].expand(-1, max(0, length - frames.shape[1]), -1, -1, -1)
        return JudgedState(inner.frame, inner, torch.cat([first, frames[:, -length:]], 1))

    @torch.inference_mode()
    def step(
        self,
        state: JudgedState,
        action: Any,
        generator: Generators = None,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    ) -> tuple[JudgedState, Outcome]:
        """One new frame, what it earned and whether it was the last; see `World.step`."""
        inner, outcome = self.world.step(state.inner, action, generator, sampling)
        reward, terminal, b = outcome.reward, outcome.terminal, len(state.frame)
        if self.outcomes is not None:
            taken = torch.as_tensor(action, device=state.seen.device).expand(b, *self.world.action_space.shape)
            told = self.outcomes(state.seen.float() / 255, taken)
            reward = self.outcomes.mean_reward(told)
            terminal = draw((b,), generator, state.seen.device) < told.ending.sigmoid()
        if self.labeler is not None:
            reward = self.labeler(torch.stack([state.seen[:, -1], outcome.frame], 1)).float()
        seen = torch.cat([state.seen[:, 1:], outcome.frame[:, None]], 1)
        return JudgedState(outcome.frame, inner, seen), Outcome(outcome.frame, reward, terminal, outcome.uncertainty)


def judged(world: Any, outcomes: str | Path | Outcomes | None = None, labeler: RewardLabeler | None = None) -> Any:
    """A world with outcomes: `Judged`, or the world itself where there is nothing to tell it.

    Args:
        world: any World.
        outcomes: trained heads or their checkpoint.
        labeler: tells rewards instead of heads and world.
    """
    if outcomes is None and labeler is None:
        return world
    heads = load_outcomes(outcomes) if isinstance(outcomes, str | Path) else outcomes
    return Judged(world, None if heads is None else heads.to(world.device), labeler)


def labeler_named(name: str) -> RewardLabeler:
    """A `RewardLabeler` by its name, `module:callable`.

    Raises:
        ValueError: there is no such callable.
    """
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # a console script does not look into the folder where it is called
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"rewards {name!r}: expected module:callable ({error})") from error
