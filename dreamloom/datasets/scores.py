"""Normalised scores: 0 is a random policy and 100 an expert, with the reference returns that D4RL and DGRL publish.

The environments' own step limits are here too, since the older D4RL files leave `timeouts` to them.
"""

import re
from collections.abc import Mapping
from typing import TypeVar, overload

import numpy as np

T = TypeVar("T")

# Start of an environment's name -> returns of the random and the expert policy (Fu et al. 2020, and the D4RL package).
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "door": (-56.512833, 2880.5693087298737),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    # Procgen's easy mode: the constants of DGRL (Mediratta et al. 2023) and of Procgen itself (Cobbe et al. 2020).
    "bigfish": (1.0, 40.0),
    "bossfight": (0.5, 13.0),
    "caveflyer": (3.5, 12.0),
    "chaser": (0.5, 13.0),
    "climber": (2.0, 12.6),
    "coinrun": (5.0, 10.0),
    "dodgeball": (1.5, 19.0),
    "fruitbot": (-1.5, 32.4),
    "heist": (3.5, 10.0),
    "jumper": (1.0, 10.0),
    "leaper": (1.5, 10.0),
    "maze": (5.0, 10.0),
    "miner": (1.5, 13.0),
    "ninja": (3.5, 10.0),
    "plunder": (4.5, 30.0),
    "starpilot": (2.5, 64.0),
    # The control suite's returns lie in [0, 1000] by design (Tassa et al. 2018); V-D4RL divides by ten.
    "cheetah-run": (0.0, 1000.0),
    "walker-walk": (0.0, 1000.0),
    "humanoid-walk": (0.0, 1000.0),
}
_STEP_LIMITS = {
    "halfcheetah": 1000, "hopper": 1000, "walker2d": 1000, "ant": 1000,
    "antmaze": 1000, "antmaze-umaze": 700, "kitchen": 280, "pen": 100, "hammer": 200, "relocate": 200, "door": 200,
    "maze2d-umaze": 300, "maze2d-medium": 600, "maze2d-large": 800,
}  # fmt: skip
# What may follow: the words that D4RL and Minari name their datasets by, and Gymnasium's versions.
_REST = re.compile(
    r"(-(random|simple|medium|expert|replay|full|human|cloned|sparse|dense|complete|partial|mixed|umaze|large|diverse|play"
    r"|easy|suboptimal|v\d+))*(\.hdf5)?"
)
_SAME = {"adroithandpen": "pen", "adroithandhammer": "hammer", "adroithandrelocate": "relocate", "adroithanddoor": "door"}
_SAME |= {"frankakitchen": "kitchen"}


def score_constants(env_id: str) -> tuple[float, float] | None:
    """Returns of the random and the expert policy of an environment or dataset, or None for one that D4RL does not know.

    Args:
        env_id: e.g. "HalfCheetah-v5", "halfcheetah-medium-v2", "d4rl:antmaze-umaze-v2", "minari:mujoco/hopper/expert-v0".
    """
    return _look_up(REFERENCE_RETURNS, env_id)


def step_limit(env_id: str) -> int | None:
    """Steps after which D4RL's environment times out, or None for one that D4RL does not know."""
    return _look_up(_STEP_LIMITS, env_id)


@overload
def normalized_score(env_id: str, returns: float, constants: tuple[float, float] | None = None) -> float: ...
@overload
def normalized_score(env_id: str, returns: np.ndarray, constants: tuple[float, float] | None = None) -> np.ndarray: ...
def normalized_score(
    env_id: str, returns: float | np.ndarray, constants: tuple[float, float] | None = None
) -> float | np.ndarray:
    """100 (return - min) / (max - min): 0 for a random policy, 100 for an expert.

    Args:
        env_id: environment or dataset, e.g. "HalfCheetah-v5" or "halfcheetah-medium-v2".
        returns: undiscounted returns of episodes, of any shape.
        constants: (min, max) of your own, for an environment that D4RL does not know; they go before D4RL's.

    Raises:
        ValueError: the environment is unknown and there are no constants, or min is not below max.
    """
    low, high = constants or score_constants(env_id) or (np.nan, np.nan)
    if np.isnan(low):
        known = ", ".join(REFERENCE_RETURNS)
        raise ValueError(
            f"{env_id}: D4RL publishes no reference returns for it (only for {known}); "
            "give constants=(min, max), the returns of a random and of an expert policy"
        )
    if not low < high:
        raise ValueError(f"{env_id}: constants ({low}, {high}) must be (min, max) with min below max")
    return 100.0 * (returns - low) / (high - low)


def _look_up(table: Mapping[str, T], env_id: str) -> T | None:
    """The longest start of the name that the table has; the rest must be words that only tell variants apart."""
    name = re.sub(r"^(d4rl|minari|procgen):", "", env_id.lower())
    name = re.sub(r"^((d4rl|mujoco|gymnasium|procgen)/|procgen[-_])", "", name).replace("_", "-").replace("/", "-")
    head, dash, rest = name.partition("-")
    name = _SAME.get(head, head) + dash + rest
    for start in sorted(table, key=len, reverse=True):
        if _starts(name, start) and _REST.fullmatch(name[len(start) :]):
            return table[start]
    return None


def _starts(name: str, start: str) -> bool:
    return name == start or name.startswith((start + "-", start + "."))
