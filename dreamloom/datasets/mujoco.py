"""Recording replay of MuJoCo, or of any environment with flat observations: all that SAC sees while it learns from scratch.

The recording is cut into segments (datasets/recorder.py). SAC's randomness is drawn anew from the seed and the segment's
number, its buffer is the recorded rows themselves, and its weights and optimisers are saved between segments: so a killed
recording goes on learning where it was, and ends in the same bytes as an uninterrupted one.
"""

from collections import deque
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from tqdm import tqdm

from dreamloom import __version__
from dreamloom.datasets.recorder import Column, Recorder, split_rows
from dreamloom.datasets.sac import Random, Sac
from dreamloom.datasets.shown import PlainSteps


def collect_mujoco(
    *,
    env: str,
    steps: int,
    out: Path,
    policy: Literal["sac", "random"] = "sac",
    env_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    updates_per_step: float = 1.0,
    learning_starts: int = 5000,
    learning_rate: float = 3e-4,
    batch_size: int = 256,
    width: int = 256,
    device: str = "cpu",
    segment: int = 10_000,
) -> None:
    """Records a replay: SAC learning from scratch, its whole buffer in order of time (the layout is docs/data.md).

    SAC is Stable-Baselines3's, with its published settings where no option is given. A killed recording goes on where it
    was when the same command is given again.

    Args:
        env: any Gymnasium environment with flat observations and bounded continuous actions, e.g. HalfCheetah-v5.
        steps: rows to record.
        out: the file to make.
        policy: sac learns while it records; random draws uniform actions.
        env_kwargs: given to the environment as they are, e.g. '{"ctrl_cost_weight": 0.5}'.
        seed: fixes all that is recorded.
        updates_per_step: gradient updates of SAC for each row; 0.5 makes one every other row.
        learning_starts: rows with random actions before SAC acts and learns.
        learning_rate: of SAC's three optimisers (Adam).
        batch_size: rows of the buffer that one update learns from.
        width: units in both hidden layers of SAC's actor and critics.
        device: where SAC computes.
        segment: steps between two points from which a killed recording can go on; the environment is reset there.

    Examples:
        dreamloom collect mujoco --env HalfCheetah-v5 --steps 300000 --out data/cheetah.hdf5
        dreamloom collect mujoco --env Hopper-v5 --steps 20000 --policy random --out data/hopper_random.hdf5

    Raises:
        ValueError: an unknown environment, one with other observations or actions, or `out` exists.
    """
    for name, value in {"steps": steps, "segment": segment, "batch-size": batch_size, "width": width}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    if updates_per_step < 0 or learning_starts < 0:
        raise ValueError("--updates-per-step and --learning-starts must not be negative")
    made = _make(env, env_kwargs or {})
    settings: dict[str, Any] = {"command": "collect mujoco", "dreamloom": __version__, "env": env, "env_kwargs": env_kwargs}
    settings |= {"steps": steps, "policy": policy, "seed": seed, "segment": segment}
    actor = Random(made)
    if policy == "sac":
        options: dict[str, Any] = {"updates_per_step": updates_per_step, "learning_starts": learning_starts}
        options |= {"learning_rate": learning_rate, "batch_size": batch_size, "width": width, "device": device}
        actor, settings = Sac(made, rows=steps, seed=seed, **options), settings | options
    attrs = {"env": env, "policy": policy, "fps": float(made.metadata.get("render_fps") or 30), "versions": _versions()}
    bounds = split_rows(steps, -(-steps // segment))
    with (
        made,
        actor.threads(),
        Recorder(out, _columns(made), bounds, settings=settings, attrs=attrs) as recorder,
        tqdm(total=steps, initial=recorder.rows_done, unit=" steps", desc=str(out), mininterval=1.0) as progress,
    ):
        actor.resume(recorder)
        show = _running_return(progress)
        for number in recorder.segments:
            start, end = bounds[number : number + 2].tolist()
            block = _play(made, actor, np.random.SeedSequence([seed, number]), range(start, end), show)
            recorder.write([(name, start, array) for name, array in block.items()])
            actor.save(recorder, number + 1)  # before the journal knows of this segment
            recorder.commit(number)
    actor.finish(recorder)


def _make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env:
    try:
        env = gymnasium.make(name, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ValueError(f"--env {name}: {error} (pip install 'dreamloom[mujoco]' brings MuJoCo)") from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"--env {name}: {error}") from error
    if not _is_flat(env.observation_space):
        raise ValueError(f"--env {name}: observations are {env.observation_space}; can record Box with one axis")
    if not _is_flat(env.action_space) or not env.action_space.is_bounded():  # type: ignore[attr-defined]
        raise ValueError(f"--env {name}: actions are {env.action_space}; can record Box with one axis and finite bounds")
    return PlainSteps(env)


def _is_flat(space: gymnasium.Space) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1


def _columns(env: gymnasium.Env) -> dict[str, Column]:
    return {
        "observations": Column(np.float32, env.observation_space.shape or ()),
        "actions": Column(np.float32, env.action_space.shape or ()),
        "rewards": Column(np.float32),
        "next_observations": Column(np.float32, env.observation_space.shape or ()),
        "terminals": Column(np.bool_),
        "timeouts": Column(np.bool_),
    }


def _versions() -> dict[str, str]:
    """Of the packages whose versions decide what a recording holds."""
    found = {}
    for name in ("gymnasium", "mujoco", "stable-baselines3", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _play(
    env: gymnasium.Env, actor: Random, seed: np.random.SeedSequence, rows: range, show: Callable[[float, bool], None]
) -> dict[str, np.ndarray]:
    """The rows of one segment, from a seeded reset on; the episode that the segment cuts has timed out."""
    env_seed, actor_seed = seed.spawn(2)
    actor.start(actor_seed)
    block = {name: np.empty((len(rows), *column.shape), column.dtype) for name, column in _columns(env).items()}
    observation, _ = env.reset(seed=int(env_seed.generate_state(1)[0]) >> 1)
    for place, row in enumerate(rows):
        observation = observation.astype(np.float32)
        action = np.asarray(actor.act(observation, row), np.float32)
        following, reward, terminal, truncated, _ = env.step(action)
        ended = bool(terminal or truncated)
        transition = {
            "observations": observation,
            "actions": action,
            "rewards": np.float32(reward),
            "next_observations": following.astype(np.float32),
            "terminals": bool(terminal),
            "timeouts": not terminal and (truncated or row == rows[-1]),
        }
        for name, value in transition.items():
            block[name][place] = value
        actor.learn(row, transition)
        show(float(reward), ended)
        observation = env.reset()[0] if ended else following
    return block


def _running_return(progress: tqdm) -> Callable[[float, bool], None]:
    """Moves the bar by a row, and shows the mean return of the last ten episodes that came to their end."""
    returns: deque[float] = deque(maxlen=10)
    current = 0.0

    def show(reward: float, ended: bool) -> None:
        nonlocal current
        current += reward
        if ended:
            returns.append(current)
            current = 0.0
            progress.set_postfix_str(f"return {np.mean(returns):.0f}", refresh=False)
        progress.update()

    return show
