"""Reads the model out of a training checkpoint: tensors and plain data only, classes from an allow-list."""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreamloom.nn.build import build


def load_part(path: str | Path, kind: type[nn.Module], allowed: Container[str]) -> Any:
    """The model inside a training checkpoint, in eval mode on the CPU.

    Args:
        path: a `.ckpt` that `dreamloom fit` wrote, or the folder of its run.
        kind: the class it must be.
        allowed: class paths that the file may name; nothing else is imported.

    Raises:
        ValueError: if the file is not such a checkpoint, or holds another kind of model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config, weights = checkpoint["model_config"], checkpoint["state_dict"]
    except Exception as error:  # torch names a broken file by many types
        raise ValueError(f"{path} is not a checkpoint of dreamloom: {str(error).splitlines()[0][:200]}") from error
    model = build(config, allowed)
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {type(model).__name__}, here a {kind.__name__} is needed")
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    return model.eval().requires_grad_(False)
