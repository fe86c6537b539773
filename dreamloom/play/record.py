"""A recorded session, and the files it is downloaded as: a film, an animated picture, a dataset."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import h5py
import numpy as np
from PIL import Image

from dreamloom.datasets.store import write_attrs

MAX_BYTES = 48 * 2**20  # of pixels: 4096 frames of 64 x 64, four and a half minutes at 15 frames a second
MEDIA_TYPES = {"mp4": "video/mp4", "gif": "image/gif", "hdf5": "application/x-hdf5"}


def kinds() -> list[str]:
    """What a recording can be downloaded as; films need PyAV."""
    return [kind for kind in MEDIA_TYPES if kind != "mp4" or find_spec("av")]


@dataclass
class Recording:
    """Rows as datasets have them: action i is taken at frame i. The newest frame waits for its action in `last`."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    last: np.ndarray | None = None
    on: bool = True

    def add(self, frame: np.ndarray, action: int, shown: np.ndarray, **row: Any) -> None:
        """Appends one step; stops at `MAX_BYTES`.

        Args:
            frame: (h, w, 3) uint8, what the player saw when acting.
            action: the world's action.
            shown: (h, w, 3) uint8, what followed.
            row: reward, terminal, level_seed, real.
        """
        if self.on:
            self.rows.append({"frame": frame, "action": action, "timeout": False, **row})
            self.last = shown
            self.on = frame.nbytes * (len(self.rows) + 2) <= MAX_BYTES

    def cut(self) -> None:
        """Ends the episode after the newest row: the next one starts from another picture."""
        if self.rows and not self.rows[-1]["terminal"]:
            self.rows[-1]["timeout"] = True

    def film(self) -> list[np.ndarray]:
        """Every frame that was seen, in order."""
        return [row["frame"] for row in self.rows] + ([] if self.last is None else [self.last])


def to_mp4(film: Sequence[np.ndarray], fps: float) -> bytes:
    """H.264, enlarged without smoothing to about 512 pixels."""
    import av

    buffer, zoom = io.BytesIO(), _zoom(film[0], 512)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.height, stream.width = (side * zoom // 2 * 2 for side in film[0].shape[:2])
        stream.pix_fmt = "yuv420p"
        for rgb in film:
            large = _enlarge(rgb, zoom)[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(large), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def to_gif(film: Sequence[np.ndarray], fps: float) -> bytes:
    """An endless animated picture of about 256 pixels."""
    buffer, zoom = io.BytesIO(), _zoom(film[0], 256)
    first, *rest = [Image.fromarray(_enlarge(rgb, zoom)) for rgb in film]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def to_hdf5(recording: Recording, attrs: dict[str, Any]) -> bytes:
    """The layout of docs/data.md, which `dreamloom data` reads; `attrs` become the file's attributes."""

    def column(name: str, dtype: Any) -> np.ndarray:
        return np.array([row[name] for row in recording.rows], dtype)

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        frames = np.stack([row["frame"] for row in recording.rows])
        file.create_dataset("observations", data=frames, chunks=(1, *frames.shape[1:]), compression="gzip")
        file["actions"] = column("action", np.int64)
        file["rewards"] = column("reward", np.float32)
        file["terminals"] = column("terminal", np.bool_)
        file["timeouts"] = column("timeout", np.bool_)
        file["infos/level_seed"] = column("level_seed", np.int32)
        file["infos/real"] = column("real", np.bool_)
        write_attrs(file, attrs)
    return buffer.getvalue()


def _zoom(rgb: np.ndarray, side: int) -> int:
    return max(1, side // max(rgb.shape[:2]))


def _enlarge(rgb: np.ndarray, zoom: int) -> np.ndarray:
    return rgb.repeat(zoom, axis=0).repeat(zoom, axis=1)
