"""What a learner of a study is given: shares of real rows, noisy copies of them, rewards on one scale."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.types import Transitions


@dataclass(frozen=True)
class Arm:
    """What a learner is given.

    Attributes:
        real: share of the real rows; drawn once, so that every arm with this share has the same rows.
        keep: whether these rows are in the learner's buffer.
        synthetic: rows that are added by an upsampler which was fitted on these rows alone.
        noisy: rows that are added by copying these rows with Gaussian noise: the control for `synthetic`.
        width: of the learner's networks, where it is not the learner's own.
        levels: frames: level seeds LO:HI that the rows are of, where they are not the study's; `real` is a share of theirs.
        augmented: frames: changed by the study's augmentation whenever they are drawn; or by the one of this name.
        imagined: frames: rows of the study's imagined dataset of the environment that are added to the real ones, all of which
            the arm must have: the world behind them saw them all.
        latents: frames: at the end the encoder is frozen, and the updates that are left train heads on latents; `synthetic`
            rows are latents, so these heads are trained in any case.
    """

    real: float = 1.0
    keep: bool = True
    synthetic: int = 0
    noisy: int = 0
    width: int | None = None
    levels: str | None = None
    augmented: bool | str = False
    imagined: int = 0
    latents: bool = False

    @property
    def heads(self) -> bool:
        """Whether heads are trained on latents at the end."""
        return self.latents or self.synthetic > 0

    def require(self, name: str, *, pixels: bool) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: no rows, or settings that are for vectors in a study of frames, or the reverse.
        """
        if not 0 < self.real <= 1 or not (self.keep or self.synthetic or self.noisy):
            raise ValueError(f"arm {name}: `real` must lie in (0, 1], and something must be in the buffer; got {self}")
        if self.imagined and (self.real < 1 or not self.keep):
            raise ValueError(f"arm {name}: imagined rows are of a world that saw all real rows: leave out `real` and `keep`")
        wrong = _OF_VECTORS if pixels else _OF_FRAMES
        set_here = [key for key in wrong if getattr(self, key) != getattr(Arm, key)]
        if set_here:
            kind = "frames" if pixels else "vectors (it has no `pixels`)"
            raise ValueError(f"arm {name}: {', '.join(set_here)} cannot be set in a study of {kind}")

    def settings(self, *, pixels: bool) -> dict[str, Any]:
        """All that results depend on, as JSON; those of a study of vectors do not name what is for frames."""
        return {name: value for name, value in asdict(self).items() if name not in (_OF_VECTORS if pixels else _OF_FRAMES)}


_OF_FRAMES = ("levels", "augmented", "imagined", "latents")
_OF_VECTORS = ("noisy", "width")


def share_of(data: Transitions, share: float, seed: int) -> Transitions:
    """A seeded uniform draw of rows, in their order."""
    chosen = np.random.default_rng([seed, 1]).permutation(len(data))[: max(1, round(share * len(data)))]
    return data[np.sort(chosen)]


def noisy_copies(data: Transitions, rows: int, noise: float, seed: int) -> Transitions:
    """Rows drawn with replacement; every float column gets Gaussian noise of `noise` standard deviations of its own."""
    drawn = np.random.default_rng([seed, 2])
    copies = data[drawn.integers(0, len(data), rows)]
    changed = {}
    for name in ("observations", "actions", "rewards", "next_observations"):
        column, origin = getattr(copies, name), getattr(data, name)
        if column.dtype.kind == "f":
            changed[name] = column + noise * origin.std(0) * drawn.standard_normal(column.shape, np.float32)
    if "actions" in changed:
        changed["actions"] = changed["actions"].clip(data.actions.min(0), data.actions.max(0))
    return Transitions(**{**vars(copies), **changed})


def reward_scale(path: Path) -> float:
    """1000 over the range of the returns of the real episodes: IQL's for locomotion; TD3+BC does not see it."""
    with open_dataset(path) as data:
        if data.rewards is None:
            raise ValueError(f"{path}: holds no rewards")
        starts, _ = data.episodes
        returns = np.add.reduceat(data.rewards[:].astype(np.float64), starts)
    return float(1000 / (returns.max() - returns.min())) if np.ptp(returns) > 0 else 1.0
