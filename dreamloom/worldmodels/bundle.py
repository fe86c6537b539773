"""A world as a folder that anyone can share: weights (safetensors), `world.yaml`, a model card, metrics.

Nothing in a bundle is executed: classes come from an allow-list, weights from safetensors, and a checksum ties the two.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import yaml
from jaxtyping import UInt8
from safetensors.torch import load, save
from torch import Tensor

from dreamloom.datasets.atomic import fsync
from dreamloom.datasets.store import open_dataset
from dreamloom.nn.build import build
from dreamloom.nn.layout import by_columns
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.card import card
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.genie import GAME_OPTIONS, Genie
from dreamloom.worldmodels.labels import label_actions
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.parts import ALLOWED, load_part, trained_levels

FORMAT, VERSION = "dreamloom-world", 1
CONFIG, WEIGHTS, METRICS, CARD = "world.yaml", "weights.safetensors", "metrics.json", "README.md"
PARTS = ("tokenizer", "dynamics", "latent_actions")
SETTINGS = ("name", "action_names", "game", "game_options", "fps", "order")


class BundleError(ValueError):
    """A folder that is not a whole, unchanged world."""


def bundle(
    *,
    tokenizer: Path,
    dynamics: Path,
    data: Path,
    out: Path,
    latent_actions: Path | None = None,
    name: str | None = None,
    prompts: int = 8,
    prompt_frames: int = 4,
    stride: int = 1,
    steps: int = 8,
    temperature: float = 1.0,
    order: Order = "random",
    precision: Literal["float32", "float16"] = "float16",
    metrics: Path | None = None,
    notes: Path | None = None,
    seed: int = 0,
) -> None:
    """Puts trained parts together into a world: a folder to play, evaluate and share.

    Example:
        dreamloom bundle --tokenizer runs/coinrun/tokenizer --latent-actions runs/coinrun/latent_actions
            --dynamics runs/coinrun/dynamics --data data/coinrun_heldout.hdf5 --out worlds/coinrun

    Args:
        tokenizer: checkpoint of the tokenizer; or the folder of its runs, whose newest checkpoint is taken.
        dynamics: likewise of the dynamics.
        data: dataset for prompt frames and for the names of the actions; held-out levels are best.
        out: folder to write; an older bundle there is replaced.
        latent_actions: likewise of the latent action model, if the dynamics was trained on one.
        name: short name; the folder's by default.
        prompts: number of starts to choose from.
        prompt_frames: frames of each; several show the model how things move.
        stride: rows from one frame to the next, as `data.stride` in training; the world's fps is the dataset's over it.
        steps: default MaskGIT steps a frame.
        temperature: default temperature.
        order: order of unmasking.
        precision: of the stored weights.
        metrics: a `metrics.json` of `dreamloom eval world`; kept in the bundle and shown in its card.
        notes: a text for the card: data, recipe, cost, limits.
        seed: of the choice of prompts.
    """
    dataset = open_dataset(data)
    world: Any = Genie(
        load_part(tokenizer, Tokenizer),
        load_part(dynamics, Dynamics),
        load_part(latent_actions, LatentActions) if latent_actions else None,
        prompts=choose_prompts(data, prompts, prompt_frames, stride, seed),
        name=name or out.name,
        game=dataset.attrs.get("game"),
        game_options=_game_options(dataset.attrs),
        fps=float(dataset.attrs.get("fps", 15.0)) / stride,
        steps=steps,
        temperature=temperature,
        order=order,
    )
    world.action_names = _names(world, data)
    world.train_levels = sorted(set().union(*(trained_levels(part) for part in (tokenizer, dynamics, latent_actions) if part)))
    save_bundle(world, out, precision=precision, metrics=metrics, notes=notes.read_text() if notes else "")
    size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"saved {out} ({size:.1f} MB): {', '.join(world.action_names)}\nplay it: dreamloom play {out}")


def _game_options(attrs: Mapping[str, Any]) -> dict[str, str | bool]:
    """The settings that a Procgen recording was made with, of those that change its looks."""
    source = attrs.get("source")
    recorded = source.get("env", {}) if attrs.get("game") and isinstance(source, dict) else {}
    return {key: recorded[key] for key in sorted(GAME_OPTIONS & set(recorded))}


def _names(world: Genie, data: Path) -> list[str]:
    """Learned names of latent actions; the dataset's own names of true ones, where it has them."""
    if world.latent_actions is not None:
        return [label.name for label in label_actions(world, data)]
    return open_dataset(data).action_names or world.action_names


