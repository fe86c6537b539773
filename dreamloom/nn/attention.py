"""Multi-head attention with QK-norm, rotary positions and one choice of backend for all models.

QK-norm follows Dehghani et al. 2023 (arXiv 2302.05442), rotary positions Su et al. 2021 (arXiv 2104.09864). Positions are
absolute and products depend on their differences alone, so a rollout has no length limit; angles are taken in float64, which
keeps them exact after millions of frames.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# "math" writes the formula out. On CPUs its bf16 matrix products are several times faster than SDPA's CPU kernel.
Backend = Literal["sdpa", "math", "flex", "xformers"]


def attend(
    q: Float[Tensor, "b heads l e"],
    k: Float[Tensor, "b heads s e"],
    v: Float[Tensor, "b heads s e"],
    mask: Bool[Tensor, "#b 1 l s"] | None = None,
    *,
    backend: Backend = "sdpa",
) -> Float[Tensor, "b heads l e"]:
    """Softmax attention.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where a query may look; None where it may look everywhere.
        backend: who computes it; all give the same result up to rounding.

    Raises:
        ValueError: if the backend cannot run here.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return {"math": _math, "flex": _flex, "xformers": _xformers}[backend](q, k, v, mask)


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    if mask is None:
        return flex_attention(q, k, v)
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    rows = mask.shape[0]
    return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[b if rows > 1 else 0, 0, i, j])


def _xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError) as error:
        raise ValueError(
            f"attention backend 'xformers' does not load beside torch {torch.__version__} ({error}); "
            "install the wheel made for this torch (`pip install dreamloom[xformers]`) or choose 'sdpa'"
        ) from error
    if not q.is_cuda:
        raise ValueError(f"attention backend 'xformers' needs CUDA tensors, got {q.device}; choose 'sdpa'")
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
        bias = bias.expand(q.shape[0], q.shape[1], *mask.shape[2:])
    heads_last = [rearrange(x, "b heads l e -> b l heads e") for x in (q, k, v)]
    return rearrange(memory_efficient_attention(*heads_last, attn_bias=bias), "b l heads e -> b heads l e")


def rotation(positions: Int[Tensor, "#b l"], size: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (b, 1, l, size / 2), that turn heads of a size to their positions.

    All layers share them. A base of 100 spreads the angles over tens of frames, not thousands.
    """
    half = size // 2
    frequency = base ** (-torch.arange(half, device=positions.device, dtype=torch.float64) / half)
    angle = positions[:, None, :, None].double() * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Float[Tensor, "b heads l e"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "b heads l e"]:
    """Rotary position embedding of the last axis, by what `rotation` gives."""
    cos, sin = (part.to(x.dtype) for part in turn)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def look_back(
    q: Float[Tensor, "b heads n e"],
    keys: Float[Tensor, "b slots heads n e"],
    values: Float[Tensor, "b slots heads n e"],
    seen: Bool[Tensor, "b slots"],
) -> Float[Tensor, "b heads n e"]:
    """Softmax attention of one query a token to that token's own past, where `seen`; whatever the backend.

    With a single query there is no matrix product to win: sums over the slots, which lie far apart in memory, are faster.
    """
    scores = ((q * q.shape[-1] ** -0.5)[:, None] * keys).sum(-1)
    weights = scores.masked_fill(~seen[:, :, None, None], float("-inf")).softmax(1).to(values.dtype)
    return (weights[..., None] * values).sum(1)


class Attention(nn.Module):
    """Self-attention along one axis, in two halves so that a cache can sit between them.

    Args:
        width: d, size of a token.
        heads: number of heads; must divide the width.
        backend: see `attend`.
    """

    def __init__(self, width: int, heads: int, *, backend: Backend = "sdpa"):
        super().__init__()
        if width % heads or (width // heads) % 2:
            raise ValueError(f"heads must divide width into even parts, got width {width} and heads {heads}")
        self.heads, self.backend = heads, backend
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm = nn.LayerNorm(width // heads, bias=False)
        self.k_norm = nn.LayerNorm(width // heads, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def project(self, x: Float[Tensor, "b l d"], turn: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (b, heads, l, e); queries and keys rotated where `turn` says how far."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Float[Tensor, "b l d"]:
        """Attends and projects back to the width."""
        out = attend(q, k, v, mask, backend=self.backend)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def forward(
        self, x: Float[Tensor, "b l d"], turn: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "b l d"]:
        """Attention among all of l, or as the mask allows."""
        return self.mix(*self.project(x, turn), mask)
