"""Augmentations of frames for agents that learn from pixels: batched where the frames are, seeded, and true to the actions.

augment = Augment([Crop(), ColourJitter(), Flip(action_names="procgen")])
s, s_next, a = augment.pair(s, s_next, a, generator)
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.datasets.augment_base import Augmentation, Drawn, Identity, Moved, Names
from dreamloom.datasets.augment_colour import ColourJitter, Greyscale, Overlay, RandomConvolution
from dreamloom.datasets.augment_geometry import ColourCutout, Crop, Cutout, Flip, Rotation, Shift
from dreamloom.nn.build import Buildable

__all__ = [
    "Augment",
    "Augmentation",
    "ColourCutout",
    "ColourJitter",
    "Crop",
    "Cutout",
    "Flip",
    "Greyscale",
    "Identity",
    "Overlay",
    "RandomConvolution",
    "Rotation",
    "Shift",
    "UCBDrAC",
]


class Augment(nn.Module, Buildable):
    """Applies augmentations to transitions of frames.

    Args:
        augmentations: what there is to choose from.
        shared: s and s' are changed in the same way; else each in its own (the action then goes with s).
        combine: "one" gives each picture one of them, all equally often in a batch; "all" applies them in turn.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, augmentations: Sequence[Augmentation], shared: bool = True, combine: Literal["one", "all"] = "one"):
        super().__init__()
        if not augmentations:
            raise ValueError("no augmentation is given")
        self.augmentations = nn.ModuleList(augmentations)
        self.shared, self.combine = shared, combine

    def name_actions(self, action_names: Names) -> None:
        """Tells the augmentations that ask for it what the actions are called, unless they were told before."""
        for member in self.augmentations:
            if isinstance(member, Moved) and member.action_names is None:
                member.name_actions(action_names)

    def pair(
        self,
        s: Float[Tensor, "b c h w"],
        s_next: Float[Tensor, "b c h w"],
        actions: Tensor,
        generator: torch.Generator,
        *,
        member: int | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Tensor]:
        """Augments transitions.

        Args:
            s: frames in [0, 1], c = 3 times the stack.
            s_next: likewise.
            actions: (b,) int64 or (b, a) float.
            generator: of the draw.
            member: use this one alone, for all pictures (`UCBDrAC.choose`).

        Returns:
            s, s' and the actions, which have other numbers where a picture was turned or mirrored.

        Raises:
            ValueError: an action would change its meaning, and it is not known what to.
        """
        plan = self.draw(len(s), generator, device=s.device, size=(s.shape[2], s.shape[3]), member=member)
        again = plan
        if not self.shared:
            again = self.draw(len(s), generator, device=s.device, size=(s.shape[2], s.shape[3]), member=member)
        return self(s, plan), self(s_next, again), self.actions(actions, plan)

    def draw(
        self,
        batch: int,
        generator: torch.Generator,
        *,
        device: torch.device | str,
        size: tuple[int, int],
        member: int | None = None,
    ) -> list[tuple[Augmentation, Tensor | None, Drawn]]:
        """What happens to a batch: augmentations, the rows that each is for (None for all), and what each has drawn."""
        every: list[Augmentation] = list(self.augmentations)  # type: ignore[arg-type]
        if member is not None:
            every = [every[member]]
        if self.combine == "all" or len(every) == 1:
            return [(one, None, one.draw(batch, generator, device=device, size=size)) for one in every]
        # Shares of a shuffled batch have sizes that are known beforehand, unlike those of a free choice for each picture.
        order = torch.randperm(batch, generator=generator, device=generator.device).to(device)
        start = int(torch.randint(len(every), (1,), generator=generator, device=generator.device)) if batch % len(every) else 0
        shares = torch.tensor_split(order, len(every))
        members = every[start:] + every[:start]
        return [
            (one, rows, one.draw(len(rows), generator, device=device, size=size))
            for one, rows in zip(members, shares, strict=True)
            if len(rows)
        ]

    def forward(self, frames: Float[Tensor, "b c h w"], plan: list[Any]) -> Float[Tensor, "b c h w"]:
        """Changes frames as drawn."""
        parts = []
        for one, rows, drawn in plan:
            if rows is None:
                frames = one(frames, drawn)
            else:
                parts.append((rows, one(frames[rows], drawn)))
        return _scattered(frames, parts)

    def actions(self, actions: Tensor, plan: list[Any]) -> Tensor:
        """What actions, (b,) or (b, ...), are called on frames that were changed as drawn."""
        parts = []
        for one, rows, drawn in plan:
            if rows is None:
                actions = one.actions(actions, drawn)
            else:
                parts.append((rows, one.actions(actions[rows], drawn)))
        return _scattered(actions, parts)


def _scattered(whole: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Parts that together have all rows, put to their places; the whole where there are none."""
    if not parts:
        return whole
    out = torch.empty_like(whole)
    for rows, part in parts:
        out[rows] = part.to(out.dtype)
    return out


class UCBDrAC:
    """The bandit that chooses an augmentation (Raileanu et al. 2021, equation 8): argmax of Q(f) + c sqrt(log t / N(f)).

    Q(f) is the mean of the last returns that followed a choice of f. An augmentation that was never chosen comes first.

    Args:
        arms: number of augmentations.
        c: how much it explores; in units of the returns.
        window: how many of an augmentation's last returns count.

    Raises:
        ValueError: no arm, or no window.
    """

    def __init__(self, arms: int, c: float = 0.1, window: int = 10):
        if arms < 1 or window < 1:
            raise ValueError(f"expected at least one arm and a window of at least 1, got {arms} and {window}")
        self.c = c
        self.counts = [0] * arms
        self.returns: list[deque[float]] = [deque(maxlen=window) for _ in range(arms)]

    def choose(self) -> int:
        """The augmentation to use next."""
        if 0 in self.counts:
            return self.counts.index(0)
        bonus = math.log(sum(self.counts))
        bounds = [sum(r) / len(r) + self.c * math.sqrt(bonus / n) for r, n in zip(self.returns, self.counts, strict=True)]
        return bounds.index(max(bounds))

    def reward(self, index: int, value: float) -> None:
        """Tells what return followed the choice of an augmentation."""
        self.counts[index] += 1
        self.returns[index].append(float(value))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, as plain numbers."""
        return {"counts": list(self.counts), "returns": [list(values) for values in self.returns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: it has another number of arms.
        """
        if len(state["counts"]) != len(self.counts):
            raise ValueError(f"the saved bandit has {len(state['counts'])} arms, this one has {len(self.counts)}")
        self.counts = list(state["counts"])
        self.returns = [deque(values, maxlen=old.maxlen) for values, old in zip(state["returns"], self.returns, strict=True)]
