"""Replay buffers of Stable-Baselines3 as transitions, in the numbers of the environment.

Its buffers hold actions scaled to [-1, 1] whatever their bounds are, `dones` that a time limit sets too, environments side by
side, and, once they are full, the oldest rows in the middle.
"""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamloom.datasets.minari_spaces import Form
from dreamloom.datasets.precision import warn_of_merging
from dreamloom.datasets.types import Transitions


def from_sb3(model: Any) -> Transitions:
    """The replay buffer of an off-policy model (SAC, TD3, DDPG, DQN) as transitions.

    Actions are those that the environment was given. Rows are in order of time, one environment after another; where an
    environment's rows stop within an episode, this counts as a timeout. A dictionary of observations becomes one vector, its
    parts in the order of their names, as `minari:` reads them.

    Args:
        model: trained, or loaded together with its buffer (`load_replay_buffer`).

    Raises:
        ValueError: it has no replay buffer, no rows, or observations or actions that are no numbers.

    Example:
        dreamloom.save_dataset(dreamloom.from_sb3(model), "pendulum.hdf5", attrs={"env": "Pendulum-v1"})
    """
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not buffer.size():
        held = "an empty replay buffer" if buffer is not None else "no replay buffer (on-policy algorithms keep none)"
        raise ValueError(f"{type(model).__name__} has {held}; expected a model of SAC, TD3, DDPG or DQN that has learnt")
    rows = _in_order_of_time(buffer)
    terminals, timeouts = _ends(buffer, rows)
    now = _observations(buffer, buffer.observations, rows)
    following = buffer.observations if buffer.optimize_memory_usage else buffer.next_observations
    s_next = _observations(buffer, following, (rows + buffer.optimize_memory_usage) % buffer.buffer_size)
    known = None
    if buffer.optimize_memory_usage and terminals.any():  # the next episode's first observation lies there
        known, s_next = ~terminals, np.where(terminals.reshape(-1, *[1] * (now.ndim - 1)), now, s_next)
    rewards = _by_environment(buffer.rewards, rows)
    return Transitions(now, _actions(model, buffer, rows), rewards, s_next, terminals, timeouts, known)


def _in_order_of_time(buffer: Any) -> np.ndarray:
    """Numbers of the buffer's rows, oldest first."""
    if not buffer.full:
        return np.arange(buffer.pos)
    # Without next observations the oldest row's own has been overwritten by what followed the newest.
    return (buffer.pos + np.arange(buffer.optimize_memory_usage, buffer.buffer_size)) % buffer.buffer_size


def _by_environment(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(size, environments, ...) to the rows of one environment after another."""
    return column[rows].swapaxes(0, 1).reshape(-1, *column.shape[2:])


def _ends(buffer: Any, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    done = _by_environment(buffer.dones, rows).astype(bool)
    if not buffer.handle_timeout_termination and done.any():
        warnings.warn(
            "the buffer was made with handle_timeout_termination=False: episodes that a time limit cut count as terminal",
            stacklevel=3,
        )
    timeouts = _by_environment(buffer.timeouts, rows).astype(bool)
    terminals = done & ~timeouts
    timeouts[len(rows) - 1 :: len(rows)] |= ~terminals[len(rows) - 1 :: len(rows)]
    return terminals, timeouts


def _observations(buffer: Any, held: Any, rows: np.ndarray) -> np.ndarray:
    space, values = buffer.observation_space, held
    if isinstance(space, spaces.Dict):
        values = {name: _by_environment(column, rows) for name, column in held.items()}
    else:
        values = _by_environment(held, rows)
        space, values = _channels_last(space, values)
    found = Form("replay buffer", space, discrete=False)(values, len(rows) * buffer.n_envs)
    if found.dtype != np.float64:
        return found
    warn_of_merging("replay buffer", "observations", found)
    return found.astype(np.float32)


def _channels_last(space: spaces.Space, values: np.ndarray) -> tuple[spaces.Space, np.ndarray]:
    """Stable-Baselines3 turns frames (h, w, c) to (c, h, w)."""
    from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

    if not is_image_space(space) or not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return space, values
    assert space.shape is not None
    c, h, w = space.shape
    return spaces.Box(0, 255, (h, w, c), np.uint8), values.transpose(0, 2, 3, 1)


def _actions(model: Any, buffer: Any, rows: np.ndarray) -> np.ndarray:
    space, held = buffer.action_space, _by_environment(buffer.actions, rows)
    if isinstance(space, spaces.Box):
        return np.asarray(model.policy.unscale_action(held.reshape(-1, *space.shape)), np.float32).reshape(held.shape)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return held[:, 0].astype(np.int64)
    raise ValueError(f"the replay buffer's actions are {space}; expected Box, or Discrete that counts from 0")
