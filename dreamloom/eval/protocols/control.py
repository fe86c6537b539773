"""Control: does a world do what it is told, and nothing when it is told nothing."""

from collections.abc import Sequence

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from dreamloom.eval.inverse import InverseModel, pairs
from dreamloom.eval.protocols.rollout import Take
from dreamloom.eval.psnr import bootstrap, delta_psnr, psnr, squared_error

# The paper's t of delta_t PSNR.
DELTA_STEP = 4
STILL_NAMES = frozenset({"none", "noop", "stand", "still"})


def delta4(taken: Take, swapped: UInt8[Tensor, "b s c h w"], *, seed: int) -> dict[str, float]:
    """delta_4 PSNR over clips with its 95% interval: `mean`, `low`, `high`, dB.

    Args:
        taken: dreams under the clips' own actions.
        swapped: dreams from the same starts under random actions.
        seed: of the bootstrap.
    """
    t = DELTA_STEP - 1
    return bootstrap(delta_psnr(taken.truth[:, t], taken.dream[:, t], swapped[:, t]), seed=seed)


def action_swap(
    inverse: InverseModel, taken: Take, swapped: UInt8[Tensor, "b s c h w"], actions: Int[Tensor, "b s"]
) -> dict[str, float]:
    """How often the inverse model finds, in a dream, the action that the world was given.

    Args:
        inverse: trained on real frames.
        taken: dreams under the clips' own actions.
        swapped: dreams under random actions.
        actions: those random actions.

    Returns:
        `accuracy` under random actions, `same_accuracy` under the clips' own.
    """

    def found(dream: Tensor, led: Tensor) -> float:
        device = next(inverse.parameters()).device
        clip = torch.cat([taken.prompt[:, -1:], dream], 1).to(device)
        before, after, target = pairs(clip, led.to(device))
        return float((inverse.infer(before, after) == target).double().mean())

    return {"accuracy": found(swapped, actions), "same_accuracy": found(taken.dream, taken.led)}


def still_action(names: Sequence[str], frames: UInt8[Tensor, "b t c h w"], actions: Int[Tensor, "b s"]) -> int:
    """The action that does nothing: by its name, else the one under which real frames change least (of those in use)."""
    named = [k for k, name in enumerate(names) if name in STILL_NAMES]
    if named:
        return named[0]
    change = squared_error(frames[:, 1:], frames[:, :-1])
    used = [k for k in range(len(names)) if (actions == k).double().mean() >= 0.02]
    return min(used or actions.unique().tolist(), key=lambda k: float(change[actions == k].mean()))


def no_op(
    action: int,
    start: UInt8[Tensor, "b c h w"],
    held: UInt8[Tensor, "b s c h w"],
    frames: UInt8[Tensor, "b t c h w"],
    actions: Int[Tensor, "b u"],
) -> dict[str, object]:
    """How still a world keeps while the action that does nothing is held.

    Args:
        action: that action.
        start: last real frame before it.
        held: the dream under it.
        frames: real clips to compare with.
        actions: the actions between their frames.

    Returns:
        `psnr_to_start` after as many steps; `step_psnr` of neighbouring frames, dream and real (`real_step_psnr`, None where
        no real frame shows the action): a still world has high ones, and a world that lives on by itself those of the real.
    """
    at = [h for h in (1, 4, 16) if h <= held.shape[1]]
    kept = psnr(held, start[:, None].expand_as(held)).mean(0)
    real = psnr(frames[:, 1:], frames[:, :-1])[actions == action]
    return {
        "action": action,
        "psnr_to_start": {str(h): float(kept[h - 1]) for h in at},
        "step_psnr": float(psnr(held, torch.cat([start[:, None], held[:, :-1]], 1)).mean()),
        "real_step_psnr": float(real.mean()) if len(real) else None,
    }
