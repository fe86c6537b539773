"""A world as an environment: `gymnasium.make_vec("dreamloom/World-v0", ...)` steps many copies in one batch on the device.

What is seen is the world's frame, uint8 (h, w, c). Rewards and endings are those that the world predicts (or that trained
`outcomes`, or a callable, tell from its frames); a rollout is truncated after `horizon` steps. Every copy has a source of
randomness of its own, so that copy i of `reset(seed=s)` is the only copy of `reset(seed=s + i)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dreamloom.worldmodels.bundle import load_world
from dreamloom.worldmodels.outcomes import Outcomes, RewardLabeler, judged
from dreamloom.worldmodels.starts import DataStarts, PromptStarts, StartAt, Starts
from dreamloom.worldmodels.world import Outcome, Sampling, replace_states, select_states

Done = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class ImaginedVectorEnv(VectorEnv):
    """Copies of a world that are stepped together.

    Args:
        num_envs: how many.
        world: a `World`, or what `dreamloom.load_world` loads; the bundled CoinRun by default.
        starts: dataset to draw first frames from; the world's own prompts where None.
        start_at: where in the dataset, see `dreamloom.worldmodels.starts.DataStarts`.
        context: frames that a rollout starts from; as many as the world's prompts have by default.
        curriculum: for `backward` starts, the steps (of all copies) until they are drawn from whole episodes.
        horizon: steps after which a rollout is truncated; None for never.
        outcomes: heads that tell rewards and endings, or their checkpoint; by default those that a world has.
        rewards: a callable that tells rewards from frames instead, see `dreamloom.worldmodels.outcomes.RewardLabeler`.
        penalty: how much of its uncertainty is taken off each reward (as in MOPO, Yu et al. 2020).
        steps: of the sampler, a frame; the world's own where None.
        temperature: of the sampler; likewise.
        autoreset_mode: what follows the end of a rollout, as in Gymnasium: `NextStep`, `SameStep` or `Disabled`.
        device: where a world that is loaded computes; "auto" is a GPU if there is one.
        render_mode: None or rgb_array.

    `info["uncertainty"]` (num_envs,) float32 says how unsure the world was of each new frame, where it tells.

    Raises:
        ValueError: a setting is out of range, or the dataset does not fit the world.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        world: Any = "coinrun",
        starts: str | Path | None = None,
        start_at: StartAt = "uniform",
        context: int | None = None,
        curriculum: int = 100_000,
        horizon: int | None = 64,
        outcomes: str | Path | Outcomes | None = None,
        rewards: RewardLabeler | None = None,
        penalty: float = 0.0,
        steps: int | None = None,
        temperature: float | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        device: str = "auto",
        render_mode: str | None = None,
    ):
        if num_envs < 1 or (horizon is not None and horizon < 1) or curriculum < 1:
            raise ValueError(f"num_envs, horizon and curriculum must be at least 1: {num_envs}, {horizon}, {curriculum}")
        if starts is None and (start_at != "uniform" or context is not None):
            raise ValueError("start_at and context choose from a dataset: give `starts`")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.world = judged(load_world(world, device=device) if isinstance(world, str | Path) else world, outcomes, rewards)
        self.starts: Starts = PromptStarts(self.world.prompts)
        if starts is not None:
            self.starts = DataStarts(starts, self.world, at=start_at, length=context)
        self.num_envs, self.horizon, self.penalty, self.curriculum = num_envs, horizon, penalty, curriculum
        self.sampling, self.autoreset_mode = Sampling(steps, temperature), AutoresetMode(autoreset_mode)
        c, h, w = self.world.frame_shape
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (h, w, c), np.uint8)
        self.single_action_space = self.world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": round(self.world.fps),
            "autoreset_mode": self.autoreset_mode,
        }
        self.generators: list[torch.Generator] = []
        self.state: Any = None
        self.taken = 0  # steps of all copies since the start

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts all copies, or those of the mask `options["reset_mask"]`; see `gymnasium.vector.VectorEnv.reset`.

        Args:
            seed: copy i gets seed + i; or one seed each. Without one, randomness goes on where it was.
            options: see above.
        """
        super().reset(seed=seed if isinstance(seed, int) else None)
        self._seed(seed)
        mask = np.ones(self.num_envs, bool) if options is None else options.get("reset_mask", np.ones(self.num_envs, bool))
        if self.state is None:
            if not mask.all():
                raise ValueError("the first reset must be of all environments")
            self.state = self.world.reset(self.starts.draw(self.generators))
            self._ages, self._ended = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        else:
            self._begin(np.flatnonzero(mask))
        return self._frames(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps all copies by one frame; see `gymnasium.vector.VectorEnv.step`.

        Raises:
            ValueError: before the first reset, or for actions that are none of the action space.
        """
        if self.state is None:
            raise ValueError("reset the environment before its first step")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ValueError(f"environments {np.flatnonzero(self._ended).tolist()} have ended: reset them first")
        actions, resting = np.asarray(actions), self._ended
        if actions.shape != self.action_space.shape:
            raise ValueError(f"need actions of shape {self.action_space.shape}, got {actions.shape}")
        rewards, terminated, truncated, unsure = self._play(np.flatnonzero(~resting), actions)
        if resting.any():  # only of NextStep
            self._begin(np.flatnonzero(resting))
        self._ended = terminated | truncated
        infos: dict[str, Any] = {}
        if not np.isnan(unsure).all():
            infos = {"uncertainty": np.nan_to_num(unsure), "_uncertainty": ~np.isnan(unsure)}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._ended.any():
            infos = self._begin_at_once(infos)
        return self._frames(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """The frames of all copies, where render_mode is rgb_array."""
        return tuple(self._frames()) if self.render_mode == "rgb_array" else None

    def _play(self, rows: np.ndarray, actions: np.ndarray) -> Done:
        """Rewards, terminations, truncations and uncertainties (n,), 0 or NaN for copies that do not play."""
        rewards, unsure = np.zeros(self.num_envs), np.full(self.num_envs, np.nan, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        if not len(rows):
            return rewards, terminated, truncated, unsure
        some = torch.from_numpy(rows)
        everyone = len(rows) == self.num_envs
        state = self.state if everyone else select_states(self.state, some)
        taken = torch.from_numpy(np.ascontiguousarray(actions[rows]))
        state, outcome = self.world.step(state, taken, [self.generators[row] for row in rows], self.sampling)
        self.state = state if everyone else replace_states(self.state, some, state)
        self._ages[rows] += 1
        self.taken += len(rows)
        rewards[rows], terminated[rows], unsure[rows] = self._told(outcome, len(rows))
        truncated[rows] = ~terminated[rows] & (self.horizon is not None and self._ages[rows] >= self.horizon)
        return rewards, terminated, truncated, unsure

    def _told(self, outcome: Outcome, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, endings and uncertainties (b,); 0, False and NaN where the world does not tell."""
        rewards = np.zeros(b) if outcome.reward is None else outcome.reward.cpu().numpy()
        ended = np.zeros(b, bool) if outcome.terminal is None else outcome.terminal.cpu().numpy()
        if outcome.uncertainty is None:
            if self.penalty:
                raise ValueError(f"penalty {self.penalty}: {self.world.name} does not tell how unsure it is")
            return rewards, ended, np.full(b, np.nan)
        unsure = outcome.uncertainty.cpu().numpy()
        return rewards - self.penalty * unsure, ended, unsure

    def _begin(self, rows: np.ndarray) -> None:
        self.starts.progress = min(1.0, self.taken / self.curriculum)
        new = self.world.reset(self.starts.draw([self.generators[row] for row in rows]))
        self.state = new if len(rows) == self.num_envs else replace_states(self.state, torch.from_numpy(rows), new)
        self._ages[rows], self._ended[rows] = 0, False

    def _begin_at_once(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's SameStep: what ended begins anew, and its last frame is told beside."""
        rows, last = np.flatnonzero(self._ended), self._frames()
        final: dict[str, Any] = {}
        for row in rows:
            told = {"uncertainty": infos["uncertainty"][row]} if "uncertainty" in infos else {}
            final = self._add_info(final, {"final_obs": last[row], "final_info": told}, int(row))
        self._begin(rows)
        return infos | final

    def _seed(self, seed: int | Sequence[int | None] | None) -> None:
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise ValueError(f"need one seed, or one for each of {self.num_envs} environments, got {len(seeds)}")
        if not self.generators:
            self.generators = [torch.Generator() for _ in seeds]
            seeds = [int(np.random.SeedSequence().generate_state(1)[0]) if one is None else one for one in seeds]
        for generator, one in zip(self.generators, seeds, strict=True):
            if one is not None:
                generator.manual_seed(one)

    def _frames(self) -> np.ndarray:
        frame: Tensor = self.state.frame
        return frame.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class ImaginedEnv(gymnasium.Env):
    """One world as a plain `gymnasium.Env`; takes what `ImaginedVectorEnv` takes, without num_envs and autoreset_mode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(self, *, world: Any = "coinrun", render_mode: str | None = None, **settings: Any):
        self.one = ImaginedVectorEnv(1, world=world, autoreset_mode=AutoresetMode.DISABLED, **settings)
        self.metadata = {**type(self).metadata, "render_fps": self.one.metadata["render_fps"]}
        self.observation_space, self.action_space = self.one.single_observation_space, self.one.single_action_space
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts anew; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        frames, _ = self.one.reset(seed=seed)
        return frames[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One frame; see `gymnasium.Env.step`."""
        frames, rewards, terminated, truncated, infos = self.one.step(np.asarray(action)[None])
        info = {"uncertainty": float(infos["uncertainty"][0])} if "uncertainty" in infos else {}
        return frames[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        """The frame, where render_mode is rgb_array."""
        return self.one._frames()[0] if self.render_mode == "rgb_array" else None
