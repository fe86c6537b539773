"""Dynamics error: the real simulator is set to a row's state, takes its action, and what follows is compared with the row.

The measure of SynthER (Lu et al. 2023, arXiv 2303.06614, section 4) for rows of any origin. It needs a MuJoCo environment
of Gymnasium whose observation holds the simulator's state: positions, of which the first may be left out (where the body is
in the world, which the dynamics do not depend on), then velocities.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity.columns import spread

# An observed velocity this near its clipping bound may have been beyond it.
_NEAR_LIMIT = 0.95


class NotMeasurableError(ValueError):
    """The environment cannot be set to a row's state; the message says why."""


@dataclass(frozen=True)
class DynamicsError:
    """What the simulator says of n rows.

    Attributes:
        observation: (n,) mean over the state's dimensions of ((s' - s'_simulated) / sd)^2; NaN where s' is not known.
        reward: (n,) ((r - r_simulated) / sd)^2.
        terminals: (n,) bool, the rows' own.
        simulated_terminals: (n,) bool, where the simulator ends the episode.
        valid: (n,) bool. False: a velocity is at the bound that Hopper and Walker2d clip observations to, so the true one is
            not known, or the simulation became unstable; such rows count in no figure but `left_out`.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminals: np.ndarray
    simulated_terminals: np.ndarray
    valid: np.ndarray

    def summary(self) -> dict[str, float | int | None]:
        """`mse`, `median`, `p90`, `reward_mse`, `terminal_agreement`, `terminal_precision`, `terminal_recall`, `left_out`.

        Precision: of the rows that say terminal, those where the simulator agrees. Recall: of the rows where the simulator
        ends the episode, those that say so. None where there is no such row. `left_out` is the share of invalid rows.
        """
        own, simulated = self.terminals[self.valid], self.simulated_terminals[self.valid]
        errors = self.observation[self.valid & ~np.isnan(self.observation)]
        return {
            "mse": _mean(errors),
            "median": float(np.median(errors)) if len(errors) else None,
            "p90": float(np.quantile(errors, 0.9)) if len(errors) else None,
            "reward_mse": _mean(self.reward[self.valid]),
            "terminal_agreement": _mean(own == simulated),
            "terminal_precision": _mean(simulated[own]),
            "terminal_recall": _mean(own[simulated]),
            "left_out": 1 - float(self.valid.mean()),
            "rows": len(self.valid),
        }


def dynamics_error(
    env_id: str,
    transitions: Transitions,
    *,
    scale: Transitions | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> DynamicsError:
    """Steps the real simulator from each row's state with its action (some thousand rows a second).

    Actions are taken as they are; MuJoCo itself clamps them to the actuators' range.

    Args:
        env_id: a Gymnasium MuJoCo environment, e.g. HalfCheetah-v5.
        transitions: rows of that environment, of any origin.
        scale: rows whose standard deviations errors are divided by; real ones, so that errors compare. By default
            `transitions` itself.
        env_kwargs: settings of the environment.

    Raises:
        NotMeasurableError: no MuJoCo environment, or its observation does not hold the state.
        ValueError: no such environment, or its observations or actions have another shape.
    """
    scale = transitions if scale is None else scale
    with quiet_mujoco():
        simulator = Simulator(env_id, env_kwargs or {})
        simulator.check(transitions)
        return simulator.errors(transitions, scale)


class Simulator:
    """A MuJoCo environment that can be put where an observation says.

    Attributes:
        skipped: positions that observations leave out at the front; they are set to 0.
        positions: positions in an observation.
        velocities: velocities in it, after the positions.
        limit: (v,) absolute value that each observed velocity is clipped to; inf where it is not.
    """

    def __init__(self, env_id: str, env_kwargs: Mapping[str, Any]) -> None:
        self.env_id = env_id
        try:
            env: Any = gymnasium.make(env_id, **env_kwargs)
        except (gymnasium.error.Error, TypeError) as error:
            raise ValueError(f"environment {env_id!r}: {error}") from error
        self.env = env.unwrapped
        if not all(hasattr(self.env, name) for name in ("set_state", "model", "data", "_get_obs")):
            raise NotMeasurableError(f"{env_id} is not a MuJoCo environment of Gymnasium, so it cannot be set to a state")
        self.env.reset(seed=0)
        self.skipped = self._probe()
        self.positions, self.velocities = self.env.model.nq - self.skipped, self.env.model.nv
        self.limit = self._probe_limit()

    def check(self, transitions: Transitions) -> None:
        """Raises ValueError where rows are not of this environment's shapes."""
        for name, space in (("observations", self.env.observation_space), ("actions", self.env.action_space)):
            found = getattr(transitions, name).shape[1:]
            if found != space.shape:
                raise ValueError(f"{name} have shape {found} a row, those of {self.env_id} have {space.shape}")

    def errors(self, transitions: Transitions, scale: Transitions) -> DynamicsError:
        """See `dynamics_error`."""
        state = slice(0, self.positions + self.velocities)
        outcomes = list(self._steps(transitions))
        after, rewards, terminals, stable = (np.array(column) for column in zip(*outcomes, strict=True))
        known = np.ones(len(after), bool) if transitions.next_known is None else transitions.next_known
        off = (after - transitions.next_observations)[:, state] / spread(scale.next_observations)[state]
        velocity = np.abs(transitions.observations[:, self.positions : state.stop])
        clipped = (velocity >= _NEAR_LIMIT * self.limit).any(1)
        return DynamicsError(
            observation=np.where(known, np.square(off).mean(1), np.nan),
            reward=np.square((rewards - transitions.rewards) / spread(scale.rewards)),
            terminals=transitions.terminals.astype(bool),
            simulated_terminals=terminals,
            valid=stable & ~clipped,
        )

    def step(self, observation: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """One action from where the observation says: next observation, reward, terminal, and if the simulation is stable."""
        data = self.env.data
        position = np.concatenate([np.zeros(self.skipped), observation[: self.positions]])
        self.env.set_state(position, observation[self.positions : self.positions + self.velocities])
        after, reward, terminal, *_ = self.env.step(action)
        # MuJoCo counts what went wrong and, where numbers ran away, puts the body back to its start.
        stable = not any(warning.number for warning in data.warning) and bool(np.isfinite(after).all())
        if not stable:
            self.env.reset()
        return np.nan_to_num(after), float(reward), bool(terminal), stable

    def _steps(self, transitions: Transitions) -> Iterator[tuple[np.ndarray, float, bool, bool]]:
        for observation, action in zip(transitions.observations, transitions.actions, strict=True):
            yield self.step(observation.astype(np.float64), action.astype(np.float64))

    def _probe(self) -> int:
        """How many positions the observation leaves out: the number for which it shows a state that was set."""
        model = self.env.model
        position = self.env.init_qpos + np.linspace(0.01, 0.02, model.nq)
        velocity = np.linspace(0.1, 0.2, model.nv)
        self.env.set_state(position, velocity)
        seen = self.env._get_obs()
        for skipped in range(min(3, model.nq)):
            state = np.concatenate([position[skipped:], velocity])
            if len(seen) >= len(state) and np.allclose(seen[: len(state)], state):
                return skipped
        raise NotMeasurableError(f"the observation of {self.env_id} does not hold the simulator's positions and velocities")

    def _probe_limit(self) -> np.ndarray:
        fast = np.full(self.velocities, 1e3)
        self.env.set_state(self.env.init_qpos, fast)
        seen = self.env._get_obs()[self.positions : self.positions + self.velocities]
        self.env.reset(seed=0)
        return np.where(seen < fast, seen, np.inf)


@contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Without MuJoCo's messages, of which it also leaves a log file in the current folder; `step` counts what matters."""
    try:
        import mujoco
    except ImportError:  # then gymnasium tells what to install
        yield
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
