"""What a bandit among augmentations learns from: how far agents act as the data does, on frames they are not trained on."""

from typing import Any

from dreamloom.agents.buffer import Buffer
from dreamloom.agents.frames import FrameBuffer
from dreamloom.datasets.bandit import UCBDrAC


def turn(agent: Any, buffer: Buffer | FrameBuffer) -> None:
    """Lets the bandit of a buffer, if it has one, choose for the agents' next update.

    Args:
        agent: the `Agent`.
        buffer: that it is trained on.
    """
    if isinstance(buffer, FrameBuffer) and isinstance(buffer.augment, UCBDrAC):
        bandit, judge = buffer.augment, buffer.judge
        assert judge is not None
        bandit.turn(agent.updates, agent.seeds, lambda: agreement(agent, judge, bandit.rows))


def agreement(agent: Any, frames: FrameBuffer, rows: int) -> list[float]:
    """How far greedy actions are those of the data: the share of equal ones, or minus the mean squared distance, a seed."""
    batch = frames.take(frames.spread(rows).expand(agent.seeds, -1))
    said, done = agent.act(batch.observations), batch.actions
    each = (said == done).float().mean(1) if agent.discrete else -(said - done).square().mean((1, 2))
    return each.tolist()
