"""Networks of many seeds at once: every parameter has the seed as its first axis, so one batched product serves all seeds.

Axes: s seeds, e members of an ensemble, b rows of a batch, o observation, a action, k discrete actions.
"""

import copy
import itertools
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
Network = TypeVar("Network", bound=nn.Module)


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
        trunk: what observations go through first, (s, b, f) to (s, b, o); that of an encoder of frames (`Vision.trunks`).
    """

    def __init__(
        self,
        lead: Sequence[int],
        inputs: int,
        outputs: int,
        *,
        width: int,
        depth: int,
        precision: Precision = "float32",
        trunk: nn.Module | None = None,
    ):
        super().__init__()
        self.lead, self.trunk = tuple(lead), trunk
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
        if self.trunk is not None:
            self.trunk.reset(generators)  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "*lead b i"]) -> Float[Tensor, "*lead b o"]:
        """Every network on its own observations."""
        return self.rows(self.embed(x))

    def embed(self, s: Float[Tensor, "s b f"]) -> Float[Tensor, "s b o"]:
        """Observations as the layers take them: through the trunk, where there is one."""
        return s if self.trunk is None else self.trunk(s)

    def rows(self, x: Float[Tensor, "*lead b i"]) -> Float[Tensor, "*lead b o"]:
        """Every network's layers on its own rows."""
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

    def __init__(self, seeds: int, ensemble: int, observation_size: int, action_size: int, **settings: Any):
        super().__init__((seeds, ensemble), observation_size + action_size, 1, **settings)

    def forward(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s e b"]:  # type: ignore[override]
        """Values of the same rows by every critic."""
        x = torch.cat([self.embed(s), a], -1)
        return self.rows(x[:, None].expand(-1, self.lead[1], -1, -1)).squeeze(-1)

    def many(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s n b a"]) -> Float[Tensor, "s e n b"]:
        """Values of n actions for each observation."""
        x = self.embed(s)[:, None].expand(-1, a.shape[1], -1, -1)
        x = torch.cat([x, a], -1).flatten(1, 2)
        return self.rows(x[:, None].expand(-1, self.lead[1], -1, -1)).squeeze(-1).unflatten(-1, a.shape[1:3])

    def each(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s e b a"]) -> Float[Tensor, "s e b"]:
        """Values where every critic has actions of its own."""
        x = self.embed(s)[:, None].expand(-1, self.lead[1], -1, -1)
        return self.rows(torch.cat([x, a], -1)).squeeze(-1)

    def first(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s b"]:
        """Values by the first critic alone."""
        x = torch.cat([self.embed(s), a], -1)
        return self._layers(x, [w[:, 0] for w in self.weights], [b[:, 0] for b in self.biases]).squeeze(-1)


class DiscreteCritics(MLP):
    """Q(s, a) of every discrete action at once, by an ensemble of critics for each seed.

    Args:
        seeds: number of seeds.
        ensemble: critics of a seed.
        observation_size: of an observation.
        actions: number of actions.
        settings: of `MLP`.
    """

    def __init__(self, seeds: int, ensemble: int, observation_size: int, actions: int, **settings: Any):
        super().__init__((seeds, ensemble), observation_size, actions, **settings)

    def all(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s e b k"]:
        """Values of all actions by every critic."""
        return self.rows(self.embed(s)[:, None].expand(-1, self.lead[1], -1, -1))

    def forward(self, s: Float[Tensor, "s b o"], a: Int[Tensor, "s b"]) -> Float[Tensor, "s e b"]:  # type: ignore[override]
        """Values of one action a row, by every critic."""
        return of_action(self.all(s), a[:, None].expand(-1, self.lead[1], -1))


class Values(MLP):
    """V(s), one network for each seed."""

    def __init__(self, seeds: int, observation_size: int, **settings: Any):
        super().__init__((seeds,), observation_size, 1, **settings)

    def forward(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b"]:
        return super().forward(s).squeeze(-1)


class Actor(MLP):
    """A deterministic policy: actions in [-1, 1]."""

    def __init__(self, seeds: int, observation_size: int, action_size: int, **settings: Any):
        super().__init__((seeds,), observation_size, action_size, **settings)

    def forward(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b a"]:
        return super().forward(s).tanh()

    def mode(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b a"]:
        """Greedy actions."""
        return self(s)

    def imitation(self, s: Float[Tensor, "s b o"], a: Float[Tensor, "s b a"]) -> Float[Tensor, "s"]:
        """Mean squared distance to the data's actions."""
        return (self(s) - a).square().mean((1, 2))


class Categorical(MLP):
    """A policy over discrete actions."""

    def __init__(self, seeds: int, observation_size: int, actions: int, **settings: Any):
        super().__init__((seeds,), observation_size, actions, **settings)

    def forward(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b k"]:
        """Log probabilities of all actions."""
        return self.logits(s).log_softmax(-1)

    def logits(self, s: Float[Tensor, "s b o"]) -> Float[Tensor, "s b k"]:
        """What the probabilities are made of."""
        return super().forward(s)

    def log_prob(self, s: Float[Tensor, "s b o"], a: Int[Tensor, "s b"]) -> Float[Tensor, "s b"]:
        """Log probabilities of one action a row."""
        return of_action(self(s), a)

    def mode(self, s: Float[Tensor, "s b o"]) -> Int[Tensor, "s b"]:
        """The likeliest actions."""
        return self(s).argmax(-1)

    def draw(self, s: Float[Tensor, "s b o"], generator: torch.Generator) -> Int[Tensor, "s b"]:
        """Actions by their probabilities."""
        chances = self(s).exp()
        return torch.multinomial(chances.flatten(0, 1), 1, generator=generator).unflatten(0, chances.shape[:2]).squeeze(-1)

    def imitation(self, s: Float[Tensor, "s b o"], a: Int[Tensor, "s b"]) -> Float[Tensor, "s"]:
        """Mean negative log likelihood of the data's actions."""
        return -self.log_prob(s, a).mean(-1)


def of_action(table: Float[Tensor, "*n k"], a: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Of numbers for every action those of one action a row."""
    return table.gather(-1, a[..., None]).squeeze(-1)


def target(network: Network) -> Network:
    """A copy that follows a network by `Agent.track` and is never trained itself."""
    return copy.deepcopy(network).requires_grad_(False)
