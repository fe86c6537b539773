"""UCB-DrAC (Raileanu et al. 2021): a bandit that finds out, while an agent learns, which augmentation serves it best."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from dreamloom.datasets.augment import Augment
from dreamloom.datasets.augment_base import Augmentation


class UCBDrAC(Augment):
    """Augmentations of which a bandit chooses one for the next updates, each seed of an agent by a bandit of its own.

    In the paper PPO plays between two choices, and the return that it then gets is the bandit's reward. Offline nobody plays.
    What stands in for the return is how often the greedy policy agrees with the data on levels that are not trained on (with
    continuous actions: minus the mean squared distance). It costs no environment, it is not what is minimised, and like the
    paper's it asks what a choice did to the policy and not to a loss; but behind poor data it rewards a likeness to a poor
    player. With `drac` above 0 in `Vision` the frames so changed are also regularised by, as the paper's are.

    Args:
        augmentations: what there is to choose from; `Identity` among them lets the bandit choose none.
        shared: s and s' are changed in the same way.
        every: updates that a choice is kept for.
        rows: that the policy is asked about, always the same ones.
        c: how much the bandit explores, in units of agreement. Ours: what augmentations do to it differs by hundredths.
        window: how many of an augmentation's last rewards count.
    """

    def __init__(
        self,
        augmentations: Sequence[Augmentation],
        shared: bool = True,
        *,
        every: int = 100,
        rows: int = 512,
        c: float = 0.02,
        window: int = 10,
    ):
        super().__init__(augmentations, shared)
        if every < 1 or rows < 1:
            raise ValueError(f"every and rows must be at least 1, got {every} and {rows}")
        self.every, self.rows, self.c, self.window = every, rows, c, window
        self.bandits: list[UCB] = []
        self.chosen: list[int] = []

    def members(self, seeds: int) -> list[int | None]:
        return list(self.chosen) or [0] * seeds

    def turn(self, updates: int, seeds: int, agreement: Callable[[], Sequence[float]]) -> None:
        """Before an update: where a choice has been kept for long enough, rewards it and makes the next.

        Args:
            updates: that were made.
            seeds: of the agent.
            agreement: of its policy on levels that are not trained on, one figure a seed.
        """
        if updates % self.every:
            return
        if updates == 0 or len(self.bandits) != seeds:  # a new run
            self.bandits, self.chosen = [UCB(len(self.augmentations), self.c, self.window) for _ in range(seeds)], []
        if self.chosen:
            for bandit, member, value in zip(self.bandits, self.chosen, agreement(), strict=True):
                bandit.reward(member, value)
        self.chosen = [bandit.choose() for bandit in self.bandits]

    def get_extra_state(self) -> dict[str, Any]:
        return {"bandits": [bandit.state_dict() for bandit in self.bandits], "chosen": list(self.chosen)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.bandits = [UCB(len(self.augmentations), self.c, self.window) for _ in state["bandits"]]
        for bandit, before in zip(self.bandits, state["bandits"], strict=True):
            bandit.load_state_dict(before)
        self.chosen = list(state["chosen"])


class UCB:
    """The bandit that chooses an augmentation (Raileanu et al. 2021, equation 8): argmax of Q(f) + c sqrt(log t / N(f)).

    Q(f) is the mean of the last returns that followed a choice of f. An augmentation that was never chosen comes first.

    Args:
        arms: number of augmentations.
        c: how much it explores; in units of the returns.
        window: how many of an augmentation's last returns count.

    Raises:
        ValueError: no arm, or no window.
    """

    def __init__(self, arms: int, c: float = 0.1, window: int = 10):
        if arms < 1 or window < 1:
            raise ValueError(f"expected at least one arm and a window of at least 1, got {arms} and {window}")
        self.c = c
        self.counts = [0] * arms
        self.returns: list[deque[float]] = [deque(maxlen=window) for _ in range(arms)]

    def choose(self) -> int:
        """The augmentation to use next."""
        if 0 in self.counts:
            return self.counts.index(0)
        bonus = math.log(sum(self.counts))
        bounds = [sum(r) / len(r) + self.c * math.sqrt(bonus / n) for r, n in zip(self.returns, self.counts, strict=True)]
        return bounds.index(max(bounds))

    def reward(self, index: int, value: float) -> None:
        """Tells what return followed the choice of an augmentation."""
        self.counts[index] += 1
        self.returns[index].append(float(value))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs, as plain numbers."""
        return {"counts": list(self.counts), "returns": [list(values) for values in self.returns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            ValueError: it has another number of arms.
        """
        if len(state["counts"]) != len(self.counts):
            raise ValueError(f"the saved bandit has {len(state['counts'])} arms, this one has {len(self.counts)}")
        self.counts = list(state["counts"])
        self.returns = [deque(values, maxlen=old.maxlen) for values, old in zip(state["returns"], self.returns, strict=True)]
