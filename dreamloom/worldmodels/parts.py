"""The parts of a world as they lie in files: which classes may be built, and how a checkpoint's model is read."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreamloom.nn.build import build

# What a checkpoint or a bundle may name. A file from a stranger cannot cause anything else to be imported.
ALLOWED = frozenset(
    {
        "dreamloom.tokenizers.quantizers.VQ",
        "dreamloom.tokenizers.quantizers.FSQ",
        "dreamloom.tokenizers.st_vivit.Tokenizer",
        "dreamloom.worldmodels.latent_actions.LatentActions",
        "dreamloom.worldmodels.dynamics.Dynamics",
    }
)


def load_part(path: str | Path, kind: type[nn.Module]) -> Any:
    """The model inside a training checkpoint, in eval mode on the CPU.

    Args:
        path: a `.ckpt` that `dreamloom fit` wrote.
        kind: the class it must be.

    Raises:
        ValueError: if the file is not such a checkpoint, or holds another kind of model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config, weights = checkpoint["model_config"], checkpoint["state_dict"]
    except Exception as error:  # torch names a broken file by many types
        raise ValueError(f"{path} is not a checkpoint of dreamloom: {str(error).splitlines()[0][:200]}") from error
    model = build(config, ALLOWED)
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {type(model).__name__}, here a {kind.__name__} is needed")
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    return model.eval().requires_grad_(False)
