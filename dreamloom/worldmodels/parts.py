"""Worlds and their parts as they lie in files: which classes may be built, and how a checkpoint's model is read."""

from pathlib import Path
from typing import Any

from torch import nn

from dreamloom.nn import parts

# What a checkpoint or a bundle may name. A file from a stranger cannot cause anything else to be imported.
ALLOWED = frozenset(
    {
        "dreamloom.tokenizers.quantizers.VQ",
        "dreamloom.tokenizers.quantizers.FSQ",
        "dreamloom.tokenizers.st_vivit.Tokenizer",
        "dreamloom.tokenizers.autoencoder.Autoencoder",
        "dreamloom.worldmodels.latent_actions.LatentActions",
        "dreamloom.worldmodels.dynamics.Dynamics",
        "dreamloom.worldmodels.genie.Genie",
        "dreamloom.worldmodels.diffusion_world.NextFrameDenoiser",
        "dreamloom.worldmodels.diffusion_world.DiffusionWorld",
        "dreamloom.worldmodels.canvas.denoiser.CanvasDenoiser",
        "dreamloom.worldmodels.canvas.world.CanvasWorld",
        "dreamloom.worldmodels.forcing.ForcingDynamics",
        "dreamloom.worldmodels.forcing_world.ForcingWorld",
    }
)


def load_part(path: str | Path, kind: type[nn.Module]) -> Any:
    """The part of a world inside a training checkpoint: `dreamloom.nn.parts.load_part` with `ALLOWED`."""
    return parts.load_part(path, kind, ALLOWED)


def trained_levels(path: str | Path) -> set[str]:
    """Level ranges LO:HI (HI excluded) that a part was trained on; empty where its checkpoint does not say."""
    kept = parts.read_checkpoint(parts.checkpoint_at(path)).get("ClipData")
    return set(kept.get("levels", [])) if isinstance(kept, dict) else set()


def sampling_of(path: str | Path) -> dict[str, Any]:
    """Steps, temperature and order of unmasking that the recipe of a Genie's dynamics sets; nothing where it does not say."""
    kept = parts.read_checkpoint(parts.checkpoint_at(path)).get("sampling")
    return {key: kept[key] for key in ("steps", "temperature", "order") if key in kept} if isinstance(kept, dict) else {}


def train_cpu_s(path: str | Path) -> float | None:
    """Processor time that a part's training took, s; None where its checkpoint does not say."""
    return parts.read_checkpoint(parts.checkpoint_at(path)).get("train_cpu_s")


def train_wall_s(path: str | Path) -> float | None:
    """Seconds that a part's training took; None where its checkpoint does not say."""
    return parts.read_checkpoint(parts.checkpoint_at(path)).get("train_wall_s")
