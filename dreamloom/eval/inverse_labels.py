"""Labels of clips by ensembles of inverse models that saw the true actions of a few episodes (SS-ORL, arXiv 2210.06518)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from dreamloom.agents.frames import FrameBuffer
from dreamloom.eval.inverse import InverseModel, fit_inverse
from dreamloom.eval.labelers import Labelled, clips, followed

_CHUNK = 1024  # clips that are looked at at once
_PASSES = 40  # over the labelled pairs, by an inverse model that has steps enough


def inverse_said(
    frames: FrameBuffer, actions: int, seeds: Sequence[int], *, share: float, members: int, steps: int, batch: int
) -> dict[str, Shaped[Tensor, "s n"]]:
    """What ensembles of inverse models say of rows without true actions, having learned from those of some episodes.

    A model sees the row's frame, the one before and the one after. The label is the likeliest action of the mean over members.

    Args:
        frames: whose actions are looked at in these episodes alone.
        actions: how many there are.
        seeds: of the draws of episodes, and of the models.
        share: of the rows that are in episodes with true actions.
        members: of an ensemble.
        steps: that each is trained.
        batch: pairs a step.

    Returns:
        `labels`, the true ones in episodes that have them, and `variance` of the members' probabilities, 0 there.
    """
    labels = frames.episodes.actions.long().repeat(len(seeds), 1)
    variance = torch.zeros(labels.shape, device=labels.device)
    for own, varied, seed in zip(labels, variance, seeds, strict=True):
        known, other = labelled_episodes(frames, share, seed)
        models = [_inverse(frames, known, actions, steps, batch, seed * members + number) for number in range(members)]
        own[other], varied[other] = _said(models, frames, other)
    return {"labels": labels, "variance": variance}


def inverse_labels(
    frames: FrameBuffer, actions: int, seeds: Sequence[int], said: Mapping[str, Tensor], *, share: float, sure: float
) -> Labelled:
    """The labels of inverse models; those that learned from true actions keep theirs.

    Args:
        frames: that are labelled.
        actions: how many there are.
        seeds: of the draws of episodes with true actions.
        said: by `inverse_said`.
        share: of the rows that are in these episodes.
        sure: share of the other rows that is kept: those where members' probabilities vary least.
    """
    every, labels = frames.episodes.actions.long(), said["labels"]
    kept, found = [], []
    for own, variance, seed in zip(labels, said["variance"], seeds, strict=True):
        known, other = labelled_episodes(frames, share, seed)
        surest = other[variance[other].argsort()[: max(1, round(sure * len(other)))]]
        kept.append(torch.cat([known, surest]))
        found.append([float((own[rows] == every[rows]).float().mean()) for rows in (other, surest)])
    notes = {"accuracy": [whole for whole, _ in found], "accuracy_kept": [part for _, part in found]}
    return Labelled(labels, kept, torch.eye(actions, device=frames.device).expand(len(seeds), -1, -1), notes)


def labelled_episodes(frames: FrameBuffer, share: float, seed: int) -> tuple[Int[Tensor, "m"], Int[Tensor, "o"]]:
    """Rows of episodes that are drawn until they have this share of all rows, and all other rows; those with a frame after."""
    rows = followed(frames, 1)
    firsts, index, counts = frames.episodes.first[rows].unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(firsts), generator=torch.Generator().manual_seed(seed)).to(rows.device)
    before = counts[order].cumsum(0) - counts[order]
    chosen = torch.zeros(len(firsts), dtype=torch.bool, device=rows.device)
    chosen[order[before < share * len(rows)]] = True
    return rows[chosen[index]], rows[~chosen[index]]


def _inverse(frames: FrameBuffer, rows: Tensor, actions: int, steps: int, batch: int, seed: int) -> InverseModel:
    pairs, labels = _before_and_after(frames, rows), frames.episodes.actions[rows, None].long()
    return fit_inverse(pairs, labels, count=actions, seed=seed, passes=_PASSES, most=steps, batch=batch, balanced=False)


def _before_and_after(frames: FrameBuffer, rows: Tensor) -> UInt8[Tensor, "m 2 c h w"]:
    """The frame before and that of the row, as channels; that of the row and the one after."""
    seen = clips(frames, rows, range(-1, 2))
    return torch.stack([seen[:, :2].flatten(1, 2), seen[:, 1:].flatten(1, 2)], 1)


@torch.no_grad()
def _said(models: Sequence[InverseModel], frames: FrameBuffer, rows: Tensor) -> tuple[Int[Tensor, "m"], Float[Tensor, "m"]]:
    """Labels by an ensemble, and the variance of its members' probabilities, summed over actions."""
    likely, varied = [], []
    for part in rows.split(_CHUNK):
        pair = _before_and_after(frames, part)
        chances = torch.stack([model(pair[:, 0], pair[:, 1]).softmax(-1) for model in models])
        likely.append(chances.mean(0).argmax(-1))
        varied.append(chances.var(0, correction=0).sum(-1))
    return torch.cat(likely), torch.cat(varied)
