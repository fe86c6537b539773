"""Names for latent actions: what people did, or where the picture moved, when a latent action was inferred.

A latent action's name is the motion that it makes likelier than it is anyway: the majority alone would name every action
"right" in a game where one mostly runs right.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.store import open_dataset

MOTIONS = ("right", "left", "up", "down", "stand", "fire")
_WORDS = {"jump": "up", "none": "stand", "noop": "stand", "still": "stand"}
# Procgen's letter keys do nothing in these games; in the others D fires.
_UNARMED = {"bigfish", "chaser", "climber", "coinrun", "heist", "jumper", "leaper", "maze", "miner"}
# Games with gravity, where "up" is a jump.
_PLATFORMERS = {"climber", "coinrun", "jumper", "ninja"}


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


def label_actions(world: Any, data: Path | str, *, clips: int = 256, seed: int = 0) -> list[Label]:
    """Names a world's latent actions from the data's true actions, or from how the picture moves where it has none.

    Args:
        world: a Genie with latent actions.
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
    parts = [source.sample(seed, step, 16) for step in range(max(1, clips // 16))]
    latent = torch.cat([_inferred(world, part.frames) for part in parts]).flatten()
    if names is not None and all(part.actions is not None for part in parts):
        true = torch.cat([part.actions[:, :-1] for part in parts]).flatten()  # type: ignore[index]
        shown = motions_of_actions(names, game)[true.numpy()]
    else:
        shown = np.concatenate([motions_of_frames(part.frames) for part in parts])
    return name_actions(latent.numpy(), shown, int(world.action_space.n), upward="jump" if game in _PLATFORMERS else "up")


@torch.no_grad()
def _inferred(world: Any, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b s"]:
    return world.latent_actions.infer(frames.to(world.device).float() / 255).cpu()


def motions_of_actions(names: Sequence[str], game: str | None = None) -> np.ndarray:
    """(actions, motions) bool: which of `MOTIONS` an action asks for, by the words of its name.

    Args:
        names: e.g. "right-up".
        game: Procgen game, which tells what its letter keys do.
    """
    letter = "stand" if game in _UNARMED else "fire"
    words = {"d": letter, **(dict.fromkeys("awsqe", letter) if letter == "stand" else {}), **_WORDS}
    spoken = [{words.get(word, word) for word in re.findall(r"[a-z]+", name.lower())} for name in names]
    return np.array([[motion in said for motion in MOTIONS] for said in spoken])


def motions_of_frames(frames: UInt8[Tensor, "b t c h w"], *, least: float = 1.0) -> np.ndarray:
    """(b (t-1), motions) bool: where the camera went between neighbouring frames.

    The picture's content moves left when one goes right, and down when one jumps.

    Args:
        frames: clips.
        least: pixels of shift that count as motion.
    """
    down, right = global_shift(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)).unbind(-1)
    moved = torch.stack([right <= -least, right >= least, down >= least, down <= -least], -1)
    still = ~moved.any(-1, keepdim=True)
    return torch.cat([moved, still, torch.zeros_like(still)], -1).numpy()


def global_shift(before: UInt8[Tensor, "n c h w"], after: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n 2"]:
    """How far the picture as a whole moved, pixels (down, right), by phase correlation (Kuglin & Hines 1975)."""
    h, w = before.shape[-2:]
    window = torch.outer(torch.hann_window(h, periodic=False), torch.hann_window(w, periodic=False))
    x, y = ((f.float().mean(1) - f.float().mean((1, 2, 3))[:, None, None]) * window for f in (before, after))
    cross = torch.fft.rfft2(y) * torch.fft.rfft2(x).conj()
    peak = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-6), s=(h, w)).flatten(1).argmax(-1)
    rows, columns = peak // w, peak % w
    still = (before == after).flatten(1).all(1)
    shift = torch.stack([_signed(rows, h), _signed(columns, w)], -1).float()
    return shift.masked_fill(still[:, None], 0)


def _signed(index: Tensor, size: int) -> Tensor:
    return torch.where(index > size // 2, index - size, index)


def name_actions(latent: Int[np.ndarray, "n"], shown: np.ndarray, count: int, *, upward: str = "up") -> list[Label]:
    """Labels from pairs of a latent action and the motions shown with it.

    Each action takes the motion with the largest p log(p / prior), and a second one of another axis ("jump right") where that
    is as clear. An action with less than 0.5% of the frames, or that makes no motion 1.2 times likelier or three quarters
    sure, stays "action k".

    Args:
        latent: inferred actions.
        shown: (n, motions) bool.
        count: number of latent actions.
        upward: what to call going up, e.g. "jump".
    """
    prior = shown.mean(0)
    labels = [_label(k, shown[latent == k], prior, len(latent)) for k in range(count)]
    seen: Counter[str] = Counter()
    for k in sorted(range(count), key=lambda k: -labels[k].confidence):  # the surest one goes without a number
        name = " ".join(upward if word == "up" else word for word in labels[k].name.split())
        seen[name] += 1
        labels[k] = replace(labels[k], name=name if seen[name] == 1 else f"{name} {seen[name]}")
    return labels


def _label(k: int, shown: np.ndarray, prior: np.ndarray, total: int) -> Label:
    if len(shown) < max(5, 0.005 * total):
        return Label(f"action {k}")
    p = shown.mean(0)
    lift = p / np.maximum(prior, 1e-6)
    gain = p * np.log(np.maximum(lift, 1e-6))
    best = int(gain.argmax())
    if lift[best] < 1.2 and p[best] < 0.75:
        return Label(f"action {k}")
    second = _second(best, p, lift)
    name = MOTIONS[best] if second is None else " ".join(MOTIONS[i] for i in sorted((best, second), reverse=True))
    return Label(name, float(p[best]), float(lift[best]))


def _second(best: int, p: np.ndarray, lift: np.ndarray) -> int | None:
    """A motion of the other axis that is as clear: of right, left (0, 1) and up, down (2, 3)."""
    if best > 3:
        return None
    pair = (2, 3) if best < 2 else (0, 1)
    other = max(pair, key=lambda i: p[i])
    return other if p[other] >= 0.6 and lift[other] >= 1.1 else None
