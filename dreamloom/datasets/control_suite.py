"""The DeepMind Control Suite (Tassa et al. 2018) from pixels as a Gymnasium environment, with distractors.

The distractors are those of the Distracting Control Suite (Stone et al. 2021), as V-D4RL uses them: another background
instead of the sky, and other colours, both still for an episode. What an episode looks like is a level: the same seed looks the
same, so ranges of levels are training and held-out appearances, as in Procgen.
"""

import os
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from PIL import Image

from dreamloom.datasets.media import find_pictures
from dreamloom.datasets.pictures import decode_picture

Task = Literal["cheetah-run", "walker-walk", "humanoid-walk"]
Distraction = Literal["none", "easy", "medium", "hard"]

# Stone et al. 2021: how far a colour may move (of 1), and how many backgrounds there are.
COLOUR_SCALE = {"none": 0.0, "easy": 0.1, "medium": 0.2, "hard": 0.3}
BACKGROUNDS: dict[str, int | None] = {"none": 0, "easy": 4, "medium": 8, "hard": None}
_SKY = -1  # in a rendered segmentation
_CELLS = 6  # along each side of a cloud


class ControlSuite(gymnasium.Env):
    """One task, seen by its first camera.

    Args:
        task: domain and task.
        size: side of the frames in pixels.
        action_repeat: steps of the simulator for one action; V-D4RL's is 2.
        distraction: how much changes from level to level; "none" is the task as it is.
        levels: first and one-past-last level seed; each episode draws one.
        backgrounds: a folder of pictures (easy uses the first 4, medium 8, hard all); None for clouds of colours.

    Raises:
        ValueError: dm_control is missing, rendering fails, or the folder holds no picture.
    """

    def __init__(
        self,
        task: Task,
        *,
        size: int = 84,
        action_repeat: int = 2,
        distraction: Distraction = "none",
        levels: tuple[int, int] = (0, 1),
        backgrounds: Path | None = None,
    ) -> None:
        self.task, self.size, self.action_repeat = task, size, action_repeat
        self.distraction, self.levels = distraction, levels
        self.level_seed = levels[0]
        self._files = _pictures(backgrounds)[: BACKGROUNDS[distraction]] if backgrounds else []
        self._suite = _loaded(task)
        low, high = (np.asarray(bound, np.float32) for bound in _bounds(self._suite))
        self.action_space = gymnasium.spaces.Box(low, high)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.metadata = {"render_fps": 1 / (self._suite.control_timestep() * action_repeat), "render_modes": ["rgb_array"]}
        self.render_mode = "rgb_array"
        self._colours = np.array(self._suite.physics.model.mat_rgba)
        self._background: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:  # dm_control's tasks draw from a generator of their own
            self._suite.task._random = np.random.RandomState(self.np_random.integers(2**31))
        self._suite.reset()
        self.level_seed = int(self.np_random.integers(*self.levels))
        self._dress(np.random.default_rng([self.level_seed, 0]))
        return self.render(), {"level_seed": self.level_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.action_repeat):
            step = self._suite.step(action)
            total += step.reward or 0.0
            if step.last():
                break
        terminal = bool(step.last() and step.discount == 0)
        return self.render(), total, terminal, bool(step.last()) and not terminal, {"level_seed": self.level_seed}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """The frame (size, size, 3) uint8 as it is now."""
        camera = {"height": self.size, "width": self.size, "camera_id": 0}
        frame = np.array(self._suite.physics.render(**camera))
        if self._background is not None:
            sky = self._suite.physics.render(**camera, segmentation=True)[..., 0] == _SKY
            frame[sky] = self._background[sky]
        return frame

    def close(self) -> None:
        self._suite.close()

    def _dress(self, rng: np.random.Generator) -> None:
        """Colours and background of a level."""
        scale = COLOUR_SCALE[self.distraction]
        colours = self._colours.copy()
        if scale:
            colours[:, :3] = (colours[:, :3] + rng.uniform(-scale, scale, (len(colours), 3))).clip(0, 1)
            self._background = self._drawn_background(rng)
        self._suite.physics.model.mat_rgba[:] = colours

    def _drawn_background(self, rng: np.random.Generator) -> np.ndarray:
        count = BACKGROUNDS[self.distraction]
        if self._files:
            picture = Image.fromarray(decode_picture(self._files[rng.integers(len(self._files))]))
        else:
            number = int(rng.integers(count or 2**31))
            cloud = np.random.default_rng([number, 1]).integers(0, 256, (_CELLS, _CELLS, 3), np.uint8)
            picture = Image.fromarray(cloud)
        return np.asarray(picture.resize((self.size, self.size), Image.Resampling.BICUBIC))


def _pictures(folder: Path) -> list[Path]:
    files = find_pictures(folder)
    if not files:
        raise ValueError(f"--backgrounds {folder}: no picture is in it")
    return files


def _loaded(task: str) -> Any:
    """The task, once a frame has been rendered: where that is impossible it shows here, not after a file was begun."""
    os.environ.setdefault("MUJOCO_GL", "egl")  # without a display
    try:
        from dm_control import suite
    except ImportError as error:
        if error.name and not error.name.startswith("dm_control"):
            raise
        raise ValueError(
            f"dm_control is missing ({error}); pip install 'dreamloom[dmc]' in an environment of its own, for its older MuJoCo"
        ) from error
    except (AttributeError, RuntimeError) as error:  # of OpenGL's bindings, which look for a library while they are imported
        raise ValueError(
            f"MuJoCo cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); try egl or osmesa"
        ) from error
    domain, name = task.split("-")
    loaded = suite.load(domain, name, task_kwargs={"random": 0})
    try:
        loaded.physics.render(height=8, width=8, camera_id=0)
    except Exception as error:  # the drivers' errors have no common type
        raise ValueError(
            f"MuJoCo cannot render with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}); try egl or osmesa"
        ) from error
    return loaded


def _bounds(suite: Any) -> tuple[np.ndarray, np.ndarray]:
    spec = suite.action_spec()
    return np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
