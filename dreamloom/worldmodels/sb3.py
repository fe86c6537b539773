"""Imagined environments for Stable-Baselines3, whose vectorised environments are not Gymnasium's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from dreamloom.worldmodels.imagined import ImaginedVectorEnv


class ImaginedVecEnv(VecEnv):
    """An `ImaginedVectorEnv` as Stable-Baselines3 takes it: `PPO("CnnPolicy", ImaginedVecEnv(64, world="coinrun"))`.

    Args:
        num_envs: copies of the world.
        settings: those of `ImaginedVectorEnv`, without autoreset_mode.
    """

    def __init__(self, num_envs: int, **settings: Any):
        self.env = ImaginedVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **settings)
        self.render_mode = self.env.render_mode
        super().__init__(num_envs, self.env.single_observation_space, self.env.single_action_space)
        self._actions = np.zeros(0)

    def reset(self) -> np.ndarray:
        """First frames (n, h, w, c), under the seeds of the last call of `seed`."""
        frames, _ = self.env.reset(seed=list(self._seeds))
        self._reset_seeds()
        return frames

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Frames, rewards, what ended, and an info for each copy."""
        frames, rewards, terminated, truncated, told = self.env.step(self._actions)
        ended = terminated | truncated
        # Stable-Baselines3 bootstraps where this is set: an end that is both is a terminal.
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(late)} for late in truncated & ~terminated]
        for i, info in enumerate(infos):
            if "uncertainty" in told:
                info["uncertainty"] = float(told["uncertainty"][i])
            if ended[i]:
                info["terminal_observation"] = told["final_obs"][i]
        return frames, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The frames of all copies."""
        return self.env.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, the same for every copy."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute of all copies."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls a method once; every copy is told its result."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No copy has a wrapper of its own."""
        return [False for _ in self._get_indices(indices)]
