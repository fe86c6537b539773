"""A replay buffer of frames: uint8, once, on the device. Stacks and what follows are made by index when a batch is drawn."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.agents.episodes import Episodes, read_episodes
from dreamloom.datasets.augment import Augment
from dreamloom.datasets.bandit import UCBDrAC
from dreamloom.datasets.finite import Nonfinite
from dreamloom.datasets.store import Dataset


class PixelBatch(NamedTuple):
    """Rows for every seed. Frames are uint8, or floats in [0, 1] where they were augmented; c is 3 times the stack.

    Attributes:
        observations: (s, b, c, h, w).
        actions: (s, b) int64 or (s, b, a) float32.
        rewards: (s, b); with n steps the discounted sum of the next n.
        next_observations: (s, b, c, h, w), n steps on.
        terminals: (s, b), the share of the bootstrap that is cut: 1 where the MDP ended within n steps, else 0; with n steps
            1 - gamma^(k-1), where k <= n is how many steps were taken, so that `gamma * (1 - terminals)` discounts by gamma^k.
        plain: (s, b, c, h, w) uint8, the observations before they were augmented; None where they were not.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminals: Tensor
    plain: Tensor | None = None


class Windows(NamedTuple):
    """Runs of steps for every seed, each within an episode; those near its start are padded in front with its first frame.

    Attributes:
        observations: (s, b, t, c, h, w), uint8, or floats in [0, 1] where they were augmented, all of a window alike.
        actions: (s, b, t) int64 or (s, b, t, a) float32.
        returns: (s, b, t), the sum of the rewards from each step to the end of the episode as it was recorded.
        real: (s, b, t) bool, False where padded.
        plain: (s, b, t, c, h, w) uint8, before they were augmented; None where they were not.
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor
    real: Tensor
    plain: Tensor | None = None


class FrameBuffer:
    """Frames of some datasets, drawn as transitions.

    A stack never reaches over an episode's start: the first frame repeats. The last frame of an episode that was cut by time
    is drawn only as what followed, unless the dataset says what came after it.

    Args:
        source: datasets with pixels: whatever `open_dataset` opens, open ones too.
        stack: frames of an observation, oldest first.
        n_step: rewards that are summed before the bootstrap.
        gamma: discount of these.
        choose: which episodes of each dataset, by the settings of `datasets.subset.subset`; None for all.
        augment: changes frames, and actions where these would no longer fit (`datasets.augment.Augment`); None for none.
        judge: frames of levels that are not in these, which a `UCBDrAC` judges its choices by.
        device: where frames are and batches come out.
        nonfinite: whether rows with NaN or infinite actions or rewards are refused or dropped; an episode is cut there.
        tell: called with a line for each reason for which rows are left out.

    Raises:
        ValueError: no pixels, labels that are not finite, datasets that do not fit each other, or no row is left.
    """

    def __init__(
        self,
        source: str | Path | Dataset | Sequence[str | Path | Dataset],
        *,
        stack: int = 1,
        n_step: int = 1,
        gamma: float = 0.99,
        choose: Mapping[str, Any] | None = None,
        augment: Augment | None = None,
        judge: "FrameBuffer | None" = None,
        device: torch.device | str = "cpu",
        nonfinite: Nonfinite = "refuse",
        tell: Callable[[str], object] = lambda line: None,
    ):
        if stack < 1 or n_step < 1:
            raise ValueError(f"stack and n_step must be at least 1, got {stack} and {n_step}")
        if isinstance(augment, UCBDrAC) and judge is None:
            raise ValueError("UCBDrAC judges its choices by levels that are not trained on: it needs `judge`")
        self.judge = judge
        paths = [source] if isinstance(source, str | Path | Dataset) else list(source)
        self.stack, self.n_step, self.gamma, self.augment = stack, n_step, gamma, augment
        self.episodes, self.action_size, self.action_names = read_episodes(paths, choose or {}, nonfinite=nonfinite, tell=tell)
        if augment is not None and self.action_names:
            augment.name_actions(self.action_names)
        self.rows = torch.nonzero(self.episodes.left).squeeze(1)
        if not len(self.rows):
            raise ValueError(f"{', '.join(map(str, paths))}: no transition to draw")
        self.to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "FrameBuffer":
        """Moves all frames to a device."""
        self.episodes = Episodes(*(column.to(device) for column in self.episodes))
        self.rows = self.rows.to(device)
        self.__dict__.pop("returns", None)  # which lie where the frames were
        for part in (self.augment, self.judge):
            if part is not None:
                part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.rows.device

    @property
    def discrete(self) -> bool:
        """Whether actions are numbers of actions; `action_size` is then how many there are."""
        return self.episodes.actions.ndim == 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of an observation."""
        _, h, w, c = self.episodes.frames.shape
        return (c * self.stack, h, w)

    @property
    def bytes_per_transition(self) -> float:
        """Memory of all frames, labels and indices, by transitions that can be drawn."""
        return sum(column.nbytes for column in (*self.episodes, self.rows)) / len(self)

    def sample(self, batch_size: int, generators: Sequence[torch.Generator], *, ahead: bool = True) -> PixelBatch:
        """A batch for each seed, drawn with replacement from that seed's generator, and augmented where that is asked for.

        Args:
            batch_size: rows a seed.
            generators: one a seed, on the buffer's device.
            ahead: whether what followed is wanted; else the observations stand in its place, and cost nothing.
        """
        drawn = [torch.randint(len(self), (batch_size,), generator=g, device=self.device) for g in generators]
        return self.augmented(self.take(self.rows[torch.stack(drawn)], ahead=ahead), generators, ahead=ahead)

    def augmented(
        self,
        batch: PixelBatch,
        generators: Sequence[torch.Generator],
        members: Sequence[int | None] | None = None,
        *,
        ahead: bool = True,
    ) -> PixelBatch:
        """A batch with its frames changed, each seed's by its own generator; as it is where nothing augments.

        Args:
            batch: as it was taken.
            generators: one a seed.
            members: the one augmentation for each seed; by default what `augment` says.
            ahead: whether what followed is wanted.
        """
        if self.augment is None:
            return batch
        members = members or self.augment.members(len(generators))
        following = batch.next_observations if ahead else None
        s, s_next, actions = self.augment.pairs(batch.observations, following, batch.actions, generators, members)
        s_next = s if s_next is None else s_next
        return batch._replace(observations=s, actions=actions, next_observations=s_next, plain=batch.observations)

    def windows(self, batch_size: int, length: int, generators: Sequence[torch.Generator]) -> Windows:
        """Windows that end in rows drawn like those of `sample`.

        Args:
            batch_size: windows a seed.
            length: steps of a window.
            generators: one a seed, on the buffer's device.
        """
        drawn = [torch.randint(len(self), (batch_size,), generator=g, device=self.device) for g in generators]
        windows = self.ending(self.rows[torch.stack(drawn)], length)
        if self.augment is None:
            return windows
        members = self.augment.members(len(generators))
        parts = [self._augmented(*x) for x in zip(windows.observations, windows.actions, generators, members, strict=True)]
        frames, actions = (torch.stack(part) for part in zip(*parts, strict=True))
        return windows._replace(observations=frames, actions=actions, plain=windows.observations)

    def _augmented(
        self, frames: Tensor, actions: Tensor, generator: torch.Generator, member: int | None
    ) -> tuple[Tensor, Tensor]:
        """Windows (b, t, c, h, w), each changed as if it were one stack."""
        assert self.augment is not None
        size = (frames.shape[3], frames.shape[4])
        plan = self.augment.draw(len(frames), generator, device=self.device, size=size, member=member)
        changed = self.augment(frames.flatten(1, 2), plan).unflatten(1, frames.shape[1:3])
        return changed, torch.stack([self.augment.actions(step, plan) for step in actions.unbind(1)], 1)

    def ending(self, rows: Int[Tensor, "s b"], length: int) -> Windows:
        """The windows that end in some rows, as they are."""
        index = rows[..., None] - torch.arange(length - 1, -1, -1, device=self.device)
        first = self.episodes.first[rows][..., None].long()
        real, index = index >= first, torch.maximum(index, first)
        return Windows(self.stacked(index), self.episodes.actions[index], self.returns[index], real)

    @cached_property
    def returns(self) -> Float[Tensor, "n"]:
        """The sum of rewards from each row to the end of its episode."""
        first, rewards = self.episodes.first.cpu().numpy(), self.episodes.rewards.cpu().numpy().astype(np.float64)
        total = np.cumsum(rewards[::-1])[::-1]
        last = np.append(first[1:] != first[:-1], True)  # of an episode
        ends = np.flatnonzero(last)
        behind = np.append(total[1:], 0.0)[ends]
        return torch.from_numpy((total - behind[np.searchsorted(ends, np.arange(len(total)))]).astype(np.float32)).to(
            self.device
        )

    def spread(self, count: int) -> Int[Tensor, "n"]:
        """At most so many rows, evenly spread over all that can be drawn."""
        return self.rows[torch.linspace(0, len(self) - 1, min(count, len(self)), device=self.device).long()]

    def take(self, rows: Int[Tensor, "s b"], *, ahead: bool = True) -> PixelBatch:
        """The transitions of some rows, as they are; with the observations again in place of what followed if not `ahead`."""
        _, actions, rewards, _, left, terminal = self.episodes
        left = left[rows].long()
        steps = left.clamp(max=self.n_step)
        done = terminal[rows] & (left <= self.n_step)
        total = sum(self.gamma**i * rewards[(rows + i).clamp(max=len(rewards) - 1)] * (i < steps) for i in range(self.n_step))
        following = torch.where(done, rows, rows + steps)
        cut = torch.where(done, 1.0, 1 - self.gamma ** (steps - 1.0))
        s = self.stacked(rows)
        return PixelBatch(s, actions[rows], total, self.stacked(following) if ahead else s, cut)  # type: ignore[arg-type]

    def stacked(self, rows: Int[Tensor, "*n"]) -> UInt8[Tensor, "*n c h w"]:
        """Frames of rows with those before them, which lie channels last in memory as convolutions like it."""
        back = torch.arange(self.stack - 1, -1, -1, device=self.device)
        index = torch.maximum(rows[..., None] - back, self.episodes.first[rows][..., None].long())
        frames = self.episodes.frames[index.flatten()].unflatten(0, (-1, self.stack))
        return rearrange(frames, "n stack h w c -> n h w (stack c)").permute(0, 3, 1, 2).unflatten(0, rows.shape)
