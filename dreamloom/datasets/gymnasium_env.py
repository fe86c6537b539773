"""Recording any Gymnasium environment that shows RGB pictures, as its observations or by rendering."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from tqdm import tqdm

from dreamloom import __version__
from dreamloom.datasets.policies import Mixture, parse_mixture, random, sticky
from dreamloom.datasets.recorder import Column, Recorder, split_rows
from dreamloom.datasets.resize import Crop, square
from dreamloom.datasets.shown import PlainSteps, Screen, shown_by

_CHUNK = 64  # rows that are gathered before they are written


def collect_gymnasium(
    *,
    env: str,
    steps: int,
    out: Path,
    size: int = 64,
    crop: Crop = "stretch",
    picture: Literal["auto", "observation", "render"] = "auto",
    env_kwargs: dict[str, Any] | None = None,
    policy: str = "sticky",
    seed: int = 0,
    segment: int = 1000,
) -> None:
    """Records a Gymnasium environment to one HDF5 file (the layout is docs/data.md).

    A killed recording goes on where it was when the same command is given again.

    Args:
        env: its id, e.g. CartPole-v1, or module:id where a module must be imported first, e.g. ale_py:ALE/Pong-v5.
        steps: rows to record.
        out: the file to make.
        size: side of the square frames in pixels.
        crop: keep the middle square of a wider picture, stretch it, or pad it with black bars.
        picture: where frames come from; auto takes RGB observations where there are any, and renders otherwise. RGBA is laid on
            black; grey, floats and channels first are converted.
        env_kwargs: given to the environment as they are, e.g. '{"frameskip": 4}'.
        policy: random, sticky (holds actions), module:callable, or a weighted list of these; each segment plays one.
        seed: fixes all that is recorded, as far as the environment follows its seed.
        segment: steps between two points from which a killed recording can go on; the environment is reset there.

    Examples:
        dreamloom collect gymnasium --env CartPole-v1 --steps 20000 --out data/cartpole.hdf5
        dreamloom collect gymnasium --env ale_py:ALE/Pong-v5 --steps 20000 --out data/pong.hdf5

    Raises:
        ValueError: an unknown environment, one without RGB pictures or with other than discrete or bounded continuous
            actions, an unknown policy, or `out` exists.
    """
    for name, value in {"steps": steps, "size": size, "segment": segment}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    mixture = parse_mixture(policy, {"random": random, "sticky": sticky})
    made, show = _make(env, env_kwargs or {}, picture)
    plan = {"steps": steps, "size": size, "crop": crop, "picture": picture, "policy": policy, "seed": seed}
    settings = {"command": "collect gymnasium", "dreamloom": __version__, "env": env, "env_kwargs": env_kwargs, **plan}
    record(made, show, mixture, out, {**settings, "segment": segment}, {"env": env})


def record(
    made: gymnasium.Env,
    show: Callable[[Any], np.ndarray],
    mixture: Mixture,
    out: Path,
    settings: dict[str, Any],
    attrs: dict[str, Any],
    *,
    closing: bool = False,
) -> None:
    """Records an environment, and closes it.

    Args:
        made: the environment; one that has a `level_seed` has it recorded.
        show: turns an observation into the frame to keep.
        mixture: of policies; each segment plays one.
        out: the file to make.
        settings: all that the rows depend on; of these `steps`, `size`, `seed`, `segment` and `crop` are used here.
        attrs: further attributes of the file.
        closing: whether the frame after a segment's last step is kept, in a row without a step (zeros, a timeout, and 1 in
            `infos/last_frame`); then an episode may end nowhere but there.

    Raises:
        ValueError: other than discrete or bounded continuous actions, or `out` exists.
    """
    steps, size, seed, segment = (settings[name] for name in ("steps", "size", "seed", "segment"))
    columns = _columns(made.action_space, size)
    if hasattr(made.unwrapped, "level_seed"):
        columns["infos/level_seed"] = Column(np.int32)
    lowest = _action_start(made)
    attrs = {"fps": _fps(made), "policy_names": mixture.names, **_action_names(made), **attrs}
    attrs |= {"action_start": lowest} if lowest else {}
    made = PlainSteps(made)
    bounds = split_rows(steps, -(-steps // segment))
    if closing:
        columns["infos/last_frame"] = Column(np.uint8)
        bounds = bounds + np.arange(len(bounds))
    with (
        made,
        Recorder(out, columns, bounds, settings=settings, attrs=attrs) as recorder,
        tqdm(total=steps, initial=recorder.rows_done, unit=" steps", desc=str(out)) as progress,
    ):
        for number in recorder.segments:
            start, end = bounds[number : number + 2].tolist()
            play = _play(made, show, mixture, np.random.SeedSequence([seed, number]), end - start, closing)
            for row, block in _blocks(play, start):
                block["actions"] = block["actions"] - lowest if lowest else block["actions"]
                block["observations"] = np.stack([square(frame, size, settings["crop"]) for frame in block["observations"]])
                recorder.write([(name, row, array) for name, array in block.items()])
                progress.update(len(block["rewards"]))
            recorder.commit(number)


def _make(name: str, kwargs: dict[str, Any], picture: str) -> tuple[gymnasium.Env, Callable[[Any], np.ndarray]]:
    """The environment, and what turns an observation into the frame to keep."""
    try:
        env = gymnasium.make(name, **{"render_mode": "rgb_array", **kwargs})
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"--env {name}: {error}") from error
    space, renders = env.observation_space, "rgb_array" in env.metadata.get("render_modes", [])
    seen = _is_rgb(space) or (_may_be_picture(space) and (picture == "observation" or not renders))
    if picture != "render" and seen:
        return env, shown_by(Screen(f"--env {name}", stacked=True), env, render=False)
    if picture == "observation" or not renders:
        raise ValueError(f"--env {name}: observations are {space}, no RGB, and it renders no rgb_array")
    return env, shown_by(Screen(f"--env {name}"), env, render=True)


def _may_be_picture(space: gymnasium.Space) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and len(space.shape) in (2, 3)


def _is_rgb(space: gymnasium.Space) -> bool:
    return isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def _columns(space: gymnasium.Space, size: int) -> dict[str, Column]:
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.is_bounded():
        actions = Column(np.float32, space.shape)
    elif isinstance(space, gymnasium.spaces.Discrete):
        actions = Column(np.int64)
    else:
        raise ValueError(f"actions are {space}; can record Discrete, and Box with one axis and finite bounds")
    return {
        "observations": Column(np.uint8, (size, size, 3)),
        "actions": actions,
        "rewards": Column(np.float32),
        "terminals": Column(np.bool_),
        "timeouts": Column(np.bool_),
        "infos/policy": Column(np.uint8),
    }


def _fps(env: gymnasium.Env) -> float:
    return float(env.metadata.get("render_fps") or 30)


def _action_names(env: gymnasium.Env) -> dict[str, list[str]]:
    """Where the environment tells them, as Atari does."""
    meanings = getattr(env.unwrapped, "get_action_meanings", None)
    if meanings is None or not isinstance(env.action_space, gymnasium.spaces.Discrete):
        return {}
    return {"action_names": [str(name).lower() for name in meanings()]}


def _action_start(env: gymnasium.Env) -> int:
    """What the environment numbers its first discrete action with; in a file they count from 0."""
    return int(env.action_space.start) if isinstance(env.action_space, gymnasium.spaces.Discrete) else 0


def _play(
    env: gymnasium.Env,
    show: Callable[[Any], np.ndarray],
    mixture: Mixture,
    seed: np.random.SeedSequence,
    rows: int,
    closing: bool,
) -> Iterator[dict[str, Any]]:
    """The rows of one segment, from a seeded reset on; the episode that the segment cuts has timed out."""
    env_seed, policy_seed = seed.spawn(2)
    act, (policy,) = mixture.start(1, env.action_space, np.random.default_rng(policy_seed))
    observation, _ = env.reset(seed=int(env_seed.generate_state(1)[0]) >> 1)
    first = True
    for left in reversed(range(rows - closing)):
        row = {"observations": np.array(show(observation)), **_told(env, policy, closing)}
        (action,) = act(row["observations"][None], np.array([first]))
        observation, reward, terminal, truncated, _ = env.step(action)
        first = bool(terminal or truncated)
        timeout = not terminal and (truncated or left == 0) and not closing
        yield {**row, "actions": action, "rewards": reward, "terminals": terminal, "timeouts": timeout}
        assert not closing or not (terminal or (first and left)), "an episode ends with its segment"
        if first and left:
            observation, _ = env.reset()
    if closing:
        none = {"actions": np.zeros_like(action) + _action_start(env), "rewards": 0.0, "terminals": False, "timeouts": True}
        yield {"observations": np.array(show(observation)), **_told(env, policy, closing), **none, "infos/last_frame": 1}


def _told(env: gymnasium.Env, policy: Any, closing: bool) -> dict[str, Any]:
    """The columns `infos/*` of a row with a step."""
    level = {"infos/level_seed": env.unwrapped.level_seed} if hasattr(env.unwrapped, "level_seed") else {}
    return {"infos/policy": policy, **level, **({"infos/last_frame": 0} if closing else {})}


def _blocks(rows: Iterator[dict[str, Any]], start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Gathers rows into columns: (first row, name -> array)."""
    for block in iter(lambda: list(islice(rows, _CHUNK)), []):
        yield start, {name: np.array([row[name] for row in block]) for name in block[0]}
        start += len(block)
