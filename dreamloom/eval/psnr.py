"""Frame by frame likeness: PSNR and SSIM of uint8 frames, and the paper's controllability from them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

# Frames that are equal would have infinite PSNR; here they have this one (an MSE floor of 255^2 / 10^6 = 0.065).
MAX_PSNR = 60.0


def squared_error(a: UInt8[Tensor, "b t c h w"], b: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """Mean squared error of each frame, in the range 0 to 255 squared."""
    # Clip by clip: all of them as floats would be the largest thing in memory.
    rows = [reduce((x.float() - y.float()).square(), "t c h w -> t", "mean") for x, y in zip(a, b, strict=True)]
    return torch.stack(rows)


def psnr_of(mse: Tensor) -> Tensor:
    """10 log10(255^2 / MSE), dB, at most `MAX_PSNR`."""
    return (10 * (255**2 / mse.clamp_min(1e-12)).log10()).clamp_max(MAX_PSNR)


def psnr(a: UInt8[Tensor, "b t c h w"], b: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """PSNR of each frame, dB; equal frames have `MAX_PSNR`."""
    return psnr_of(squared_error(a, b))


def ssim(a: UInt8[Tensor, "b t c h w"], b: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b t"]:
    """SSIM of each frame (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    rows = [
        structural_similarity_index_measure(x.float(), y.float(), data_range=255.0, reduction="none")
        for x, y in zip(a, b, strict=True)  # clip by clip: its windows take 50 times a frame's memory
    ]
    return torch.stack([row if isinstance(row, Tensor) else row[0] for row in rows]).reshape(a.shape[:2])


def bootstrap(
    values: Shaped[Tensor, "b"] | Sequence[float],
    *,
    seed: int,
    resamples: int = 10_000,
    statistic: Literal["mean", "median"] = "mean",
) -> dict[str, float]:
    """Mean or median over clips with its 95% percentile bootstrap interval (Efron 1979).

    Args:
        values: one number a clip.
        seed: of the resampling.
        resamples: how many.
        statistic: what is told of the clips.

    Returns:
        `mean` or `median`, `low`, `high`.
    """
    x = np.asarray(values, dtype=np.float64)
    of: Callable[..., Any] = np.mean if statistic == "mean" else np.median
    random = np.random.default_rng(seed)
    drawn = np.concatenate([of(x[random.integers(len(x), size=(500, len(x)))], 1) for _ in range(resamples // 500)])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {statistic: float(of(x)), "low": float(low), "high": float(high)}


def delta_psnr(
    truth: UInt8[Tensor, "b c h w"], same: UInt8[Tensor, "b c h w"], other: UInt8[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Controllability of each clip (Bruce et al. 2024, section 3): PSNR(x_t, xhat_t) - PSNR(x_t, xhat'_t), dB.

    Args:
        truth: x_t.
        same: xhat_t, dreamed with the actions inferred from the true frames.
        other: xhat'_t, dreamed from the same start with actions drawn at random.
    """
    x, y, z = (rearrange(frames, "b c h w -> b 1 c h w") for frames in (truth, same, other))
    return (psnr(x, y) - psnr(x, z))[:, 0]
