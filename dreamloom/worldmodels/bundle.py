"""A world as a folder that anyone can share: weights (safetensors), `world.yaml`, a model card, metrics.

Nothing in a bundle is executed: classes come from an allow-list, weights from safetensors, and a checksum ties the two.
"""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load, save

from dreamloom.datasets.atomic import fsync, require_folder
from dreamloom.datasets.store import open_dataset
from dreamloom.nn.build import build
from dreamloom.nn.frame_shape import require_shape
from dreamloom.nn.layout import by_columns
from dreamloom.nn.parts import checkpoint_at, read_checkpoint
from dreamloom.suggest import did_you_mean
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.card import card
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.genie import Genie
from dreamloom.worldmodels.labels import action_names_of
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.outcomes import Outcomes, from_bytes, judged, load_outcomes, to_bytes
from dreamloom.worldmodels.parts import ALLOWED, load_part, sampling_of, train_cpu_s, train_wall_s, trained_levels
from dreamloom.worldmodels.playable import Playable, identity_of_data
from dreamloom.worldmodels.prompts import choose_prompts
from dreamloom.worldmodels.world import Sampling

FORMAT, VERSION = "dreamloom-world", 2
CONFIG, WEIGHTS, METRICS, CARD = "world.yaml", "weights.safetensors", "metrics.json", "README.md"
OUTCOMES = "outcomes.safetensors"
DEFAULT = "coinrun"  # of the worlds that come with dreamloom


class BundleError(ValueError):
    """A folder that is not a whole, unchanged world."""


def bundle(
    world: Path | None = None,
    *,
    data: Path,
    out: Path,
    tokenizer: Path | None = None,
    dynamics: Path | None = None,
    latent_actions: Path | None = None,
    outcomes: Path | None = None,
    name: str | None = None,
    prompts: int = 8,
    prompt_frames: int = 4,
    stride: int = 1,
    steps: int | None = None,
    temperature: float | None = None,
    order: Order | None = None,
    precision: Literal["float32", "float16"] = "float16",
    metrics: Path | None = None,
    notes: Path | None = None,
    seed: int = 0,
) -> None:
    """Puts trained parts together into a world: a folder to play, evaluate and share.

    Of a Genie the parts are trained one by one, and --tokenizer and --dynamics are needed; other worlds are trained whole.

    Example:
        dreamloom bundle --tokenizer runs/coinrun/tokenizer --latent-actions runs/coinrun/latent_actions
            --dynamics runs/coinrun/dynamics --data data/coinrun_heldout.hdf5 --out worlds/coinrun
        dreamloom bundle runs/coinrun/diffusion_world --data data/coinrun_heldout.hdf5 --out worlds/diffusion

    Args:
        world: checkpoint of a world that is trained whole; or the folder of its runs, whose newest checkpoint is taken.
        data: dataset for prompt frames and for the names of the actions; held-out levels are best.
        out: folder to write; an older bundle there is replaced.
        tokenizer: likewise of a Genie's tokenizer.
        dynamics: likewise of its dynamics.
        latent_actions: likewise of its latent action model, if the dynamics was trained on one.
        outcomes: likewise of heads that tell rewards and endings (recipes/coinrun/outcomes.yaml); kept with the world.
        name: short name; the folder's by default.
        prompts: number of starts to choose from.
        prompt_frames: frames of each; several show the model how things move.
        stride: rows from one frame to the next, as `data.stride` in training; the world's fps is the dataset's over it.
        steps: default steps a frame (of a Genie: MaskGIT steps); that of the recipe (of its dynamics) where not given.
        temperature: default temperature; likewise.
        order: order of unmasking, of a Genie; likewise.
        precision: of the stored weights.
        metrics: a `metrics.json` of `dreamloom eval world`; kept in the bundle and shown in its card.
        notes: a text for the card: data, recipe, cost, limits.
        seed: of the choice of prompts.
    """
    require_place(out)
    parts = {"tokenizer": tokenizer, "dynamics": dynamics, "latent_actions": latent_actions}
    made = _trained(world, {**parts, "order": order}) if world else _genie(**parts, order=order)
    with open_dataset(data) as dataset:
        _, h, w, c = dataset.frames.shape
        require_shape((c, h, w), made, str(data))
    made.introduce(
        **identity_of_data(data, stride),
        name=name or out.name,
        prompts=choose_prompts(data, prompts, prompt_frames, stride, seed),
        train_levels=made.train_levels,
        train_cpu_s=made.train_cpu_s,
        train_wall_s=made.train_wall_s,
    )
    made.action_names = action_names_of(made, data)
    made.sampling = Sampling(*made.asked(Sampling(steps, temperature)))
    heads = load_outcomes(outcomes) if outcomes else None
    text = notes.read_text() if notes else ""
    save_bundle(made, out, precision=precision, metrics=metrics, notes=text, outcomes=heads)
    size = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"saved {out} ({size:.1f} MB): {', '.join(made.action_names)}\nplay it: dreamloom play {out}")


