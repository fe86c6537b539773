"""PPO on Procgen (Cobbe et al. 2020): Stable-Baselines3's, with the published settings and the IMPALA network or a small one.

As in datasets/mujoco.py its loop is ours: it is asked for actions and for updates, its randomness is drawn anew in each
segment, and its weights, optimiser and reward scale are saved between segments, without pickle.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.policies import Act
from dreamloom.nn.encoders import Impala, Nature

# Cobbe et al. 2020, appendix D.
_SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-4, "n_epochs": 3, "gamma": 0.999, "gae_lambda": 0.95, "clip_range": 0.2,
    "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5,
}  # fmt: skip
Network = Literal["impala", "nature"]
_ROLLOUT = 256  # steps of each environment between updates
_MINIBATCHES = 8
_REWARD_CLIP = 10.0
_RECENT = 100  # episodes whose mean return tells how good an agent is


class Extractor(BaseFeaturesExtractor):
    """A network and its hidden layer of 256."""

    def __init__(self, observation_space: gymnasium.Space, network: Network):
        assert observation_space.shape is not None
        encoder = {"impala": Impala, "nature": Nature}[network](observation_space.shape)
        super().__init__(observation_space, encoder.latent_size)
        self.encoder, self.trunk = encoder, encoder.trunk()

    def forward(self, observations: Tensor) -> Tensor:
        return self.trunk(self.encoder(observations))


class _Spaces(gymnasium.Env):
    """Tells Stable-Baselines3 what is seen and done; it is never stepped."""

    observation_space = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)
    action_space = gymnasium.spaces.Discrete(15)


class Learner:
    """PPO that acts in all lanes of a recording and learns from them.

    Args:
        lanes: environments that are stepped together.
        device: where it computes.
        seed: of its weights.
        network: that looks at frames.
    """

    def __init__(self, lanes: int, *, device: str, seed: int, network: Network = "impala") -> None:
        networks = {
            "features_extractor_class": Extractor,
            "features_extractor_kwargs": {"network": network},
            "net_arch": [],
            "optimizer_kwargs": {"eps": 1e-5},
        }
        env = DummyVecEnv([_Spaces] * lanes)
        self.model = PPO("CnnPolicy", env, n_steps=2, policy_kwargs=networks, device=device, seed=seed, **_SETTINGS)
        self.model.set_logger(Logger(None, []))
        self.scale = RunningMeanStd()
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.lanes, self.network = lanes, network

    def start(self, seed: np.random.SeedSequence, length: int) -> Act:
        """Begins a segment of so many steps, with randomness of its own; returns what acts in it."""
        self.model.set_random_seed(int(seed.generate_state(1)[0]) >> 1)
        # Rollouts of equal length that leave out as few steps as possible at the segment's end.
        rollout = length // max(1, round(length / _ROLLOUT))
        model = self.model
        model.n_steps, model.batch_size = rollout, max(2, rollout * self.lanes // _MINIBATCHES)
        spaces = (model.observation_space, model.action_space)
        model.rollout_buffer = RolloutBuffer(
            rollout, *spaces, model.device, gae_lambda=model.gae_lambda, gamma=model.gamma, n_envs=self.lanes
        )
        self._discounted = self._returns = np.zeros(self.lanes)
        return self.act

    def act(self, frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Actions (lanes,) for frames (lanes, h, w, 3); learns beforehand where a rollout is full."""
        seen = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
        self.update(frames, first)
        with torch.no_grad():
            actions, values, log_probs = self.model.policy(torch.from_numpy(seen).to(self.model.device))
        self._step = (seen, actions.cpu().numpy(), first.astype(np.float32), values, log_probs)
        return self._step[1]

    def reward(self, rewards: np.ndarray, first: np.ndarray) -> None:
        """Takes in what came of the actions, and where new episodes began.

        Rewards are divided by the deviation of their running discounted sum, as Procgen's PPO does.
        """
        self._discounted = self._discounted * self.model.gamma + rewards
        self.scale.update(self._discounted)
        scaled = np.clip(rewards / np.sqrt(self.scale.var + 1e-8), -_REWARD_CLIP, _REWARD_CLIP)
        seen, actions, began, values, log_probs = self._step
        self.model.rollout_buffer.add(seen, actions, scaled, began, values, log_probs)
        self._returns = self._returns + rewards
        self.recent.extend(self._returns[first].tolist())
        self._discounted, self._returns = self._discounted * ~first, self._returns * ~first

    def update(self, frames: np.ndarray, first: np.ndarray) -> None:
        """Learns where a rollout is full; the frames are those that followed it."""
        buffer = self.model.rollout_buffer
        if not buffer.full:
            return
        seen = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2))).to(self.model.device)
        with torch.no_grad():
            values = self.model.policy.predict_values(seen)
        buffer.compute_returns_and_advantage(values, first)
        self.model.train()
        buffer.reset()

    @property
    def mean_return(self) -> float:
        """Of the last hundred episodes that came to their end; NaN before there is one."""
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def save(self, path: Path) -> None:
        """Keeps all that `load` needs to go on."""
        scale = [float(self.scale.mean), float(self.scale.var), float(self.scale.count)]
        state = {"policy": self.model.policy.state_dict(), "optimizer": self.model.policy.optimizer.state_dict()}
        with atomic_path(path) as temporary:
            torch.save({**state, "scale": scale, "recent": list(self.recent)}, temporary)

    def load(self, path: Path) -> None:
        """Goes on from where `save` was called.

        Raises:
            ValueError: the file is missing.
        """
        if not path.exists():
            raise ValueError(f"{path}: PPO's weights are missing, so the recording cannot go on; delete {path.stem} too")
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.policy.load_state_dict(state["policy"])
        self.model.policy.optimizer.load_state_dict(state["optimizer"])
        mean, var, count = state["scale"]
        self.scale.mean, self.scale.var, self.scale.count = np.array(mean), np.array(var), count
        self.recent.extend(state["recent"])

    def keep(self, path: Path, **notes: Any) -> None:
        """Writes the agent as it is now, with what is known of it, for recordings of its own."""
        weights = {name: value.cpu().contiguous() for name, value in weights_of(self.model.policy).items()}
        mean_return = self.mean_return if self.recent else None  # JSON has no NaN
        told = {"algorithm": "ppo", "network": self.network, "mean_return": mean_return, **notes}
        with atomic_path(path) as temporary:
            save_file(weights, temporary, {"dreamloom": json.dumps(told)})


def weights_of(policy: ActorCriticPolicy) -> dict[str, Tensor]:
    """All weights, each once: Stable-Baselines3 lists the network that actor and critic share three times."""
    held = policy.state_dict()
    return {name: value for name, value in held.items() if not name.startswith(("pi_features", "vf_features"))}
