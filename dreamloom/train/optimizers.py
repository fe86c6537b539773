"""Learning-rate schedule and the optimizer that mixes Muon (matrices) with AdamW (everything else)."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dreamloom.train.muon import Muon


def warmup_then_cosine(
    warmup: int, total: int | float, final: float, over: Callable[[], float] = lambda: 0.0
) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear to 1 over `warmup`, then a half cosine down to `final` at `total`.

    Args:
        warmup: steps.
        total: steps; may be infinite.
        final: factor at the end.
        over: how much of the run, from 0 to 1, is over by another measure; the cosine is where the further of both is.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, max(over(), (step - warmup) / max(1, total - warmup)))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def adamw(params: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW with the settings of the Genie paper (tables 10 to 12); it has a name, so that a saved config can tell it."""
    return torch.optim.AdamW(params, lr=3e-4, betas=(0.9, 0.9), weight_decay=1e-4)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for hidden matrices, AdamW for embeddings, norms and biases, behind one optimizer.

    Muon (Jordan 2024; torch.optim.Muon) orthogonalises the momentum of a matrix. Its learning rate is matched to AdamW's update
    size (Moonshot 2025, arXiv 2502.16982), so one schedule serves both.

    Args:
        params: parameters.
        lr: learning rate of Muon.
        adamw_scale: learning rate of AdamW over that of Muon.
        betas: of AdamW.
        weight_decay: of both.
        momentum: of Muon.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        *,
        adamw_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 1e-4,
        momentum: float = 0.95,
    ):
        parameters = list(params)
        # Tables with a row a code (embeddings, heads) are no maps between features, which is what Muon is for.
        hidden = [p for p in parameters if p.ndim == 2 and max(p.shape) <= 4 * min(p.shape)]
        chosen = {id(p) for p in hidden}
        rest = [p for p in parameters if id(p) not in chosen]
        fused = True if rest and rest[0].is_cuda else None
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adamw_scale * lr, betas=betas, weight_decay=weight_decay, fused=fused)
        ]
        if hidden:
            self.parts.append(Muon(hidden, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """One list of groups and one state, seen by this optimizer (schedules, checkpoints) and by its parts."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Runs the closure once, then both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
