"""Names for latent actions: what people did, or where the picture moved, when a latent action was inferred.

A latent action's name is the motion that it makes likelier than it is anyway: the majority alone would name every action
"right" in a game where one mostly runs right.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.store import open_dataset

MOTIONS = ("right", "left", "up", "down", "stand", "fire")
_WORDS = {"jump": "up", "none": "stand", "noop": "stand", "still": "stand"}
# Procgen's letter keys do nothing in these games; in the others D fires.
UNARMED = {"bigfish", "chaser", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "miner"}
# Games with gravity, where "up" is a jump.
PLATFORMERS = {"climber", "coinrun", "jumper", "ninja"}


@dataclass(frozen=True)
class Label:
    """A name for an action.

    Attributes:
        name: unique among a world's actions, e.g. "right" or "jump right"; "action 3" where nothing is sure enough.
        confidence: probability of that motion given the action, 0 to 1; 0 where nothing is sure enough.
        lift: how many times likelier the action makes it.
    """

    name: str
    confidence: float = 0.0
    lift: float = 1.0


def action_names_of(world: Any, data: Path | str) -> list[str]:
    """Learned names of latent actions, see `label_actions`; the dataset's own names of true ones, where it has them.

    Args:
        world: a world whose `latent_actions` is a model or None.
        data: a dataset of the same kind of video.
    """
    if world.latent_actions is not None:
        return [label.name for label in label_actions(world, data)]
    with open_dataset(data) as file:
        return file.action_names or world.action_names


def label_actions(world: Any, data: Path | str, *, clips: int = 256, seed: int = 0) -> list[Label]:
    """Names a world's latent actions from the data's true actions, or from how the picture moves where it has none.

    Args:
        world: a world with latent actions.
        data: recorded file of the same kind of video; held-out levels are best.
        clips: windows of 16 frames to look at.
        seed: of their choice.

    Returns:
        One label a latent action, all names unique.

    Raises:
        ValueError: the world has no latent actions, or the file has no episode of 16 frames.
    """
    if getattr(world, "latent_actions", None) is None:
        raise ValueError(f"{world.name}: this world takes true actions; they have names already")
    with open_dataset(data) as file:
        names, game, fps = file.action_names, file.attrs.get("game"), file.fps
    stride = max(1, round(fps / world.fps))
    source = ClipSource(data, length=16, stride=stride, residence="disk")
    parts, inferred, moves = [], [], []
    for step in tqdm(range(max(1, clips // 16)), desc="naming the actions", delay=1.0):
        parts.append(source.sample(seed, step, 16))
        inferred.append(_inferred(world, parts[-1].frames))
        moves.append(camera_moves(parts[-1].frames))
    latent, moved = torch.cat(inferred).flatten(), torch.cat(moves).numpy()
    shown = motions_of_moves(moved)
    if names is not None and all(part.actions is not None for part in parts):
        true = torch.cat([part.actions[:, :-1] for part in parts]).flatten()  # type: ignore[index]
        shown = motions_of_actions(names, game)[true.numpy()]
    return name_actions(latent.numpy(), shown, moved, int(world.action_space.n), platformer=game in PLATFORMERS)


@torch.no_grad()
def _inferred(world: Any, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b s"]:
    return world.latent_actions.infer(frames.to(world.device).float() / 255).cpu()


def motions_of_actions(names: Sequence[str], game: str | None = None) -> np.ndarray:
    """(actions, motions) bool: which of `MOTIONS` an action asks for, by the words of its name.

    Args:
        names: e.g. "right-up".
        game: Procgen game, which tells what its letter keys do.
    """
    letter = "stand" if game in UNARMED else "fire"
    words = {"d": letter, **(dict.fromkeys("awsqe", letter) if letter == "stand" else {}), **_WORDS}
    spoken = [{words.get(word, word) for word in re.findall(r"[a-z]+", name.lower())} for name in names]
    return np.array([[motion in said for motion in MOTIONS] for said in spoken])


def motions_of_moves(moved: Float[np.ndarray, "n 2"], *, least: float = 1.0) -> Bool[np.ndarray, "n motions"]:
    """Which of `MOTIONS` the picture shows; see `camera_moves`.

    Args:
        moved: pixels (up, right).
        least: pixels that count as motion.
    """
    up, right = moved.T
    ways = np.stack([right >= least, right <= -least, up >= least, up <= -least], -1)
    still = ~ways.any(-1, keepdims=True)
    return np.concatenate([ways, still, np.zeros_like(still)], -1)


def camera_moves(frames: UInt8[Tensor, "b t c h w"]) -> Float[Tensor, "m 2"]:
    """How far the camera went between neighbouring frames, pixels (up, right), (b (t-1), 2).

    The picture's content goes the other way. Block matching: of all shifts by up to a fifth of the picture the one that leaves
    the least difference, the smallest one where several do. (Phase correlation takes the player, who stays in the middle, for
    the picture.)
    """
    gray = frames.float().mean(2)
    scale = max(1, min(gray.shape[-2:]) // 64)  # larger pictures are compared at about 64 pixels
    gray = F.avg_pool2d(gray, scale)
    before, after = gray[:, :-1].flatten(0, 1), gray[:, 1:].flatten(0, 1)
    h, w = before.shape[-2:]
    reach = max(1, min(h, w) // 5)
    inner = after[:, reach : h - reach, reach : w - reach]
    least, best = torch.full((len(before),), torch.inf), torch.zeros(len(before), 2)
    steps = range(-reach, reach + 1)
    for up, right in sorted(product(steps, steps), key=lambda shift: abs(shift[0]) + abs(shift[1])):
        shifted = before[:, reach - up : h - reach - up, reach + right : w - reach + right]
        difference = (shifted - inner).abs().mean((1, 2))
        better = difference < least
        least, best[better] = torch.where(better, difference, least), torch.tensor([up, right]).float()
    return best * scale


def name_actions(
    latent: Int[np.ndarray, "n"],
    shown: Bool[np.ndarray, "n motions"],
    moved: Float[np.ndarray, "n 2"],
    count: int,
    *,
    platformer: bool = False,
) -> list[Label]:
    """Labels from pairs of a latent action and the motions shown with it.

    Each action takes the motion with the largest p log(p / prior), and a second one of another axis ("jump right") where that
    is as clear. An action with less than 0.5% of the frames, or that makes no motion 1.2 times likelier or three quarters
    sure, stays "action k"; so do all where nearly every frame shows the same. Of actions with one name the surest keeps it;
    how the picture moves tells the others apart: "fall left", "slow right"; else a number does.

    Args:
        latent: inferred actions.
        shown: motions.
        moved: how the camera went, pixels (up, right).
        count: number of latent actions.
        platformer: whether there is gravity: up is "jump", down is "fall".
    """
    prior = shown.mean(0)
    labels = [_label(k, shown[latent == k], prior, len(latent)) for k in range(count)]
    plain: dict[str, int] = {}
    seen: Counter[str] = Counter()
    for k in sorted(range(count), key=lambda k: -labels[k].confidence):
        name = labels[k].name
        first = plain.setdefault(name, k)
        if first != k:
            name = _told_apart(name, moved[latent == k], moved[latent == first])
        if platformer:
            name = " ".join({"up": "jump", "down": "fall"}.get(word, word) for word in name.split())
        seen[name] += 1
        labels[k] = replace(labels[k], name=name if seen[name] == 1 else f"{name} {seen[name]}")
    return labels


def _told_apart(name: str, moved: np.ndarray, plain: np.ndarray) -> str:
    """A name that says what differs from the plain action of that name: the other axis, or the speed."""
    words = [MOTIONS.index(word) for word in name.split()]
    if words[0] > 3:
        return name
    p = motions_of_moves(moved).mean(0)
    other = _second(words[0], p, np.full(len(p), np.inf))
    if len(words) == 1 and other is not None:
        return _joined(words[0], other)
    speed, usual = (float(np.linalg.norm(np.median(pixels, 0))) for pixels in (moved, plain))
    return f"slow {name}" if speed < 0.5 * usual else f"fast {name}" if speed > 2 * usual > 0 else name


def _label(k: int, shown: np.ndarray, prior: np.ndarray, total: int) -> Label:
    if len(shown) < max(5, 0.005 * total):
        return Label(f"action {k}")
    p = shown.mean(0)
    lift = p / np.maximum(prior, 1e-6)
    gain = p * np.log(np.maximum(lift, 1e-6))
    best = int(gain.argmax())
    if (lift[best] < 1.2 and p[best] < 0.75) or prior[best] > 0.95:
        return Label(f"action {k}")
    second = _second(best, p, lift)
    name = MOTIONS[best] if second is None else _joined(best, second)
    return Label(name, float(p[best]), float(lift[best]))


def _joined(best: int, second: int) -> str:
    """ "jump right", not "right jump"."""
    return " ".join(MOTIONS[i] for i in sorted((best, second), reverse=True))


def _second(best: int, p: np.ndarray, lift: np.ndarray) -> int | None:
    """A motion of the other axis that is as clear: of right, left (0, 1) and up, down (2, 3)."""
    if best > 3:
        return None
    pair = (2, 3) if best < 2 else (0, 1)
    other = max(pair, key=lambda i: p[i])
    return other if p[other] >= 0.6 and lift[other] >= 1.1 else None
