"""Inverse dynamics: which action turned one frame into the next. Trained on real frames, it judges dreams."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm


class InverseModel(nn.Module):
    """A small convolutional classifier of frame pairs.

    Args:
        actions: classes.
        channels: colour channels of a frame.
        width: channels after the first layer.
    """

    def __init__(self, actions: int, *, channels: int = 3, width: int = 32):
        super().__init__()
        self.actions = actions
        widths = [3 * channels, width, 2 * width, 2 * width, 4 * width]
        self.body = nn.Sequential(*[_down(a, b) for a, b in pairwise(widths)])
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, actions))

    def forward(self, before: UInt8[Tensor, "n c h w"], after: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n a"]:
        """Logits of the action between the frames."""
        x, y = before.float() / 127.5 - 1, after.float() / 127.5 - 1
        return self.head(self.body(torch.cat([x, y, y - x], 1)))

    @torch.no_grad()
    def infer(self, before: UInt8[Tensor, "n c h w"], after: UInt8[Tensor, "n c h w"]) -> Int[Tensor, "n"]:
        """The likeliest action between the frames."""
        return torch.cat([self(x, y).argmax(-1) for x, y in zip(before.split(256), after.split(256), strict=True)])


def _down(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.SiLU())


def fit_inverse(
    frames: UInt8[Tensor, "b t c h w"],
    actions: Int[Tensor, "b s"],
    *,
    count: int,
    seed: int,
    passes: int = 4,
    most: int = 600,
    batch: int = 64,
    balanced: bool = True,
) -> InverseModel:
    """Trains an inverse model.

    Args:
        frames: clips of real frames.
        actions: the t - 1 actions between a clip's frames.
        count: number of actions.
        seed: of initialisation and batches.
        passes: times that a pair is drawn on average.
        most: optimizer steps at most; about a minute on two cores.
        batch: pairs a step.
        balanced: whether each action is drawn equally often, as where a test draws actions uniformly; else each pair is.
    """
    before, after, target = pairs(frames, actions)
    steps = max(2, min(most, passes * len(target) // batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InverseModel(count, channels=frames.shape[2])
    model = model.to(frames.device)
    weights = 1 / torch.bincount(target, minlength=count).clamp_min(1)[target].double()
    weights = weights if balanced else torch.ones_like(weights)
    generator = torch.Generator().manual_seed(seed)
    order = torch.multinomial(weights.cpu(), steps * batch, replacement=True, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for rows in tqdm(order.to(target.device).split(batch), desc="inverse model", leave=False):
        loss = F.cross_entropy(model(before[rows], after[rows]), target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)


def pairs(frames: UInt8[Tensor, "b t c h w"], actions: Int[Tensor, "b s"]) -> tuple[Tensor, Tensor, Tensor]:
    """All neighbouring frames of clips, flattened: before, after, and the action between."""
    return frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1), actions.flatten()


def scores(model: InverseModel, frames: Tensor, actions: Tensor) -> dict[str, float]:
    """How often the model finds the action.

    Returns:
        `accuracy` over pairs, and `balanced_accuracy`: the mean over the actions that occur.
    """
    before, after, target = pairs(frames, actions)
    right = (model.infer(before, after) == target).double()
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(_mean_over(right, target))}


def _mean_over(values: Tensor, classes: Tensor) -> Tensor:
    return torch.stack([values[classes == k].mean() for k in classes.unique()]).mean()
