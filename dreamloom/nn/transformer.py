"""The spatiotemporal transformer of Genie (Bruce et al. 2024, arXiv 2402.15391, section 2.1), with an exact frame cache.

A block is attention over the n tokens of a frame, causal attention over time, and one feed-forward after both. Attention over
space stays inside a frame and attention over time looks only back, so the features of a finished frame never change: `stream`
computes one new frame against the keys and values of the last `window - 1` frames, and equals `forward` over the whole past.
What nobody asked for is left out: `stream` of some tokens runs the last block for these alone, `remember` stops at its keys.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dreamloom.nn.attention import Attention, Backend, look_back, rotation

Slot = tuple[Tensor, Tensor]
Past = tuple[tuple[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FrameCache:
    """Keys and values of past frames, newest last. A plain tensor state: batch first.

    Attributes:
        keys: (b, layers, slots, heads, n, e).
        values: likewise.
        length: (b,) frames seen so far; also the position of the next frame.
    """

    keys: Float[Tensor, "b layers slots heads n e"]
    values: Float[Tensor, "b layers slots heads n e"]
    length: Int[Tensor, "b"]

    def opened(self) -> "FrameCache":
        """A copy with one more slot, which `stream` fills for the frame in the making."""
        return FrameCache(_one_more(self.keys), _one_more(self.values), self.length)

    def closed(self) -> "FrameCache":
        """The opened cache once its frame is final: the oldest slot goes, the frame counts."""
        return FrameCache(self.keys[:, :, 1:], self.values[:, :, 1:], self.length + 1)


def _one_more(x: Tensor) -> Tensor:
    grown = x.new_empty(*x.shape[:2], x.shape[2] + 1, *x.shape[3:])
    grown[:, :, :-1] = x
    return grown


def pick(x: Tensor, wanted: Int[Tensor, "b m"], axis: int) -> Tensor:
    """Some tokens of each world: those of x (b first) that `wanted` names along an axis."""
    if x.is_cuda:  # where a call costs more than what it moves
        shape = [1] * x.ndim
        shape[0], shape[axis] = wanted.shape
        return x.take_along_dim(wanted.view(shape), axis)
    # One call a world moves whole rows; a gather, or advanced indexing, of them all is over twenty times slower on CPUs.
    return torch.stack([world.index_select(axis - 1, tokens) for world, tokens in zip(x, wanted, strict=True)])


def causal_mask(length: int, window: int, device: torch.device | None = None) -> Bool[Tensor, "t t"]:
    """True where frame i may look at frame j: not ahead, and at most `window - 1` frames back."""
    i = torch.arange(length, device=device)
    age = i[:, None] - i[None, :]
    return (age >= 0) & (age < window)


class GELU(nn.GELU):
    """The tanh form as x times a sigmoid, in place, where no gradient is asked for: half the time of the CPU's kernel."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad or x.is_cuda or x.dtype != torch.float32:
            return super().forward(x)
        cubic = (x * x).mul_(0.044715).add_(1).mul_(x)
        return cubic.mul_(2 * (2 / math.pi) ** 0.5).sigmoid_().mul_(x)


