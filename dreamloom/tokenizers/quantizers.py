"""Quantizers behind one interface: learned codebook (VQ) or fixed grid (FSQ), both from vector-quantize-pytorch."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ as LibraryFSQ
from vector_quantize_pytorch import VectorQuantize

from dreamloom.nn.build import Buildable


class Quantizer(nn.Module):
    """What tokenizer and latent action model know of a quantizer. `codes` is the size k of the codebook."""

    codes: int

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], Int[Tensor, "..."], Float[Tensor, ""]]:
        """Quantized features (gradients pass straight through), their indices, and an auxiliary loss."""
        raise NotImplementedError

    def decode(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        """The quantized features of indices."""
        raise NotImplementedError


class VQ(Quantizer, Buildable):
    """Vector quantization with an EMA codebook (van den Oord et al. 2017; dead codes are reset, Dhariwal et al. 2020).

    The codebook lives on the unit sphere (cosine similarity, Yu et al. 2021), which keeps codes alive. Across ranks its
    statistics are summed, so that two ranks update it as one rank with twice the batch.

    Args:
        width: size of the features that come in and go out.
        codes: codebook size k.
        latent: size of a code (32 in Genie).
        decay: EMA decay of the codebook.
        commitment: weight of the commitment loss.
        dead_below: codes with a smaller average count a batch are reset to features of the batch; 0 never resets.
        diversity: weight of the entropy of the mean assignment, pushing towards equal use; a remedy against collapse.
        warmup: batches during which features pass unquantized (but through the bottleneck, on the sphere), so that what reads
            them learns to need them; the codebook then starts from their k-means. A remedy against collapse.
    """

    batches: Tensor

    def __init__(
        self,
        width: int,
        codes: int = 1024,
        *,
        latent: int = 32,
        decay: float = 0.9,
        commitment: float = 0.25,
        dead_below: float = 1.0,
        diversity: float = 0.0,
        warmup: int = 0,
    ):
        super().__init__()
        self.codes, self.warmup = codes, warmup
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self.inner = VectorQuantize(
            dim=width,
            codebook_size=codes,
            codebook_dim=latent,
            use_cosine_sim=True,
            decay=decay,
            commitment_weight=commitment,
            threshold_ema_dead_code=dead_below,
            codebook_diversity_loss_weight=diversity,
            codebook_diversity_temperature=10.0,
            rotation_trick=False,
            kmeans_init=warmup > 0,
        )

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], Int[Tensor, "..."], Float[Tensor, ""]]:
        if self.training and dist.is_available() and dist.is_initialized():
            # The library decides this when it is built, and then no process group exists yet.
            codebook = self.inner._codebook
            codebook.all_reduce_fn, codebook.replace_sample_fn = dist.all_reduce, _draw_from_all_ranks
        if self.batches < self.warmup:
            return self._unquantized(x)
        quantized, indices, loss = self.inner(x.reshape(1, -1, x.shape[-1]))
        return quantized.reshape(x.shape), indices.reshape(x.shape[:-1]), loss.sum()

    def _unquantized(self, x: Float[Tensor, "... d"]) -> tuple[Tensor, Tensor, Tensor]:
        self.batches += self.training
        on_sphere = F.normalize(self.inner.project_in(x), dim=-1)
        return self.inner.project_out(on_sphere), x.new_zeros(x.shape[:-1], dtype=torch.long), x.new_zeros(())

    def decode(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        flat = self.inner.get_output_from_indices(indices.reshape(1, -1))
        return flat.reshape(*indices.shape, flat.shape[-1])


def _draw_from_all_ranks(features: Float[Tensor, "1 m d"], count: int) -> Float[Tensor, "1 s d"]:
    """`count` features of all ranks for dead codes: those that one rank with the whole batch would draw, equal on all."""
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.contiguous())
    whole = torch.cat(parts, dim=1)
    size = whole.shape[1]
    rows = torch.randperm(size, device=whole.device)[torch.arange(count, device=whole.device) % size]
    dist.broadcast(rows, src=0)
    return whole[:, rows]


class FSQ(Quantizer, Buildable):
    """Finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): no codebook to learn, none to collapse.

    Args:
        width: size of the features that come in and go out.
        levels: levels of each dimension; their product is k. The paper's choice for k about 1000 is 8, 5, 5, 5.
    """

    def __init__(self, width: int, levels: list[int] = [8, 5, 5, 5]):  # noqa: B006 (read only; jsonargparse shows it)
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"FSQ needs at least one dimension and 2 levels in each, got {levels}")
        # Two levels need the symmetric grid of Mentzer et al.'s follow-up; with the plain one they would be one and a half.
        self.inner = LibraryFSQ(levels, dim=width, preserve_symmetry=2 in levels)
        self.codes = int(self.inner.codebook_size)

    def forward(self, x: Float[Tensor, "... d"]) -> tuple[Float[Tensor, "... d"], Int[Tensor, "..."], Float[Tensor, ""]]:
        quantized, indices = self.inner(x.reshape(1, -1, x.shape[-1]))
        return quantized.reshape(x.shape), indices.reshape(x.shape[:-1]).long(), x.new_zeros(())

    def decode(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "... d"]:
        flat = self.inner.indices_to_codes(indices.reshape(1, -1))
        return flat.reshape(*indices.shape, flat.shape[-1])


def code_use(indices: Int[Tensor, "..."], codes: int) -> dict[str, Tensor]:
    """How a batch uses a codebook.

    Returns:
        `code_usage`: share of codes that occur. `code_perplexity`: exp of the entropy (nats) of their frequencies, 1 to k.
    """
    flat = indices.reshape(-1)  # torch.bincount would wait for the GPU
    counts = torch.zeros(codes, device=flat.device).index_add_(0, flat, torch.ones(len(flat), device=flat.device))
    p = counts / counts.sum()
    entropy = -(p * p.clamp_min(1e-12).log()).sum()
    return {"code_usage": (counts > 0).float().mean(), "code_perplexity": entropy.exp()}
