"""Losses that turn NaN or infinite: noticed at their step, without a GPU having to wait at every step."""

from collections.abc import Iterable

import torch
from torch import Tensor

_EVERY = 100  # steps from one look at a GPU's flag to the next


class NonFiniteLoss(ValueError):
    """A loss is NaN or infinite; the message names the step."""


class LossGuard:
    """Stops a training whose losses are no longer finite.

    On a CPU it looks at once; on a GPU the first such step is noted there, and asked for now and then.

    Args:
        what: counts the steps, for the message: `step`, `update`.
    """

    def __init__(self, what: str = "step"):
        self.what = what
        self._first: Tensor | None = None

    def see(self, step: int, losses: Iterable[Tensor]) -> None:
        """Looks at the losses of a step, counted from 1.

        Raises:
            NonFiniteLoss: one of them is not finite, or (on a GPU) one of an earlier step was not.
        """
        flags = [loss.detach().isfinite().all() for loss in losses]
        if not flags:
            return
        broken = ~torch.stack(flags).all()
        if self._first is None or self._first.device != broken.device:
            self._first = torch.zeros((), dtype=torch.int64, device=broken.device)
        self._first = torch.where(broken & (self._first == 0), step, self._first)
        if broken.device.type == "cpu" or step % _EVERY == 0:
            self.require_finite()

    def require_finite(self) -> None:
        """Asks for what was noted.

        Raises:
            NonFiniteLoss: the loss of some step was not finite.
        """
        if self._first is not None and (step := int(self._first)):
            raise NonFiniteLoss(f"the loss of {self.what} {step:,} is not finite: training stopped")