def choose_prompts(data: Path, count: int, length: int, stride: int, seed: int) -> UInt8[Tensor, "p t c h w"]:
    """Windows of frames from different episodes, each from the episode's first half."""
    dataset = open_dataset(data)
    starts, ends = dataset.episodes
    rows = length * stride
    long = np.flatnonzero(ends - starts >= 2 * rows)
    if len(long) < count:
        raise ValueError(f"{data} has {len(long)} episodes of at least {2 * rows} frames; {count} prompts need as many")
    random = np.random.default_rng(seed)
    clips = []
    for episode in random.choice(long, count, replace=False):
        first = int(random.integers(starts[episode], (starts[episode] + ends[episode]) // 2 - rows + 1))
        clips.append(dataset.frames[first : first + rows : stride])
    return torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous()


def save_bundle(
    world: Genie,
    folder: str | Path,
    *,
    precision: Literal["float32", "float16"] = "float32",
    metrics: Path | None = None,
    notes: str = "",
) -> None:
    """Writes a world as a folder; the old one, if any, is replaced when the new one is whole."""
    folder = Path(folder)
    half = precision == "float16"
    weights = {k: (v.half() if half and v.is_floating_point() else v).contiguous().cpu() for k, v in world.state_dict().items()}
    payload = save(weights)
    config = {
        "format": FORMAT,
        "version": VERSION,
        **{key: getattr(world, key) for key in SETTINGS},
        "steps": world.sampling.steps,
        "temperature": world.sampling.temperature,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "prompts": list(world.prompts.shape),
        "train_levels": list(getattr(world, "train_levels", [])),
        **{part: None if getattr(world, part) is None else getattr(world, part).config for part in PARTS},
    }
    contents = {WEIGHTS: payload, CONFIG: yaml.safe_dump(config, sort_keys=False).encode()}
    if metrics:
        contents[METRICS] = metrics.read_bytes()
    contents[CARD] = card(world, json.loads(contents.get(METRICS, b"null")), notes).encode()
    _replace_folder(folder, contents)


def _replace_folder(folder: Path, contents: dict[str, bytes]) -> None:
    """Puts a folder of new files in place of an older bundle, never of anything else."""
    if folder.exists() and not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} exists and is not a world; choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        for name, content in contents.items():
            (new / name).write_bytes(content)
            fsync(new / name)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def load_world(path: str | Path, *, device: torch.device | str = "cpu") -> Genie:
    """Loads a world.

    Args:
        path: a folder, the name of a world that comes with dreamloom ("coinrun"), or "hf://org/name".
        device: where it shall compute.

    Raises:
        BundleError: if the folder is missing, foreign, truncated or changed.
    """
    folder = _located(str(path))
    try:
        payload = (folder / WEIGHTS).read_bytes()
        config = yaml.safe_load((folder / CONFIG).read_text())
        return _assembled(config, payload).to(device).eval().requires_grad_(False)
    except BundleError as error:
        raise BundleError(f"{folder} is not a world that can be loaded: {error}") from error
    except Exception as error:  # a stranger's file can break in any way; the user needs one sentence
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise BundleError(f"{folder} is not a world that can be loaded: {reason}") from error


def _located(path: str) -> Path:
    if path.startswith("hf://"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.removeprefix("hf://"), allow_patterns=[CONFIG, WEIGHTS, METRICS, CARD]))
    if Path(path).is_dir():
        return Path(path)
    shipped = Path(str(files("dreamloom") / "worlds"))
    names = sorted(p.name for p in shipped.iterdir() if (p / CONFIG).is_file()) if shipped.is_dir() else []
    if path in names:
        return shipped / path
    raise BundleError(f"no folder {path!r}, and no world of that name comes with dreamloom ({', '.join(names) or 'none do'})")


def _assembled(config: Any, payload: bytes) -> Genie:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BundleError(f"{CONFIG} is not a {FORMAT} file")
    if config.get("version") != VERSION:
        raise BundleError(f"version {config.get('version')!r} is not supported; this dreamloom reads {VERSION}")
    if hashlib.sha256(payload).hexdigest() != config["sha256"]:
        raise BundleError(f"{WEIGHTS} is not the file that {CONFIG} was written with (truncated or changed)")
    parts = [None if config[part] is None else build(config[part], ALLOWED) for part in PARTS]
    world: Any = Genie(
        *parts,  # type: ignore[arg-type]
        prompts=torch.zeros(config["prompts"], dtype=torch.uint8),
        steps=config["steps"],
        temperature=config["temperature"],
        **{key: config[key] for key in SETTINGS},
    )
    world.train_levels = _level_ranges(config.get("train_levels", []))
    weights = {k: v.float() if v.dtype == torch.float16 else v for k, v in load(payload).items()}
    world.load_state_dict(weights)
    return by_columns(world)


def _level_ranges(levels: Any) -> list[str]:
    if not isinstance(levels, list) or not all(re.fullmatch(r"\d+:\d+", str(one)) for one in levels):
        raise BundleError(f"train_levels {str(levels)[:80]!r} is not a list of ranges LO:HI")
    return levels