def _trained(world: Path, of_genies: dict[str, Any]) -> Playable:
    if given := [f"--{key.replace('_', '-')}" for key, value in of_genies.items() if value is not None]:
        raise ValueError(f"{world} is a whole world, which has its parts in it: leave out {', '.join(given)}")
    return _of_checkpoint(checkpoint_at(world))


def _genie(*, tokenizer: Path | None, dynamics: Path | None, latent_actions: Path | None, order: Order | None) -> Playable:
    if tokenizer is None or dynamics is None:
        raise ValueError("need the checkpoint of a whole world, or --tokenizer and --dynamics of a Genie")
    actions = load_part(latent_actions, LatentActions) if latent_actions else None
    sampling = sampling_of(dynamics) | ({} if order is None else {"order": order})
    world = Genie(load_part(tokenizer, Tokenizer), load_part(dynamics, Dynamics), actions, **sampling)
    parts = [part for part in (tokenizer, dynamics, latent_actions) if part]
    world.train_levels = sorted(set().union(*map(trained_levels, parts)))
    world.train_cpu_s, world.train_wall_s = (_sum([cost(part) for part in parts]) for cost in (train_cpu_s, train_wall_s))
    return world


def _sum(costs: list[float | None]) -> float | None:
    """The cost of all parts; None where one does not tell its own."""
    told = [cost for cost in costs if cost is not None]
    return sum(told) if len(told) == len(costs) else None


def save_bundle(
    world: Playable,
    folder: str | Path,
    *,
    precision: Literal["float32", "float16"] = "float32",
    metrics: Path | None = None,
    notes: str = "",
    outcomes: Outcomes | None = None,
) -> None:
    """Writes a world as a folder, with heads for rewards and endings; an old one is replaced when the new one is whole.

    Raises:
        ValueError: the heads are for other frames or other actions.
    """
    folder = Path(folder)
    if outcomes:
        judged(world, outcomes)  # what cannot be loaded is not written
    half = precision == "float16"
    weights = {k: (v.half() if half and v.is_floating_point() else v).contiguous().cpu() for k, v in world.state_dict().items()}
    payload = save(weights)
    config = {
        "format": FORMAT,
        "version": VERSION,
        **world.identity,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "world": world.config,
    }
    contents = {WEIGHTS: payload, CONFIG: yaml.safe_dump(config, sort_keys=False).encode()}
    if metrics:
        contents[METRICS] = metrics.read_bytes()
    if outcomes:
        contents[OUTCOMES] = to_bytes(outcomes)
    contents[CARD] = card(world, json.loads(contents.get(METRICS, b"null")), notes).encode()
    _replace_folder(folder, contents)


def require_place(folder: Path) -> None:
    """A folder that a world is to be written to: not there, or an older bundle.

    Raises:
        ValueError: something else is there, or its place cannot be written.
    """
    if folder.exists() and not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} exists and is not a world; choose another folder")
    require_folder(folder)


def _replace_folder(folder: Path, contents: dict[str, bytes]) -> None:
    """Puts a folder of new files in place of an older bundle, never of anything else."""
    require_place(folder)
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


def load_world(path: str | Path, *, device: torch.device | str = "cpu", outcomes: str | Path | None = None) -> Any:
    """Loads a world.

    Args:
        path: a folder made by `bundle`, the name of a world that comes with dreamloom ("coinrun"), "hf://org/name"; or, of a
            world that is trained whole, a checkpoint or the folder of its runs, whose newest checkpoint is taken.
        device: where it shall compute.
        outcomes: checkpoint of heads that tell rewards and endings; those of the bundle by default, if it has any.

    Returns:
        A `World`: a module in eval mode, or `Judged` where there are heads.

    Raises:
        BundleError: if the files are missing, foreign, truncated or changed.
    """
    place, heads = located(str(path)), load_outcomes(outcomes) if outcomes else None
    try:
        world = _of_checkpoint(place) if place.is_file() else _of_folder(place)
        world = by_columns(world).to(device).eval().requires_grad_(False)
        if heads is None and (place / OUTCOMES).is_file():
            heads = from_bytes((place / OUTCOMES).read_bytes())
        return judged(world, heads)
    except Exception as error:  # a stranger's file can break in any way; the user needs one sentence
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise BundleError(f"{place} is not a world that can be loaded: {reason}") from error