class Block(nn.Module):
    """Space attention, time attention (unless `time` is False), one feed-forward; optionally modulated (adaLN-zero).

    Args:
        width: d.
        heads: heads of both attentions.
        time: whether this block looks back in time.
        modulated: whether a condition (b, t, d) scales, shifts and gates each part (Peebles & Xie 2023, section 3.2).
        mlp_ratio: hidden width of the feed-forward over d.
        backend: see `dreamloom.nn.attention.attend`.
    """

    def __init__(self, width: int, heads: int, *, time: bool, modulated: bool, mlp_ratio: float, backend: Backend):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.space = Attention(width, heads, backend=backend)
        self.time = Attention(width, heads, backend=backend) if time else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), GELU(), nn.Linear(hidden, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=not modulated) for _ in range(3)])
        self.modulation = nn.Linear(width, 9 * width) if modulated else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def _parts(self, condition: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor] | None]:
        """Shift, scale and gate of each of the three parts, or None where nothing modulates."""
        if self.modulation is None:
            return [None, None, None]
        assert condition is not None
        nine = self.modulation(nn.functional.silu(condition))[:, :, None].chunk(9, dim=-1)
        return [nine[i : i + 3] for i in (0, 3, 6)]

    def _before(self, part: int, x: Tensor, modulation: list) -> Tensor:
        h = self.norms[part](x)
        return h if modulation[part] is None else h * (1 + modulation[part][1]) + modulation[part][0]

    def _after(self, part: int, x: Tensor, h: Tensor, modulation: list) -> Tensor:
        # The gate is 1 + gate rather than gate, so that a new block already passes its branch on.
        return x + h if modulation[part] is None else x + h * (1 + modulation[part][2])

    def _space(self, x: Tensor, modulation: list, wanted: Tensor | None = None) -> Tensor:
        q, k, v = self.space.project(self._before(0, x, modulation).flatten(0, 1))
        if wanted is not None:
            q, x = pick(q, wanted, 2), pick(x, wanted, 2)
        return self._after(0, x, self.space.mix(q, k, v).unflatten(0, x.shape[:2]), modulation)

    def _feed(self, x: Tensor, modulation: list) -> Tensor:
        return self._after(2, x, self.mlp(self._before(2, x, modulation)), modulation)

    def forward(
        self, x: Float[Tensor, "b t n d"], turn: tuple[Tensor, Tensor], mask: Tensor, condition: Tensor | None
    ) -> Float[Tensor, "b t n d"]:
        """All frames at once; `mask` (1, 1, t, t) says which frame may look at which."""
        modulation = self._parts(condition)
        x = self._space(x, modulation)
        if self.time is not None:
            h = rearrange(self._before(1, x, modulation), "b t n d -> (b n) t d")
            h = self.time(h, turn, mask)
            x = self._after(1, x, rearrange(h, "(b n) t d -> b t n d", b=len(x)), modulation)
        return self._feed(x, modulation)

    def stream(
        self,
        x: Float[Tensor, "b 1 n d"],
        slot: Slot | None,
        past: Past,
        condition: Tensor | None,
        wanted: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b 1 m d"]:
        """One frame, or the tokens of it that are wanted.

        Args:
            x: features.
            slot: opened keys and values (b, slots, heads, n, e) of this layer; the last slot is written where all are wanted.
            past: rotation of the new frame, and which slots hold frames (b, slots).
            condition: see `Block`.
            wanted: tokens to compute; all where None.
        """
        modulation = self._parts(condition)
        x = self._space(x, modulation, wanted)
        if self.time is not None:
            assert slot is not None
            if wanted is not None:
                slot = (pick(slot[0], wanted, 3), pick(slot[1], wanted, 3))
            q = self._remember(x, slot, past, modulation)
            h = look_back(q, *slot, past[1]).transpose(1, 2).flatten(2)
            x = self._after(1, x, self.time.to_out(h)[:, None], modulation)
        return self._feed(x, modulation)

    def remember(self, x: Float[Tensor, "b 1 n d"], slot: Slot, past: Past, condition: Tensor | None) -> None:
        """`stream` for the sake of the cache alone."""
        modulation = self._parts(condition)
        self._remember(self._space(x, modulation), slot, past, modulation)

    def _remember(self, x: Tensor, slot: Slot, past: Past, modulation: list) -> Float[Tensor, "b heads n e"]:
        """Writes a frame's keys and values, and returns its queries."""
        assert self.time is not None
        q, slot[0][:, -1], slot[1][:, -1] = self.time.project(self._before(1, x, modulation)[:, 0], past[0])
        return q


class SpaceTimeTransformer(nn.Module):
    """Blocks over (b, t, n, d) features, ended by a norm.

    Args:
        width: d.
        depth: number of blocks.
        heads: attention heads.
        window: frames that time attention spans, the present one included.
        time_every: time attention in every k-th block only, counted from the last (Dreamer 4 uses 4); 1 is Genie's.
        modulated: blocks take a condition (b, t, d), see `Block`.
        mlp_ratio: hidden width of the feed-forward over d.
        backend: attention backend.
    """

    blocks: Any  # ModuleList[Block], whose `stream` type checkers do not see

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        window: int = 16,
        time_every: int = 1,
        modulated: bool = False,
        mlp_ratio: float = 4.0,
        backend: Backend = "sdpa",
    ):
        super().__init__()
        if window < 1:
            raise ValueError(f"window must be at least 1 frame, got {window}")
        self.width, self.heads, self.window = width, heads, window
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                time=(depth - 1 - i) % time_every == 0,
                modulated=modulated,
                mlp_ratio=mlp_ratio,
                backend=backend,
            )
            for i in range(depth)
        )
        self.time_layers = sum(block.time is not None for block in self.blocks)
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "b t n d"],
        *,
        condition: Float[Tensor, "b t d"] | None = None,
        positions: Int[Tensor, "t"] | None = None,
        mask: Bool[Tensor, "t t"] | None = None,
    ) -> Float[Tensor, "b t n d"]:
        """All frames at once.

        Args:
            x: features.
            condition: what modulates the blocks, where they are modulated.
            positions: time of each frame; 0, 1, ... by default.
            mask: which frame (row) may look at which (column); causal within the window by default.
        """
        t = x.shape[1]
        positions = torch.arange(t, device=x.device) if positions is None else positions
        mask = causal_mask(t, self.window, x.device) if mask is None else mask
        turn = rotation(positions[None], self.width // self.heads)
        for block in self.blocks:
            x = block(x, turn, mask[None, None], condition)
        return self.norm(x)

    def empty_cache(self, b: int, n: int) -> FrameCache:
        """The cache before the first of b videos of n tokens a frame."""
        weight = self.norm.weight
        shape = (b, self.time_layers, self.window - 1, self.heads, n, self.width // self.heads)
        zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        return FrameCache(zeros, zeros, torch.zeros(b, dtype=torch.long, device=weight.device))

    def stream(
        self,
        x: Float[Tensor, "b 1 n d"],
        cache: FrameCache,
        *,
        condition: Float[Tensor, "b 1 d"] | None = None,
        wanted: Int[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b 1 m d"]:
        """One new frame against an opened cache, whose last slot it fills (again, if called again).

        Args:
            x: features.
            cache: opened.
            condition: what modulates the blocks, where they are modulated.
            wanted: the tokens whose features are asked for, all where None; the last slot is then not filled wholly.
        """
        x, slot, past = self._but_last(x, cache, condition)
        return self.norm(self.blocks[-1].stream(x, slot, past, condition, wanted))

    def remember(
        self, x: Float[Tensor, "b 1 n d"], cache: FrameCache, *, condition: Float[Tensor, "b 1 d"] | None = None
    ) -> None:
        """Fills the last slot of an opened cache with a frame, as `stream` does."""
        x, slot, past = self._but_last(x, cache, condition)
        self.blocks[-1].remember(x, slot, past, condition)

    def _but_last(self, x: Tensor, cache: FrameCache, condition: Tensor | None) -> tuple[Tensor, Slot, Past]:
        """The last block's input, and its part of the cache; it always looks back."""
        age = torch.arange(cache.keys.shape[2] - 1, -1, -1, device=x.device)
        past = (rotation(cache.length[:, None], self.width // self.heads), age <= cache.length[:, None])
        slots = ((cache.keys[:, layer], cache.values[:, layer]) for layer in range(self.time_layers))
        for block in self.blocks[:-1]:
            x = block.stream(x, None if block.time is None else next(slots), past, condition)
        return x, next(slots), past
