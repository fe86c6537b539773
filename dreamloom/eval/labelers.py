"""Who names the actions of clips that come without: a latent action model, an inverse model, or the clips' own true actions.

A labeler gives each row a label, and a table from labels to true actions, by which an agent that clones the labels can act.
Every seed has labelled rows of its own, so that intervals over seeds contain the luck of their draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dreamloom.agents.frames import FrameBuffer
from dreamloom.worldmodels.bundle import CONFIG, load_world
from dreamloom.worldmodels.labels import motions_of_actions
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.parts import load_part

_CHUNK = 1024  # clips that are looked at at once


@dataclass(frozen=True)
class Labels:
    """Whose labels an arm clones.

    Attributes:
        by: "true" actions; "latent" ones of the study's latent action model; "inverse": those that an ensemble of inverse
            models finds, trained on the true actions of some episodes (SS-ORL, Zheng et al. 2023); "random": none, actions are
            drawn.
        samples: of true actions, only so many rows; of latent ones, the labelled rows that the dictionary is made of.
        drawn: latent: whether a latent action stands for all true ones that it was seen with, one of which is drawn at each
            step, as published (Bruce et al. 2024, appendix E), or for the most frequent one.
        sure: inverse: the share of the labelled rows that is cloned, those on which the ensemble varies least.
    """

    by: Literal["true", "latent", "inverse", "random"]
    samples: int | None = None
    drawn: bool = True
    sure: float = 1.0

    def require(self, name: str) -> None:
        """Refuses what cannot be.

        Raises:
            ValueError: a dictionary of no rows, or settings that are another labeler's.
        """
        if (self.samples or 1) < 1 or not 0 < self.sure <= 1:
            raise ValueError(f"arm {name}: `samples` must be at least 1 and `sure` lie in (0, 1], got {self}")
        if (self.by == "latent") != (self.samples is not None) and self.by != "true":
            raise ValueError(f"arm {name}: `samples` go with latent labels, which need them, and with true ones; got {self}")
        if (not self.drawn and self.by != "latent") or (self.sure < 1 and self.by != "inverse"):
            raise ValueError(f"arm {name}: `drawn` goes with latent labels, `sure` with those of inverse models; got {self}")


@dataclass
class Labelled:
    """What a labeler says of frames, for each seed.

    Attributes:
        labels: of every row; those of rows that it does not label mean nothing.
        rows: that it labels, of each seed.
        table: probability of each true action given the label.
        notes: what is known of it.
    """

    labels: Int[Tensor, "s n"]
    rows: list[Tensor]
    table: Float[Tensor, "s k a"]
    notes: dict[str, Any] = field(default_factory=dict)

    def right(self, actions: Int[Tensor, "n"]) -> list[float]:
        """How often acting by the labels is what was done, over the rows of each seed."""
        each = zip(self.labels, self.rows, self.table, strict=True)
        return [float(table[labels[rows], actions[rows]].mean()) for labels, rows, table in each]

    def act(self, said: Int[Tensor, "s p"], generator: torch.Generator) -> Int[Tensor, "s p"]:
        """True actions of labels that agents name."""
        chances = self.table[torch.arange(len(said), device=said.device)[:, None], said]
        return torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view_as(said)


def merged_actions(names: Sequence[str], game: str | None) -> Int[Tensor, "a"]:
    """The first action that asks for the same motion as each one: six of Procgen's 15 do nothing in most games."""
    _, first, group = np.unique(motions_of_actions(names, game), axis=0, return_index=True, return_inverse=True)
    return torch.from_numpy(first[group.reshape(-1)])


def load_latent_actions(path: str) -> LatentActions:
    """The latent action model of a world (a folder, or a name that comes with dreamloom), or of a checkpoint or folder of runs.

    Raises:
        ValueError: there is none.
    """
    at = Path(path)
    if at.is_file() or (at.is_dir() and not (at / CONFIG).is_file()):
        return load_part(at, LatentActions)
    model = getattr(load_world(path), "latent_actions", None)
    if model is None:
        raise ValueError(f"{path}: this world takes true actions; latent ones need a world that learned them")
    return model


