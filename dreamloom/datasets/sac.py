"""Who acts while replay is recorded: uniform actions, or SAC that learns from what it sees, and can stop and go on."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np

from dreamloom.datasets.atomic import atomic_path
from dreamloom.datasets.policies import random
from dreamloom.datasets.recorder import Recorder
from dreamloom.nn.threads import one_thread


class Random:
    """Uniform actions; learns nothing."""

    def __init__(self, env: gymnasium.Env) -> None:
        self._space = env.action_space

    def threads(self) -> AbstractContextManager[None]:
        """Within it the actor computes."""
        return nullcontext()

    def start(self, seed: np.random.SeedSequence) -> None:
        """Begins a segment, with randomness of its own."""
        self._draw = random(1, self._space, np.random.default_rng(seed))

    def act(self, observation: np.ndarray, row: int) -> np.ndarray:
        return self._draw(observation[None], np.zeros(1, bool))[0]

    def learn(self, row: int, transition: dict[str, Any]) -> None:
        """Takes one row in."""

    def resume(self, recorder: Recorder) -> None:
        """Goes back to where a killed recording was."""

    def save(self, recorder: Recorder, segment: int) -> None:
        """Keeps all that `resume` needs to begin this segment."""

    def finish(self, recorder: Recorder) -> None:
        """Clears what `save` kept."""


class Sac(Random):
    """Stable-Baselines3's SAC (Haarnoja et al. 2018), given one row at a time.

    Its own loop, `learn`, draws from random streams that cannot be put into a file without pickle; this one asks its public
    parts for an action and for updates, in the same order.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        *,
        rows: int,
        seed: int,
        updates_per_step: float,
        learning_starts: int,
        learning_rate: float,
        batch_size: int,
        width: int,
        device: str,
    ) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import Logger

        super().__init__(env)
        self._updates_per_step, self._learning_starts, self._batch_size = updates_per_step, learning_starts, batch_size
        # Fused Adam: a sixth more updates a second on one CPU core.
        networks = {"net_arch": [width, width], "optimizer_kwargs": {"fused": True}}
        self.model = SAC("MlpPolicy", env, learning_rate, rows, policy_kwargs=networks, seed=seed, device=device)
        self.model.set_logger(Logger(None, []))

    def threads(self) -> AbstractContextManager[None]:
        return one_thread()

    def start(self, seed: np.random.SeedSequence) -> None:
        super().start(seed)
        self.model.set_random_seed(int(seed.generate_state(1)[0]) >> 1)

    def act(self, observation: np.ndarray, row: int) -> np.ndarray:
        if row < self._learning_starts:
            return super().act(observation, row)
        return self.model.predict(observation)[0]

    def learn(self, row: int, transition: dict[str, Any]) -> None:
        self._remember(transition)
        before, after = (int(rows * self._updates_per_step) for rows in (row, row + 1))
        if row >= self._learning_starts and after > before:
            self.model.train(after - before, self._batch_size)

    def resume(self, recorder: Recorder) -> None:
        if not recorder.rows_done:
            return
        self._load(_checkpoint(recorder, recorder.segments.start))
        with h5py.File(recorder.part, "r", locking=False) as file:
            names = [name for name in file if name != "timeouts"]
            columns = [file[name][: recorder.rows_done] for name in names]
        for row in zip(*columns, strict=True):
            self._remember(dict(zip(names, row, strict=True)))

    def save(self, recorder: Recorder, segment: int) -> None:
        import torch

        with atomic_path(_checkpoint(recorder, segment)) as temporary:
            torch.save({**self.model.get_parameters(), "log_ent_coef": self._temperature()}, temporary)
        # `commit` waits for the one before, so the journal names this checkpoint or its predecessor.
        _checkpoint(recorder, segment - 2).unlink(missing_ok=True)

    def finish(self, recorder: Recorder) -> None:
        for segment in range(len(recorder.bounds)):
            _checkpoint(recorder, segment).unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        import torch

        if not path.exists():
            raise ValueError(f"{path}: SAC's weights are missing, so the recording cannot go on; delete {path.stem} too")
        parameters = torch.load(path, map_location=self.model.device, weights_only=True)
        self._temperature().copy_(parameters.pop("log_ent_coef"))
        self.model.set_parameters(parameters, device=self.model.device)

    def _temperature(self) -> Any:
        """Logarithm of the entropy coefficient, which SB3 keeps outside its networks."""
        assert self.model.log_ent_coef is not None
        return self.model.log_ent_coef.detach()

    def _remember(self, row: dict[str, Any]) -> None:
        """A timeout is no end: its row holds the true next observation, so the target bootstraps there."""
        assert self.model.replay_buffer is not None
        action = self.model.policy.scale_action(row["actions"])
        reward, terminal = np.array([row["rewards"]]), np.array([row["terminals"]])
        self.model.replay_buffer.add(row["observations"], row["next_observations"], action, reward, terminal, [{}])


def _checkpoint(recorder: Recorder, segment: int) -> Path:
    return recorder.part.with_name(f"{recorder.part.name}.{segment}.pt")
