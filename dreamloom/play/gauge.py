"""How far a dream can be trusted: what the world says of itself, and whether there is anything left to be seen."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

UNKNOWN = 255  # a doubt that nobody tells
BLANK = 1 / 3  # of the contrast of pictures that one starts from: below it a frame counts as empty
LOST_FRAMES = 4  # so many frames running that are empty, or utterly doubtful, are a world that is lost


def contrast(rgb: UInt8[np.ndarray, "h w c"]) -> float:
    """Standard deviation of a frame's grey levels, 0 to 127.5."""
    return float(rgb.mean(-1).std())


@dataclass
class Gauge:
    """Judges the frames of one world by those that it starts from.

    Attributes:
        least: the smallest contrast of its prompts.
        usual: its uncertainty one frame after its prompts, a mean; None where it tells none.
    """

    least: float
    usual: float | None = None

    @classmethod
    def of(cls, prompts: UInt8[torch.Tensor, "p t c h w"]) -> "Gauge":
        """The gauge of a world with these prompts."""
        return cls(min(contrast(one) for one in prompts[:, -1].permute(0, 2, 3, 1).cpu().numpy()))

    def learn(self, uncertainty: Float[torch.Tensor, "b"] | None) -> None:
        """Takes the world's uncertainty right after its prompts as the usual one."""
        self.usual = None if uncertainty is None else float(uncertainty.float().mean())

    def doubt(self, uncertainty: float | None) -> float | None:
        """From 0 (sure) over 0.5 (as after a prompt) to 1 (twice as unsure, or more); None where nobody knows."""
        return None if uncertainty is None or not self.usual else min(1.0, max(0.0, uncertainty / (2 * self.usual)))


@dataclass
class Watch:
    """Watches one dream for getting lost.

    Attributes:
        blank: contrast below which a frame is empty.
        doubt: of the newest frame.
        run: how many of the newest frames were empty or utterly doubtful.
    """

    blank: float = 0.0
    doubt: float | None = None
    run: int = 0

    @classmethod
    def over(cls, first: UInt8[np.ndarray, "h w c"], gauge: Gauge) -> "Watch":
        """Begins with a dream's first frame, which may be plainer than the world's own: a sketch, or a photo of fog."""
        return cls(BLANK * min(gauge.least, contrast(first)))

    def see(self, frame: UInt8[np.ndarray, "h w c"], doubt: float | None) -> None:
        """Takes a new frame into account."""
        self.doubt = doubt
        self.run = self.run + 1 if contrast(frame) < self.blank or doubt == 1.0 else 0

    @property
    def lost(self) -> bool:
        """Whether the world has lost itself."""
        return self.run >= LOST_FRAMES

    @property
    def level(self) -> int:
        """The doubt as a byte, 0 to 254, or `UNKNOWN`."""
        return UNKNOWN if self.doubt is None else round(254 * self.doubt)
