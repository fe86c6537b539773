"""Encoders of frames for agents: Procgen's residual network, DrQ's, Atari's small one, and any backbone of timm.

An encoder is convolutions, frames -> features; on top sit trunks, features -> latents, one for each head that reads them:
an actor and a critic share the convolutions and have a trunk each, as DrQ-v2 does (Yarats et al. 2021).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from dreamloom.nn.build import Buildable

# What a checkpoint may name.
ENCODERS = frozenset(f"dreamloom.nn.encoders.{name}" for name in ("Impala", "DrQ", "Nature", "Timm"))


class Encoder(nn.Module, Buildable):
    """What all encoders share.

    Args:
        shape: (c, h, w) of what is looked at; c is 3 times the frames of a stack.
        latent_size: of what a trunk gives.
    """

    features: int  # size of what the convolutions give, set by a subclass

    def __init__(self, shape: Sequence[int], latent_size: int):
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be channels, height and width, got {shape}")
        self.shape, self.latent_size = tuple(shape), latent_size

    def forward(self, frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        """Features of frames in [0, 1]."""
        raise NotImplementedError

    def trunk(self) -> nn.Sequential:
        """A new trunk, (b, features) to (b, latent_size): Linear, LayerNorm, Tanh."""
        return nn.Sequential(nn.Linear(self.features, self.latent_size), nn.LayerNorm(self.latent_size), nn.Tanh())

    def reset(self, generator: torch.Generator) -> None:
        """Draws the weights anew."""
        reset_layers(self, generator)


class Impala(Encoder):
    """The residual network of Procgen's PPO (Cobbe et al. 2020, section 2.6; Espeholt et al. 2018, figure 3, right).

    Its trunk is a linear layer and a ReLU.

    Args:
        shape: (c, h, w).
        latent_size: of what a trunk gives; Procgen's hidden size.
        channels: of the three stages, each of which halves height and width.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 64, 64),
        *,
        latent_size: int = 256,
        channels: Sequence[int] = (16, 32, 32),
    ):
        super().__init__(shape, latent_size)
        widths = (self.shape[0], *channels)
        self.stages = nn.ModuleList([_Stage(a, b) for a, b in itertools.pairwise(widths)])
        self.features = widths[-1] * math.prod(math.ceil(side / 2 ** len(channels)) for side in self.shape[1:])

    def forward(self, frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        x = frames.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)
        return relu(x).flatten(1)

    def trunk(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.features, self.latent_size), nn.ReLU())


class _Stage(nn.Module):
    """A convolution, a pooling that halves the sides (rounding up), two residual blocks."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Sequential(*[m for _ in "12" for m in (nn.ReLU(), nn.Conv2d(after, after, 3, padding=1))]) for _ in "12"]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = max_pool2d(self.first(x), 3, stride=2, padding=1)
        for block in self.blocks:
            x = x + block(x)
        return x


class DrQ(Encoder):
    """DrQ's four convolutions (Yarats et al. 2021, "Mastering Visual Continuous Control", table of hyper-parameters).

    Args:
        shape: (c, h, w).
        latent_size: of what a trunk gives; DrQ's feature_dim.
        channels: of every convolution.
    """

    def __init__(self, shape: Sequence[int] = (9, 84, 84), *, latent_size: int = 50, channels: int = 32):
        super().__init__(shape, latent_size)
        if min(self.shape[1:]) < 9:
            raise ValueError(f"frames must be at least 9 pixels high and wide, got {self.shape}")
        strides = (2, 1, 1, 1)
        widths = (self.shape[0], *[channels] * len(strides))
        self.layers = nn.ModuleList(
            [nn.Conv2d(a, b, 3, k) for (a, b), k in zip(itertools.pairwise(widths), strides, strict=True)]
        )
        self.features = channels * math.prod((side - 3) // 2 + 1 - 6 for side in self.shape[1:])

    def forward(self, frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        x = (frames - 0.5).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = relu(layer(x))
        return x.flatten(1)


class Nature(Encoder):
    """The three strided convolutions of DQN (Mnih et al. 2015, methods): a hundredth of a residual network's time on a CPU.

    Its trunk is a linear layer and a ReLU.

    Args:
        shape: (c, h, w).
        latent_size: of what a trunk gives.
        channels: of the convolutions.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 64, 64),
        *,
        latent_size: int = 256,
        channels: Sequence[int] = (32, 64, 64),
    ):
        super().__init__(shape, latent_size)
        if len(channels) != 3 or min(self.shape[1:]) < 36:
            raise ValueError(
                f"expected three numbers of channels and frames of at least 36 pixels, got {channels}, {self.shape}"
            )
        widths, kernels = (self.shape[0], *channels), ((8, 4), (4, 2), (3, 1))
        self.layers = nn.ModuleList(
            [nn.Conv2d(a, b, side, stride) for (a, b), (side, stride) in zip(itertools.pairwise(widths), kernels, strict=True)]
        )
        self.features = widths[-1] * math.prod(((side - 8) // 4 + 1 - 4) // 2 + 1 - 2 for side in self.shape[1:])

    def forward(self, frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        x = (frames - 0.5).contiguous(memory_format=torch.channels_last)  # centred, it learns in fewer updates
        for layer in self.layers:
            x = relu(layer(x))
        return x.flatten(1)

    def trunk(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.features, self.latent_size), nn.ReLU())


class Timm(Encoder):
    """Any backbone of timm, averaged over places; a stack's frames are its input channels.

    Args:
        shape: (c, h, w).
        backbone: timm's name of it.
        latent_size: of what a trunk gives.
        pretrained: whether its published weights are fetched; `reset` then goes back to them.

    Raises:
        ValueError: timm is not installed, does not know the name, or cannot fetch the weights.
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 64, 64),
        *,
        backbone: str = "resnet18",
        latent_size: int = 256,
        pretrained: bool = False,
    ):
        super().__init__(shape, latent_size)
        self.pretrained = pretrained
        self.backbone = _timm_backbone(backbone, pretrained, self.shape[0])
        self.features = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.start = {k: v.clone() for k, v in self.backbone.state_dict().items()} if pretrained else {}

    def forward(self, frames: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        return self.backbone((frames - 0.45) / 0.226)  # ImageNet's mean and deviation, over colours

    def reset(self, generator: torch.Generator) -> None:
        if self.pretrained:
            self.backbone.load_state_dict(self.start)
        else:
            super().reset(generator)


def _timm_backbone(name: str, pretrained: bool, channels: int) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError("a Timm encoder needs timm: pip install 'dreamloom[eval]'") from error
    try:
        return timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=0)
    except Exception as error:  # timm and its download name a wrong name and no network by many types
        raise ValueError(f"timm backbone {name!r} (pretrained={pretrained}): {str(error).splitlines()[0][:200]}") from error


@torch.no_grad()
def reset_layers(module: nn.Module, generator: torch.Generator) -> None:
    """Draws the weights of all layers in place.

    Convolutions are uniform after Glorot, linear layers orthogonal, biases 0, norms the identity. Whatever else holds
    weights (a backbone's tokens) keeps what it has.

    Args:
        module: any module of convolutions, linear layers and norms.
        generator: of the weights, on any device.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = torch.empty(layer.weight.shape, device=generator.device)
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(weight, math.sqrt(2), generator=generator)
            else:
                nn.init.orthogonal_(weight, math.sqrt(2), generator=generator)
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
            layer.reset_parameters()
