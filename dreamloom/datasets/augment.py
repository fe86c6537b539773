"""Augmentations of frames for agents that learn from pixels: batched where the frames are, seeded, and true to the actions.

augment = Augment([Crop(), ColourJitter(), Flip(action_names="procgen")])
s, s_next, a = augment.pair(s, s_next, a, generator)
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
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
]

Frames = Float[Tensor, "b c h w"] | UInt8[Tensor, "b c h w"]
_IN_CACHE = 32  # pictures of 64 x 64 that are changed together on a CPU


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

    def members(self, seeds: int) -> list[int | None]:
        """For each seed the one augmentation that it is to use now; None for all."""
        return [None] * seeds

    def pair(
        self,
        s: Frames,
        s_next: Frames,
        actions: Tensor,
        generator: torch.Generator,
        *,
        member: int | None = None,
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Tensor]:
        """Augments transitions.

        Args:
            s: frames, uint8 or floats in [0, 1], c = 3 times the stack.
            s_next: likewise.
            actions: (b,) int64 or (b, a) float.
            generator: of the draw.
            member: use this one alone, for all pictures.

        Returns:
            s, s' and the actions, which have other numbers where a picture was turned or mirrored.

        Raises:
            ValueError: an action would change its meaning, and it is not known what to.
        """
        changed, following, renamed = self.pairs(s[None], s_next[None], actions[None], [generator], [member])
        assert following is not None
        return changed[0], following[0], renamed[0]

    def pairs(
        self,
        s: Float[Tensor, "s b c h w"] | UInt8[Tensor, "s b c h w"],
        s_next: Float[Tensor, "s b c h w"] | UInt8[Tensor, "s b c h w"] | None,
        actions: Tensor,
        generators: Sequence[torch.Generator],
        members: Sequence[int | None],
    ) -> tuple[Float[Tensor, "s b c h w"], Float[Tensor, "s b c h w"] | None, Tensor]:
        """Augments transitions of several seeds, each with its own randomness, in as few passes as for one.

        Args:
            s: frames, as in `pair`.
            s_next: likewise; None where they are not wanted.
            actions: (s, b) int64 or (s, b, a) float.
            generators: one a seed.
            members: for each seed the one augmentation to use; None for all.
        """
        (seeds, b), size = s.shape[:2], (s.shape[3], s.shape[4])

        def draw() -> list[Any]:
            each = zip(generators, members, strict=True)
            return [self.draw(b, generator, device=s.device, size=size, member=member) for generator, member in each]

        plans, parts = draw(), [s] if s_next is None else [s, s_next]
        renamed = torch.stack([self.actions(*each) for each in zip(actions, plans, strict=True)])
        every = plans if s_next is None else [*plans, *(plans if self.shared else draw())]
        changed = self._changed(torch.cat([part.flatten(0, 1) for part in parts]), _merged(every, b, s.device))
        changed = changed.unflatten(0, (len(parts), seeds, b))
        return changed[0], None if s_next is None else changed[1], renamed

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
        # Who gets what is over; no number that a GPU would have to tell.
        start = generator.initial_seed() % len(every) if batch % len(every) else 0
        return [
            (one, rows, one.draw(len(rows), generator, device=device, size=size))
            for one, rows in zip(every[start:] + every[:start], torch.tensor_split(order, len(every)), strict=True)
            if len(rows)
        ]

    def forward(self, frames: Frames, plan: list[Any]) -> Float[Tensor, "b c h w"]:
        """Changes frames as drawn. They come out as floats, channels last in memory as convolutions like it."""
        return self._changed(frames, _chains(plan))

    def _changed(self, frames: Frames, chains: Sequence[Any]) -> Float[Tensor, "b c h w"]:
        kind = torch.float32 if frames.dtype == torch.uint8 else frames.dtype
        out = torch.empty(frames.shape, dtype=kind, device=frames.device, memory_format=torch.channels_last)
        # In a processor's cache dozens of passes over a few pictures cost less than a few passes over all of them in memory.
        size = _IN_CACHE if frames.device.type == "cpu" else len(frames)
        for rows, chain in chains:
            for start in range(0, len(frames) if rows is None else len(rows), size):
                part = slice(start, start + size)
                x = _unit(frames[part if rows is None else rows[part]])
                for one, drawn in chain:
                    x = one(x, {name: value[part] for name, value in drawn.items()})
                out[part if rows is None else rows[part]] = x
        return out

    def actions(self, actions: Tensor, plan: list[Any]) -> Tensor:
        """What actions, (b,) or (b, ...), are called on frames that were changed as drawn."""
        parts = []
        for one, rows, drawn in plan:
            if rows is None:
                actions = one.actions(actions, drawn)
            else:
                parts.append((rows, one.actions(actions[rows], drawn)))
        return _scattered(actions, parts)


def _chains(plan: list[Any]) -> list[tuple[Tensor | None, list[tuple[Augmentation, Drawn]]]]:
    """Which rows go through which augmentations in turn: all through all, or each share through its own."""
    if all(rows is None for _, rows, _ in plan):
        return [(None, [(one, drawn) for one, _, drawn in plan])]
    return [(rows, [(one, drawn)]) for one, rows, drawn in plan]


def _merged(
    plans: Sequence[list[Any]], batch: int, device: torch.device
) -> list[tuple[Tensor | None, list[tuple[Augmentation, Drawn]]]]:
    """The chains of plans for batches that lie one after another, as chains of the whole."""
    found: dict[tuple[int, ...], list[tuple[Tensor, Any]]] = {}
    for number, plan in enumerate(plans):
        for rows, chain in _chains(plan):
            rows = torch.arange(batch, device=device) if rows is None else rows
            found.setdefault(tuple(id(one) for one, _ in chain), []).append((number * batch + rows, chain))
    whole = len(found) == 1 and _chains(plans[0])[0][0] is None  # all rows, in their order
    return [
        (None if whole else torch.cat([rows for rows, _ in parts]), _joined([chain for _, chain in parts]))
        for parts in found.values()
    ]


def _joined(chains: Sequence[list[tuple[Augmentation, Drawn]]]) -> list[tuple[Augmentation, Drawn]]:
    """Chains of the same augmentations as one, with what all have drawn."""
    return [
        (each[0][0], {name: torch.cat([drawn[name] for _, drawn in each]) for name in each[0][1]})
        for each in zip(*chains, strict=True)
    ]


def _unit(frames: Frames) -> Float[Tensor, "b c h w"]:
    return frames.float().div_(255) if frames.dtype == torch.uint8 else frames


def _scattered(whole: Tensor, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Parts that together have all rows, put to their places; the whole where there are none."""
    if not parts:
        return whole
    out = torch.empty_like(whole)
    for rows, part in parts:
        out[rows] = part.to(out.dtype)
    return out
