"""SynthER online: a replay buffer for Stable-Baselines3 that mixes real rows with those of an upsampler which it re-fits.

The algorithm does not change (Lu et al. 2023, section 4.2): SAC, TD3 and DDPG take it as `replay_buffer_class`.
"""

import copy
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.upsampler import Upsampler

COLUMNS = ("observations", "actions", "next_observations", "dones", "rewards")  # in the order of Stable-Baselines3's samples


class UpsampledReplayBuffer(ReplayBuffer):
    """Real rows, and from the first re-fit on a share of synthetic ones in every batch.

    Args:
        upsampler: an untrained upsampler; each re-fit trains a fresh copy on all real rows.
        refit_every: environment steps from one re-fit to the next (SynthER: 10,000).
        fit_steps: training steps of a re-fit (SynthER: 100,000).
        fit_lr: first learning rate of a re-fit (SynthER: 3e-4); few steps want a higher one.
        synthetic_rows: rows drawn after each re-fit, in place of the former ones (SynthER: 1,000,000).
        synthetic_share: share of a batch that is synthetic (SynthER: 0.5).
        upsampler_seed: of fitting and drawing.
        settings: of Stable-Baselines3's own buffer.

    Raises:
        ValueError: the spaces are not flat boxes, or a setting is out of range.

    Example:
        SAC("MlpPolicy", env, gradient_steps=20, replay_buffer_class=UpsampledReplayBuffer,
            replay_buffer_kwargs={"upsampler": Upsampler(), "fit_steps": 5_000})
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *arguments: Any,
        upsampler: Upsampler,
        refit_every: int = 10_000,
        fit_steps: int = 10_000,
        fit_lr: float = 3e-4,
        synthetic_rows: int = 1_000_000,
        synthetic_share: float = 0.5,
        upsampler_seed: int = 0,
        **settings: Any,
    ):
        for space in (observation_space, action_space):
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                raise ValueError(f"an upsampled buffer needs observations and actions that are flat boxes, got {space}")
        if not 0 <= synthetic_share <= 1 or min(refit_every, fit_steps, synthetic_rows) < 1:
            raise ValueError(
                "synthetic_share must lie in [0, 1], refit_every, fit_steps and synthetic_rows must be at least 1; got "
                f"{synthetic_share}, {refit_every}, {fit_steps}, {synthetic_rows}"
            )
        super().__init__(buffer_size, observation_space, action_space, *arguments, **settings)
        if self.optimize_memory_usage:
            raise ValueError("an upsampled buffer needs next observations: optimize_memory_usage must be False")
        self.upsampler, self.refit_every, self.fit_steps, self.fit_lr = upsampler, refit_every, fit_steps, fit_lr
        self.synthetic_rows, self.synthetic_share, self.upsampler_seed = synthetic_rows, synthetic_share, upsampler_seed
        self.synthetic: Transitions | None = None
        self.refits = self._added = 0

    def add(self, *arguments: Any, **keywords: Any) -> None:
        """Adds a step of every environment; re-fits where the time has come."""
        super().add(*arguments, **keywords)
        before, self._added = self._added, self._added + self.n_envs
        if self._added // self.refit_every > before // self.refit_every:
            self.refit()

    def refit(self) -> None:
        """Fits a fresh upsampler on the real rows, and draws the synthetic ones anew.

        Rows that cannot be diffused (constant ones, say) stop no training: it warns, and the synthetic rows stay as they are.
        """
        upsampler = copy.deepcopy(self.upsampler).to(self.device)
        seed = self.upsampler_seed + self.refits
        try:
            upsampler.fit(self.real(), steps=self.fit_steps, lr=self.fit_lr, seed=seed, progress=False)
        except ValueError as error:
            left = "the last upsampler's rows stay" if self.synthetic is not None else "batches are of real rows alone"
            warnings.warn(f"no upsampler could be fitted after {self._added:,} steps: {error}; {left}", stacklevel=2)
            return
        self.synthetic = upsampler.sample(self.synthetic_rows, seed=seed)
        self.refits += 1

    def real(self) -> Transitions:
        """The real rows. An episode that was cut by time is no terminal."""
        rows = slice(None if self.full else self.pos)
        cut = self.timeouts[rows].astype(bool)
        columns = {
            "observations": self.observations[rows],
            "actions": self.actions[rows],
            "rewards": self.rewards[rows],
            "next_observations": self.next_observations[rows],
            "terminals": self.dones[rows].astype(bool) & ~cut,
            "timeouts": cut,
        }
        return Transitions(**{name: _flat(column) for name, column in columns.items()})

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch whose last rows are synthetic, once there are any."""
        wanted = round(self.synthetic_share * batch_size) if self.synthetic is not None else 0
        if not wanted:
            return super().sample(batch_size, env)
        made = self._synthetic(wanted, env)
        if wanted == batch_size:
            return made
        real = super().sample(batch_size - wanted, env)
        return ReplayBufferSamples(*(torch.cat([getattr(real, name), getattr(made, name)]) for name in COLUMNS))

    def _synthetic(self, rows: int, env: VecNormalize | None) -> ReplayBufferSamples:
        assert self.synthetic is not None
        drawn = self.synthetic[np.random.randint(0, len(self.synthetic), rows)]
        columns = (
            self._normalize_obs(drawn.observations, env),
            drawn.actions,
            self._normalize_obs(drawn.next_observations, env),
            drawn.terminals[:, None].astype(np.float32),
            self._normalize_reward(drawn.rewards[:, None], env),
        )
        return ReplayBufferSamples(*(self.to_torch(np.asarray(column, np.float32)) for column in columns))


def _flat(column: np.ndarray) -> np.ndarray:
    """(steps, environments, ...) to rows."""
    return column.reshape(-1, *column.shape[2:])
