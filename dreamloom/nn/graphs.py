"""Steps that a CUDA graph repeats: all of a step's kernels are launched at once, without Python between them.

Small networks leave a GPU waiting for the next launch; a graph of the whole step (draw, forward, backward, optimizer) takes
that away and computes the same numbers.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_WARM_UP = 3  # plain runs before the recording: libraries choose kernels, optimizers make their state


class Replay(Generic[Result]):
    """A function of tensors that stay where they are, replayed from its fourth call on.

    What the function reads and writes is looked up once, when it is recorded; Python in it does not run again. Generators may
    be seeded anew between calls. Results are overwritten by the next call.

    Args:
        function: without arguments and host synchronisation; each call does what it says once.
        generators: sources of randomness that it draws from, on the GPU.
        optimizer: that it steps, if any; learning rates change through `set_rate`.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        *,
        generators: Sequence[torch.Generator] = (),
        optimizer: torch.optim.Optimizer | None = None,
    ):
        self.function, self.generators, self.optimizer = function, generators, optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.plain_calls = 0
        self._result: Result

    def __call__(self) -> Result:
        if self.plain_calls < _WARM_UP:
            self.plain_calls += 1
            return self._run()
        if self.graph is None:
            self.graph = self._record()
        self.graph.replay()
        return self._result

    def _run(self) -> Result:
        """As it is, on a stream of its own, as recordings are."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = self.function()
        current.wait_stream(stream)
        return result

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        for group in groups:
            group["capturable"] = True
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._result = self.function()
        for group in groups:
            group["capturable"] = False
        return graph


def tensor_rates(optimizer: torch.optim.Optimizer) -> None:
    """Keeps the learning rates of an optimizer on its parameters' device, where a recorded step reads them."""
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)


def set_rate(group: dict, rate: float) -> None:
    """Sets the learning rate of an optimizer's group, where it is."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
