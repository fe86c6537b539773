"""Reads the model out of a training checkpoint: tensors and plain data only, classes from an allow-list."""

import sys
from collections.abc import Container
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreamloom.nn.build import build
from dreamloom.suggest import did_you_mean


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
    weights, config = checkpoint["state_dict"], checkpoint["model_config"]
    held = str(config.get("class_path")) if isinstance(config, dict) else "model that does not say what it is"
    if held not in allowed:
        raise ValueError(f"{path} holds a {held}; here {_a(kind.__name__)} is needed")
    model = build(config, allowed)
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds {_a(type(model).__name__)}; here {_a(kind.__name__)} is needed")
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    return model.eval().requires_grad_(False)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


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
            beside = [str(path.with_name(file.name)) for file in path.parent.glob("*")] if path.parent.is_dir() else []
            raise ValueError(f"no checkpoint at {path}{did_you_mean(str(path), beside)}")
        return path
    found = [file for runs in ("", "version_*/") for file in path.glob(f"{runs}checkpoints/last.ckpt")]
    if not found:
        raise ValueError(f"no checkpoint in {path}: neither checkpoints/last.ckpt nor version_*/checkpoints/last.ckpt is there")
    newest, *older = sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)
    _say_which(path, newest, tuple(older))
    return newest


@cache
def _say_which(folder: Path, newest: Path, older: tuple[Path, ...]) -> None:
    """Tells, once, which run a folder stands for, and whether an older one in it was trained for longer."""
    steps, model = _trained(newest)
    print(f"{folder} stands for {newest}" + (f" ({steps:,} steps)" if steps else ""), file=sys.stderr)
    longest = max(older, key=lambda file: _trained(file)[0], default=newest)
    most, other = _trained(longest)
    if most > steps:
        differs = "" if other == model else ", of a model with other settings,"
        told = f"warning: {longest}{differs} was trained for longer ({most:,} steps); "
        print(f"{told}give {longest.parent.parent} to take that run", file=sys.stderr)


def _trained(path: Path) -> tuple[int, Any]:
    """Steps that a checkpoint was trained for, and how its model is built; 0 and nothing where it does not say."""
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # the tensors stay on the disk
        return int(kept["global_step"]), kept["model_config"]
    except Exception:  # what is wrong with a file is told when it is read
        return 0, None


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
