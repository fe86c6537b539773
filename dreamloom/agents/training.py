"""The plain training loop; `dreamloom fit` makes the same updates."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from tqdm import trange

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.frames import FrameBuffer
from dreamloom.datasets.bandit import UCBDrAC
from dreamloom.nn.finite import LossGuard
from dreamloom.nn.graphs import Replay, tensor_rates


class Updates:
    """Updates of agents from a buffer, one a call; on a GPU, CUDA graphs repeat them, unless a bandit changes them.

    Args:
        agent: prepared agents, on the buffer's device.
        buffer: the rows.
        batch_size: rows of an update, for each agent.
    """

    def __init__(self, agent: Agent, buffer: Buffer | FrameBuffer, batch_size: int):
        self.agent, self.buffer, self.batch_size = agent, buffer, batch_size
        self.replays: list[Replay[dict[str, Tensor]]] = []
        turns = isinstance(buffer, FrameBuffer) and isinstance(buffer.augment, UCBDrAC)
        if agent.phases and not turns and agent.device.type == "cuda":
            assert agent.optimizer is not None
            tensor_rates(agent.optimizer)
            generators = agent.streams()
            self.replays = [
                Replay(
                    lambda: agent.update(agent.batch(buffer, batch_size, generators)),
                    generators=generators,
                    optimizer=agent.optimizer,
                )
                for _ in range(agent.phases)
            ]

    def __call__(self) -> dict[str, Float[Tensor, "s"]]:
        """Makes the next update; returns its metrics, one value an agent, which the call after may overwrite."""
        agent = self.agent
        agent.schedule()
        if not self.replays:
            return agent.update(agent.draw(self.buffer, self.batch_size))
        number = agent.updates
        agent.streams()
        metrics = self.replays[number % len(self.replays)]()
        agent.updates = number + 1  # a graph does not count
        return metrics


def train(
    agent: Agent,
    buffer: Buffer | FrameBuffer,
    *,
    updates: int,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    horizon: int | None = None,
    every: int = 0,
    callback: Callable[[Agent], object] | None = None,
) -> dict[str, Float[Tensor, "s"]]:
    """Trains prepared agents on a buffer; those that have made updates already go on from there.

    Args:
        agent: prepared agents, on the buffer's device.
        buffer: the rows.
        updates: to make.
        batch_size: rows of an update, for each agent.
        seed: number of the first agent's seed: agent i has weights, batches and noise of seed `seed + i`.
        progress: whether a bar is shown.
        horizon: updates of the whole run, for schedules, where this is a part of it.
        every: updates from one call of `callback` to the next, 0 for none.
        callback: called with the agent, e.g. to evaluate it.

    Returns:
        Metrics of the last update, one value an agent.

    Raises:
        NonFiniteLoss: a loss turned NaN or infinite.
    """
    if agent.updates == 0:
        agent.reset(seed)
    agent.horizon = horizon or agent.updates + updates
    metrics: dict[str, Tensor] = {}
    update, guard = Updates(agent, buffer, batch_size), LossGuard("update")
    for _ in trange(updates, desc=type(agent).__name__, disable=not progress):
        metrics |= update()
        guard.see(agent.updates, metrics.values())
        if callback is not None and every and agent.updates % every == 0:
            callback(agent)
    guard.require_finite()
    return metrics