def true_labels(frames: FrameBuffer, actions: int, seeds: Sequence[int], samples: int | None) -> Labelled:
    """The clips' own actions, of all rows or of a few."""
    labels = frames.episodes.actions.long().expand(len(seeds), -1)
    rows = [frames.rows if samples is None else _few(frames.rows, samples, seed) for seed in seeds]
    return Labelled(labels, rows, torch.eye(actions, device=frames.device).expand(len(seeds), -1, -1))


def no_labels(frames: FrameBuffer, actions: int, seeds: Sequence[int]) -> Labelled:
    """One label, which stands for every action."""
    labels = torch.zeros(len(seeds), len(frames.episodes.frames), dtype=torch.long, device=frames.device)
    table = torch.full((len(seeds), 1, actions), 1 / actions, device=frames.device)
    return Labelled(labels, [frames.rows] * len(seeds), table)


@torch.no_grad()
def inferred(frames: FrameBuffer, model: LatentActions, *, stride: int, clip: int) -> Int[Tensor, "n"]:
    """The latent action of each row: what happens until the row `stride` later; 0 where no such row follows.

    Args:
        frames: the clips.
        model: on the frames' device.
        stride: rows from one frame that the model sees to the next.
        clip: frames that it sees, the later one included.
    """
    rows = followed(frames, stride)
    before = range(-(clip - 2) * stride, stride + 1, stride)
    found = [model.infer(clips(frames, part, before).float() / 255)[:, -1] for part in rows.split(_CHUNK)]
    labels = torch.zeros(len(frames.episodes.frames), dtype=torch.long, device=frames.device)
    labels[rows] = torch.cat(found)
    return labels


def latent_labels(
    frames: FrameBuffer, labels: Int[Tensor, "n"], seeds: Sequence[int], sizes: tuple[int, int], *, stride: int, arm: Labels
) -> Labelled:
    """Latent actions, and a dictionary of them from a few labelled rows.

    Args:
        frames: whose actions are looked at in these rows alone.
        labels: the latent action of each row.
        seeds: of the draws of labelled rows.
        sizes: how many latent and how many true actions there are.
        stride: rows until the one that a label tells of.
        arm: how many rows are labelled, and what the dictionary says.
    """
    rows = followed(frames, stride)
    tables = []
    for seed in seeds:
        few = _few(rows, arm.samples or 1, seed)
        tables.append(dictionary(labels[few], frames.episodes.actions[few], sizes, drawn=arm.drawn))
    return Labelled(labels.expand(len(seeds), -1), [rows] * len(seeds), torch.stack(tables))


def dictionary(
    labels: Int[Tensor, "m"], actions: Int[Tensor, "m"], shape: tuple[int, int], *, drawn: bool
) -> Float[Tensor, "k a"]:
    """Probability of each true action given the label, from pairs of them.

    A label that no pair shows stands for what all pairs show.

    Args:
        labels: of the labelled rows.
        actions: their true actions.
        shape: how many labels and actions there are.
        drawn: whether a label stands for all actions seen with it, or for the most frequent.
    """
    counts = torch.zeros(shape, device=labels.device).index_put_((labels, actions), torch.ones_like(labels).float(), True)
    counts = torch.where(counts.any(1, keepdim=True), counts, counts.sum(0))
    if drawn:
        return counts / counts.sum(1, keepdim=True)
    return torch.nn.functional.one_hot(counts.argmax(1), shape[1]).float()


def followed(frames: FrameBuffer, stride: int) -> Int[Tensor, "m"]:
    """Rows whose episode has a frame `stride` rows later."""
    first = frames.episodes.first
    ahead = frames.rows + stride
    there = ahead < len(first)
    return frames.rows[there & (first[ahead.clamp(max=len(first) - 1)] == first[frames.rows])]


def clips(frames: FrameBuffer, rows: Int[Tensor, "m"], offsets: range) -> UInt8[Tensor, "m t c h w"]:
    """Frames around some rows; before an episode's first one, that one."""
    index = rows[:, None] + torch.tensor(offsets, device=rows.device)
    index = torch.maximum(index, frames.episodes.first[rows].long()[:, None])
    return frames.episodes.frames[index].permute(0, 1, 4, 2, 3)


def _few(rows: Int[Tensor, "m"], count: int, seed: int) -> Int[Tensor, "l"]:
    """A seeded draw without replacement; the draws of one seed contain one another."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return rows[order.to(rows.device)]
