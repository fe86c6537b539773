"""Whose numbers are whose: those of the data, of the environment that it was recorded in, and of the networks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Units(NamedTuple):
    """What the numbers of a dataset lack to be the environment's own, and the networks' place among them.

    Attributes:
        action_start: of discrete actions, the environment's number of the data's action 0 (`Discrete(n, start=...)`).
        observation_offset: what the environment's observations have beyond the data's, a number for each; none where nothing.
        first_action: the data's number of the networks' first discrete action.
    """

    action_start: int = 0
    observation_offset: tuple[float, ...] = ()
    first_action: int = 0

    @classmethod
    def of(cls, attrs: Mapping[str, Any]) -> "Units":
        """As the attributes of a dataset tell them."""
        offset = attrs.get("observation_offset")
        return cls(int(attrs.get("action_start", 0)), tuple(map(float, offset)) if offset is not None else ())

    @classmethod
    def common(cls, attrs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> "Units":
        """Of datasets that are trained on together.

        Args:
            attrs: of each.
            names: of each, for the message.

        Raises:
            ValueError: they differ.
        """
        found = [cls.of(each) for each in attrs]
        for name, units in zip(names, found, strict=True):
            if units != found[0]:
                raise ValueError(
                    f"{names[0]} and {name} differ in `action_start` ({found[0].action_start}, {units.action_start}) or "
                    f"`observation_offset` ({list(found[0].observation_offset)}, {list(units.observation_offset)})"
                )
        return found[0]

    def observed(self, observations: np.ndarray) -> np.ndarray:
        """The environment's observations (..., o) as the data has them, float32."""
        if self.observation_offset:
            observations = observations - np.array(self.observation_offset, np.float64)
        return observations.astype(np.float32)


def discrete_actions(columns: Sequence[np.ndarray], told: int) -> tuple[int, int]:
    """First discrete action, and how many there are: as many as are told, from 0 on, else from the lowest to the highest.

    Args:
        columns: (n,) the actions of each dataset.
        told: how many there are; 0 where that is not known.

    Raises:
        ValueError: an action below 0 where they are told to count from there.
    """
    low = min(int(column.min()) for column in columns)
    high = max(int(column.max()) for column in columns)
    if not told:
        return low, high - low + 1
    if low < 0:
        raise ValueError(f"discrete actions count from 0 to {told - 1}, the data's lowest is {low}")
    return 0, max(told, high + 1)
