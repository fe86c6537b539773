"""Who plays while frames are recorded: policies that stay as they are, or an agent that learns (datasets/ppo_agents.py)."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from tqdm import tqdm

from dreamloom.datasets.policies import Act, Mixture
from dreamloom.datasets.recorder import Recorder


class Part(NamedTuple):
    """A segment of a recording, or one that an agent only learns from.

    Attributes:
        rows: of the file.
        seed: of all that is random in it.
        recorder: what writes it; None where it is not recorded.
    """

    rows: range
    seed: np.random.SeedSequence
    recorder: Recorder | None


class Players:
    """Who plays in a recording: a mixture of policies that learn nothing."""

    def __init__(self, mixture: Mixture, seed: int, actions: int) -> None:
        self.names, self._mixture, self._seed = mixture.names, mixture, seed
        self._space = gymnasium.spaces.Discrete(actions)

    def begin(self, recorder: Recorder, notes: dict[str, Any]) -> None:
        """Goes back to where a killed recording was."""

    def parts(self, recorder: Recorder, number: int) -> Iterator[Part]:
        """What is played for a segment of the recording, in order."""
        start, end = (int(row) for row in recorder.bounds[number : number + 2])
        yield Part(range(start, end), np.random.SeedSequence([self._seed, number]), recorder)

    def start(self, lanes: int, length: int, seed: np.random.SeedSequence) -> tuple[Act, np.ndarray]:
        """Begins a part: what acts for all lanes, and the index of each lane's policy, (lanes,)."""
        return self._mixture.start(lanes, self._space, np.random.default_rng(seed))

    def reward(self, rewards: np.ndarray, first: np.ndarray) -> None:
        """Hears what came of the last actions."""

    def end(self, frames: np.ndarray, first: np.ndarray) -> None:
        """Sees the frames after a part's last step."""

    def tell(self, progress: tqdm) -> None:
        """Shows what there is to know on the progress bar."""

    def save(self, segment: int) -> None:
        """Keeps all that `begin` needs to begin this segment."""

    def finish(self) -> None:
        """Clears what `save` kept."""
