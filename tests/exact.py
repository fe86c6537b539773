"""Training in float64: what other kernels round differently is then so small that it decides nothing.

In float32 two processors agree to seven digits, and a training run turns the eighth into the third: a vector that lies between
two codes goes to the other one. In float64 they agree to sixteen digits. Ties that no precision can tell apart are the data's
affair: no two patches of it may be equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def float64() -> Iterator[None]:
    """New tensors are float64, and what asks for float32 (a codebook does) gets float64 too."""
    kept = torch.get_default_dtype(), Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(kept[0])
        Tensor.float = kept[1]  # type: ignore[method-assign]
