"""Muon (Jordan 2024) on a GPU: matrices of one shape are orthogonalised as one batch, not one after the other.

What torch's own takes for a small model is over a thousand launches a step, more than the model's forward and backward pass.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's own, step for step; see there. On a CPU it is torch's own."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step, of all matrices that have a gradient."""
        if closure is not None or not all(p.is_cuda for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        for group in self.param_groups:
            self.step_together(group)

    @torch.no_grad()
    def step_together(self, group: dict[str, Any]) -> None:
        """The step of a group in as few calls as there are shapes in it."""
        assert group["nesterov"]
        assert group["adjust_lr_fn"] == "match_rms_adamw"
        params: list[Tensor] = []
        grads: list[Tensor] = []
        averages: list[Tensor] = []
        self._init_group(group, params, grads, averages)
        if not params:
            return
        torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
        ahead = torch._foreach_lerp(grads, averages, group["momentum"])
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        alike = defaultdict(list)
        for param, update in zip(params, ahead, strict=True):
            alike[param.shape].append((param, update))
        for shape, members in alike.items():
            some, updates = zip(*members, strict=True)
            turned = orthogonal(torch.stack(updates), group["ns_coefficients"], group["ns_steps"], group["eps"])
            rate = 0.2 * group["lr"] * math.sqrt(max(shape))  # as large as AdamW's updates (Moonshot 2025)
            torch._foreach_add_(some, turned.to(some[0].dtype).contiguous().unbind(), alpha=-rate)


def orthogonal(x: Float[Tensor, "m r c"], coefficients: Sequence[float], steps: int, eps: float) -> Float[Tensor, "m r c"]:
    """Matrices whose singular values are brought near 1 by Newton-Schulz iterations, in bfloat16.

    Args:
        x: matrices.
        coefficients: of the quintic a x + b x^3 + c x^5.
        steps: iterations.
        eps: least norm that is divided by.
    """
    a, b, c = coefficients
    tall = x.shape[1] > x.shape[2]
    y = (x.mT if tall else x).bfloat16()
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y.mT if tall else y