def bundled() -> list[str]:
    """Names of the worlds that come with dreamloom, the default first."""
    return sorted(_shipped(), key=lambda name: (name != DEFAULT, name))


def located(path: str) -> Path:
    """Folder of a bundle, or a checkpoint; a world of the hub is downloaded.

    Raises:
        BundleError: there is none.
    """
    if path.startswith("hf://"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.removeprefix("hf://"), allow_patterns=[CONFIG, WEIGHTS, METRICS, CARD, OUTCOMES]))
    if (Path(path) / CONFIG).is_file() or any(Path(path).glob("*.safetensors")):
        return Path(path)
    if Path(path).exists():
        return _checkpoint_at(path)
    shipped = _shipped()
    if path in shipped:
        return shipped[path]
    names = sorted(shipped)
    near = did_you_mean(path, names)
    raise BundleError(
        f"no folder {path!r}, and no world of that name comes with dreamloom ({', '.join(names) or 'none do'}){near}"
    )


def _shipped() -> dict[str, Path]:
    """The worlds that come with dreamloom: name -> folder."""
    folder = Path(str(files("dreamloom") / "worlds"))
    return {path.name: path for path in folder.iterdir() if (path / CONFIG).is_file()} if folder.is_dir() else {}


def is_bundle(path: str) -> bool:
    """Whether a path is the folder of a world, or the name of one that comes with dreamloom."""
    return (Path(path) / CONFIG).is_file() or (path in _shipped() and not Path(path).exists())


def _checkpoint_at(path: str) -> Path:
    try:
        return checkpoint_at(path)
    except ValueError as error:
        raise BundleError(f"{path} has no {CONFIG}, so it is no bundle; and {error}") from error


def _of_folder(folder: Path) -> Playable:
    payload = (folder / WEIGHTS).read_bytes()
    config = yaml.safe_load((folder / CONFIG).read_text())
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise BundleError(f"{CONFIG} is not a {FORMAT} file")
    config = _of_version_1(config) if config.get("version") == 1 else config
    if config.get("version") != VERSION:
        raise BundleError(f"version {config.get('version')!r} is not supported; this dreamloom reads 1 and {VERSION}")
    if hashlib.sha256(payload).hexdigest() != config["sha256"]:
        raise BundleError(f"{WEIGHTS} is not the file that {CONFIG} was written with (truncated or changed)")
    weights = {k: v.float() if v.dtype == torch.float16 else v for k, v in load(payload).items()}
    about = {key: value for key, value in config.items() if key not in ("format", "version", "sha256", "world")}
    return _assembled(config["world"], about, weights)


def _of_version_1(config: dict[str, Any]) -> dict[str, Any]:
    """A file of the time when every world was a Genie, as one of today."""
    genie = {key: config.pop(key) for key in ("tokenizer", "dynamics", "latent_actions", "order")}
    path = f"{Genie.__module__}.{Genie.__qualname__}"
    return {"train_levels": [], **config, "version": 2, "world": {"class_path": path, "init_args": genie}}


def _of_checkpoint(path: Path) -> Playable:
    """The world that a training task keeps in its checkpoints, see `dreamloom.train.worlds.WorldTask`."""
    checkpoint = read_checkpoint(path)
    if "world" not in checkpoint:
        held = str(checkpoint["model_config"].get("class_path"))
        if held not in ALLOWED:
            raise BundleError(f"it holds a {held}, which is neither a world nor a part of one")
        raise BundleError(
            f"it holds a part of a world ({held.rpartition('.')[2]}); `dreamloom bundle` makes a world of the parts"
        )
    weights = {k.removeprefix("world."): v for k, v in checkpoint["state_dict"].items() if k.startswith("world.")}
    return _assembled(checkpoint["world"]["config"], checkpoint["world"]["identity"], weights)


def _assembled(config: Any, identity: dict[str, Any], weights: dict[str, torch.Tensor]) -> Playable:
    world = build(config, ALLOWED)
    if not isinstance(world, Playable):
        raise BundleError(f"a {type(world).__name__} is no world")
    _check_levels(identity["train_levels"])
    world.identify(identity)
    world.load_state_dict(weights)
    return world


def _check_levels(levels: Any) -> None:
    if not isinstance(levels, list) or not all(re.fullmatch(r"\d+:\d+", str(one)) for one in levels):
        raise BundleError(f"train_levels {str(levels)[:80]!r} is not a list of ranges LO:HI")
