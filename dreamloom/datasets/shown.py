"""What environments show and pay, in one form: RGB of 8 bits, and plain numbers.

Environments of other people render RGBA, grey, floats or channels first, and pay arrays of one number. What is clear is
converted; what is not is refused at the first picture or reward, before hours of recording.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import UInt8

from dreamloom.datasets.pictures import flatten

_KINDS = "expected RGB, RGBA or grey, channels last or first, of uint8, or of floats from 0 to 1 or 0 to 255"


class Screen:
    """Turns the pictures of one environment into RGB; the first one fixes how, since a dark one alone would not tell.

    Args:
        name: of the environment, for messages.
        stacked: whether four channels may be four grey frames; then they are not taken for RGBA.
    """

    def __init__(self, name: str, *, stacked: bool = False) -> None:
        self.name, self.stacked = name, stacked
        self.form: tuple[str, float] | None = None  # where the channels are, and what stands for full brightness

    def __call__(self, picture: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The picture in RGB.

        Raises:
            ValueError: it is no picture, not clearly one, or of another form than the first.
        """
        array = self._array(picture)
        layout = _layout(array.shape, self.stacked)
        if layout is None:
            raise ValueError(f"{self.name}: shows {_text(array)}; {_KINDS}")
        if self.form is None:
            self.form = layout, self._full(array)
        if layout != self.form[0]:
            raise ValueError(f"{self.name}: shows {_text(array)}, and its first picture had {self.form[0]}")
        return _rgb(self._bytes(array, self.form[1]), layout)

    def _array(self, picture: Any) -> np.ndarray:
        if picture is None or isinstance(picture, str | list | tuple | dict):
            what = "nothing (None)" if picture is None else f"a {type(picture).__name__}"
            raise ValueError(f"{self.name}: shows {what}, no picture; {_KINDS}")
        array = np.asarray(picture)
        if array.dtype.kind not in "buif" or array.size == 0:
            raise ValueError(f"{self.name}: shows {_text(array)}; {_KINDS}")
        return array

    def _full(self, array: np.ndarray) -> float:
        """255 for bytes and for floats that are larger than 1, else 1."""
        return 1.0 if array.dtype.kind == "b" or (array.dtype.kind == "f" and array.max() <= 1) else 255.0

    def _bytes(self, array: np.ndarray, full: float) -> np.ndarray:
        if array.dtype == np.uint8:
            return array
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= full:  # nor are NaN
            raise ValueError(f"{self.name}: shows {array.dtype} from {low:g} to {high:g}, expected 0 to {full:g}")
        return (array.astype(np.float64) * (255 / full)).round().astype(np.uint8)


def _layout(shape: tuple[int, ...], stacked: bool) -> str | None:
    """Where the channels are; None where that is not clear."""
    colours = (1, 3) if stacked else (1, 3, 4)
    if len(shape) == 2:
        return "no channels"
    if len(shape) != 3:
        return None
    if shape[2] in colours:
        return f"{shape[2]} channels last"
    return f"{shape[0]} channels first" if shape[0] in colours else None


def _rgb(array: np.ndarray, layout: str) -> np.ndarray:
    if layout == "no channels":
        array = array[:, :, None]
    elif layout.endswith("first"):
        array = np.moveaxis(array, 0, 2)
    if array.shape[2] == 4:
        return flatten(np.ascontiguousarray(array))
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _text(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


class PlainSteps(gymnasium.Wrapper):
    """An environment whose rewards are floats and whose endings are bools, whatever it gives for them."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step; see `gymnasium.Env.step`.

        Raises:
            ValueError: a reward or an ending is not one number.
        """
        observation, reward, terminal, truncated, info = self.env.step(action)
        told = {"reward": reward, "terminated": terminal, "truncated": truncated}
        paid, over, cut = (self._one(name, value) for name, value in told.items())
        return observation, float(paid), bool(over), bool(cut), info

    def _one(self, name: str, value: Any) -> Any:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.size != 1:
            spec = self.env.spec
            label = spec.id if spec else type(self.env.unwrapped).__name__
            raise ValueError(f"{label}: gives {' '.join(repr(value).split())[:80]} as `{name}`, expected one number")
        return array.reshape(()).item()


def shown_by(screen: Screen, env: gymnasium.Env, *, render: bool) -> Callable[[Any], np.ndarray]:
    """What turns an observation into the frame to keep; the first one is looked at now.

    Args:
        screen: of the environment.
        env: which is reset.
        render: whether it is rendered, rather than that its observations are pictures.

    Raises:
        ValueError: it does not show a picture.
    """

    def show(observation: Any) -> np.ndarray:
        return screen(env.render() if render else observation)

    show(env.reset(seed=0)[0])
    return show
