"""Networks of many seeds at once: every parameter has the seed as its first axis, so one batched product serves all seeds.

Axes: s seeds, e members of an ensemble, b rows of a batch, o observation, a action.
"""

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]


class MLP(nn.Module):
    """Independent ReLU networks side by side: one for each seed, or one for each seed and member of an ensemble.

    Args:
        lead: (s,) or (s, e).
        inputs: size of a row.
        outputs: size of what comes out.
        width: of the hidden layers.
        depth: number of hidden layers.
        precision: of the products between hidden layers; "bfloat16" is faster on processors that have it. The first layer
            (observations), the last one (values) and the weights themselves are float32 in any case.
    """

    def __init__(
        self, lead: Sequence[int], inputs: int, outputs: int, *, width: int, depth: int, precision: Precision = "float32"
    ):
        super().__init__()
        self.lead = tuple(lead)
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        sizes = [inputs, *[width] * depth, outputs]
        self.weights = nn.ParameterList(torch.zeros(*lead, i, o) for i, o in itertools.pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(*lead, 1, o) for o in sizes[1:])

    @torch.no_grad()
    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Fresh weights, as `nn.Linear` draws them, from one generator a seed."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = weight.shape[-2] ** -0.5
            for seed, generator in enumerate(generators):
                weight[seed].uniform_(-bound, bound, generator=generator)
                bias[seed].uniform_(-bound, bound, generator=generator)

    def forward(self, x: Float[Tensor, "*lead b i"]) -> Float[Tensor, "*lead b o"]:
        """Every network on its own rows."""
        y = self._layers(x.flatten(0, -3), [w.flatten(0, -3) for w in self.weights], [b.flatten(0, -3) for b in self.biases])
        return y.unflatten(0, self.lead)

    def _layers(self, x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        last = len(weights) - 1
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            dtype = self.dtype if 0 < i < last else torch.float32
            x = x.to(dtype).relu_() if i else x
            if weight.shape[-1] == 1:  # a product with one column is several times slower than the sum that it is
                x = (x * weight.mT).sum(-1, keepdim=True) + bias
            else:
                x = torch.baddbmm(bias.to(dtype), x, weight.to(dtype))
        return x


class Critics(MLP):
    """Q(s, a) of an ensemble of critics for each seed.

    Args:
        seeds: number of seeds.
        ensemble: critics of a seed.
        observation_size: of an observation.
        action_size: of an action.
        settings: of `MLP`.
    """

    def __init__(self, seeds: int, ensemble: int, observation_size: int, action_size: int, **settings: int | Precision):
        super().__init__((seeds, ensemble), observation_size + action_size, 1, **settings)  # type: ignore[arg-type]

    def forward(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s e b"]:  # type: ignore[override]
        """Values of the same rows by every critic."""
        x = torch.cat([s, a], -1)
        return super().forward(x[:, None].expand(-1, self.lead[1], -1, -1)).squeeze(-1)

    def each(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s e b a"]) -> Float[Tensor, "s e b"]:
        """Values where every critic has actions of its own."""
        rows = s[:, None].expand(-1, self.lead[1], -1, -1)
        return super().forward(torch.cat([rows, a], -1)).squeeze(-1)

    def first(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s b"]:
        """Values by the first critic alone."""
        x = torch.cat([s, a], -1)
        return self._layers(x, [w[:, 0] for w in self.weights], [b[:, 0] for b in self.biases]).squeeze(-1)


class Values(MLP):
    """V(s), one network for each seed."""

    def __init__(self, seeds: int, observation_size: int, **settings: int | Precision):
        super().__init__((seeds,), observation_size, 1, **settings)  # type: ignore[arg-type]

    def forward(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b"]:
        return super().forward(s).squeeze(-1)


class Actor(MLP):
    """A deterministic policy: actions in [-1, 1]."""

    def __init__(self, seeds: int, observation_size: int, action_size: int, **settings: int | Precision):
        super().__init__((seeds,), observation_size, action_size, **settings)  # type: ignore[arg-type]

    def forward(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b a"]:
        return super().forward(s).tanh()
