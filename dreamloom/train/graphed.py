"""Losses whose passes CUDA graphs repeat: a small model leaves a GPU waiting for one launch after the other, a graph is one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = tuple[Tensor, dict[str, Tensor]]


class GraphedLoss:
    """A model's loss; in training on a GPU its forward pass and its backward pass are a launch each, the numbers are the same.

    What is drawn comes from torch's own generator, whatever is given. Shapes must be those of the first call.

    Args:
        model: a module with `loss`, which must not wait for the GPU (as a learned codebook does).
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.replay: Callable[..., Loss] | None = None

    def __call__(self, *arguments: Any, **settings: Any) -> Loss:
        """The loss and its metrics, see the model's own."""
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if not self.model.training or not tensors[0].is_cuda:
            return self.model.loss(*arguments, **settings)  # type: ignore[operator]
        if self.replay is None:
            self.replay = self._recorded(arguments, tensors)
        loss, metrics = self.replay(*tensors)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _recorded(self, arguments: Sequence[Any], tensors: list[Tensor]) -> Callable[..., Loss]:
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", dtype, enabled=enabled, cache_enabled=False):  # weights are rounded anew in each replay
            samples = tuple(tensor.clone() for tensor in tensors)
            replay: Any = torch.cuda.make_graphed_callables(_Loss(self.model, arguments), samples, allow_unused_input=True)
        return replay


class _Loss(nn.Module):
    """A loss as a module of tensors alone; its other arguments are those of the first call, without a generator."""

    def __init__(self, model: nn.Module, arguments: Sequence[Any]):
        super().__init__()
        self.model = model
        self.fixed = [None if isinstance(one, Tensor | torch.Generator) else one for one in arguments]
        self.given = [isinstance(one, Tensor) for one in arguments]

    def forward(self, *tensors: Tensor) -> Loss:
        left = iter(tensors)
        each = zip(self.given, self.fixed, strict=True)
        return self.model.loss(*(next(left) if given else fixed for given, fixed in each))  # type: ignore[operator]
