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
        path: a checkpoint that `dreamloom fit` wrote, or a folder of runs; see `checkpoint_at`.
        kind: the class it must be.
        allowed: class paths that the file may name; nothing else is imported.

    Raises:
        ValueError: if the file is not such a checkpoint, or holds another kind of model.
    """
    path = checkpoint_at(path)
    checkpoint = read_checkpoint(path)
    weights = checkpoint["state_dict"]
    model = build(checkpoint["model_config"], allowed)
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {type(model).__name__}, here a {kind.__name__} is needed")
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    return model.eval().requires_grad_(False)


def checkpoint_at(path: str | Path) -> Path:
    """The checkpoint that a path means.

    Args:
        path: a `.ckpt`; or the folder of a run (`runs/coinrun/tokenizer/version_0`) or of all the runs of a recipe
            (`runs/coinrun/tokenizer`), whose newest last.ckpt is taken.

    Raises:
        ValueError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.is_file():
            raise ValueError(f"no checkpoint at {path}")
        return path
    found = [file for runs in ("", "version_*/") for file in path.glob(f"{runs}checkpoints/last.ckpt")]
    if not found:
        raise ValueError(f"no checkpoint in {path}: neither checkpoints/last.ckpt nor version_*/checkpoints/last.ckpt is there")
    return max(found, key=lambda file: file.stat().st_mtime)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, tensors on the CPU: `model_config`, `state_dict` and whatever else was kept with them.

    Raises:
        ValueError: if the file is not a checkpoint that `dreamloom fit` wrote.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["model_config"], checkpoint["state_dict"]
    except Exception as error:  # torch names a broken file by many types
        raise ValueError(f"{path} is not a checkpoint of dreamloom: {str(error).splitlines()[0][:200]}") from error
    return checkpoint
