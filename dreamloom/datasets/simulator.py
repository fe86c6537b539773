"""Procgen as a simulator: copies of a game whose states are saved and loaded."""

from hashlib import blake2b
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

SLOTS = 64  # copies


class Simulator:
    """Copies of one game that can be put into any state.

    Args:
        options: of the environment, as `make_procgen` takes them.
        threads: that step the copies.
    """

    def __init__(self, options: dict[str, Any], threads: int = 1) -> None:
        from dreamloom.datasets.procgen import make_procgen  # which plays by what is searched

        self._make, self._options = make_procgen, options
        self._env = make_procgen(SLOTS, rand_seed=0, num_threads=threads, **options)

    def close(self) -> None:
        """Closes the copies."""
        self._env.close()

    def root(self, level: int) -> tuple[bytes, int]:
        """The state in which a level begins, and the fingerprint of its first frame."""
        env = self._make(1, rand_seed=0, num_threads=0, **{**self._options, "start_level": level, "num_levels": 1})
        _, observation, _ = env.observe()
        state = env.callmethod("get_state")[0]
        first = int(fingerprints(observation["rgb"])[0])
        env.close()
        return state, first

    def load(self, states: list[bytes]) -> None:
        """Puts every copy into a state."""
        self._env.callmethod("set_state", states)
        self._env.observe()

    def states(self) -> list[bytes]:
        """The states that the copies are in."""
        return self._env.callmethod("get_state")

    def step(
        self, actions: Int[np.ndarray, "b"]
    ) -> tuple[Float[np.ndarray, "b"], Bool[np.ndarray, "b"], UInt8[np.ndarray, "b h w c"]]:
        """Rewards, which episodes ended, and frames after an action in every copy."""
        self._env.act(actions)
        rewards, observation, first = self._env.observe()
        return rewards, first, observation["rgb"]


def fingerprints(frames: UInt8[np.ndarray, "b h w c"]) -> Int[np.ndarray, "b"]:
    """A number for each frame; equal frames have equal ones."""
    digests = [blake2b(frame.tobytes(), digest_size=7).digest() for frame in frames]
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.int64)
