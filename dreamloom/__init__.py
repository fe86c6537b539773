"""dreamloom: train playable world models and synthetic replay from offline data, and prove what they are worth."""

from importlib import import_module
from typing import Any

from dreamloom import gymnasium_ids

__version__ = "0.1.0"

# Public name -> module that holds it. Imported on first use, so that `import dreamloom` stays light (no torch).
_LAZY = {
    "from_sb3": "dreamloom.datasets.sb3",
    "load_upsampler": "dreamloom.diffusion.upsampler",
    "load_world": "dreamloom.worldmodels.bundle",
    "open_dataset": "dreamloom.datasets.store",
    "save_dataset": "dreamloom.datasets.convert",
}
__all__ = [*sorted(_LAZY), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dreamloom' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__


gymnasium_ids.register()
