"""A world's name and a picture of it, without loading the world."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open

from dreamloom.worldmodels.bundle import CONFIG, WEIGHTS, BundleError, located


class Cover(NamedTuple):
    """What is to be seen of a world before it is loaded.

    Attributes:
        path: folder of a bundle, or a checkpoint.
        name: as the bundle says; a checkpoint's is its path.
        picture: the last frame of its first prompt; None of a checkpoint.
    """

    path: Path
    name: str
    picture: UInt8[np.ndarray, "h w c"] | None = None


def cover(path: str) -> Cover:
    """Reads the cover of a world.

    Args:
        path: as `load_world` takes it.

    Raises:
        BundleError: there is no such world, or its files are foreign or damaged.
    """
    place = located(path)
    if place.is_file():
        return Cover(place, path)
    try:
        config = yaml.safe_load((place / CONFIG).read_text())
        name = config["name"]
        with safe_open(place / WEIGHTS, "numpy") as weights:
            prompts = weights.get_slice("prompts")
            shape = prompts.get_shape()
            picture = prompts[:1][0, -1].transpose(1, 2, 0) if shape[0] else None
    except (OSError, yaml.YAMLError, KeyError, TypeError, IndexError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise BundleError(f"{place} is not a world that can be shown: {reason}") from error
    return Cover(place, str(name)[:80], picture)
