"""Recording the DeepMind Control Suite from pixels, with V-D4RL's settings and distractors."""

from importlib.metadata import version
from pathlib import Path
from typing import get_args

from dreamloom import __version__
from dreamloom.datasets.control_suite import ControlSuite, Distraction, Task
from dreamloom.datasets.gymnasium_env import record
from dreamloom.datasets.policies import parse_mixture, random, sticky
from dreamloom.datasets.procgen import parse_levels

_STEPS = 1000  # of the simulator, in an episode


def collect_dmc(
    *,
    task: Task,
    steps: int,
    out: Path,
    size: int = 84,
    distraction: Distraction = "none",
    levels: str = "0:200",
    backgrounds: Path | None = None,
    policy: str = "random",
    action_repeat: int = 2,
    seed: int = 0,
    segment: int | None = None,
) -> None:
    """Records the DeepMind Control Suite from pixels to one HDF5 file (the layout is docs/data.md).

    A killed recording goes on where it was when the same command is given again. Rendering is slow without a graphics card:
    26 to 30 frames a second of a core's time, with distractors or without, so 100,000 steps take an hour. It needs no display:
    MUJOCO_GL chooses how (egl by default, or osmesa).

    Args:
        task: cheetah-run, walker-walk or humanoid-walk.
        steps: to record; each episode has one row more, for the frame after its last step, as V-D4RL's 501 frames.
        out: the file to make.
        size: side of the frames in pixels; V-D4RL's are 84 and 64.
        distraction: none, easy, medium or hard: other colours and backgrounds, still for an episode (Stone et al. 2021).
        levels: seeds LO:HI of what episodes look like, HI excluded; disjoint ranges make training and held-out sets.
        backgrounds: a folder of pictures instead of clouds of colours; easy uses the first 4, medium 8, hard all.
        policy: random, sticky (holds actions), module:callable, or a weighted list of these; each segment plays one.
        action_repeat: steps of the simulator for one action; episodes have 1000 of them.
        seed: fixes all that is recorded.
        segment: steps between two points from which a killed recording can go on; an episode, or less to cut it short.

    Examples:
        dreamloom collect dmc --task walker-walk --steps 5000 --out data/walker.hdf5
        dreamloom collect dmc --task cheetah-run --steps 5000 --distraction hard --levels 200:250 --out data/heldout.hdf5

    Raises:
        ValueError: dm_control is missing or cannot render here, an unknown task or policy, or `out` exists.
    """
    for name, value in {"steps": steps, "size": size, "action-repeat": action_repeat}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: must be at least 1")
    episode = -(-_STEPS // action_repeat)
    segment = episode if segment is None else segment
    if not 1 <= segment <= episode:
        raise ValueError(f"--segment {segment}: must be at least 1 and at most an episode, {episode} steps")
    for name, choice, choices in (("task", task, Task), ("distraction", distraction, Distraction)):
        if choice not in get_args(choices):
            raise ValueError(f"--{name} {choice!r}: choose from {', '.join(get_args(choices))}")
    mixture = parse_mixture(policy, {"random": random, "sticky": sticky})
    looks = {"distraction": distraction, "levels": levels, "backgrounds": str(backgrounds) if backgrounds else None}
    made = ControlSuite(
        task,
        size=size,
        action_repeat=action_repeat,
        distraction=distraction,
        levels=parse_levels(levels),
        backgrounds=backgrounds,
    )
    plan = {"steps": steps, "size": size, "crop": "stretch", "policy": policy, "seed": seed, "segment": segment}
    settings = {
        "command": "collect dmc",
        "dreamloom": __version__,
        "env": task,
        "action_repeat": action_repeat,
        **looks,
        **plan,
    }
    versions = {name: version(name) for name in ("dm-control", "mujoco")}
    record(made, lambda observation: observation, mixture, out, settings, {"env": task, "versions": versions}, closing=True)
