"""What only a Genie can be asked: its tokenizer, its dynamics given the true past, its latent actions, its uncached speed."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from dreamloom.eval.latency import measure
from dreamloom.eval.psnr import psnr, ssim
from dreamloom.tokenizers.quantizers import code_use
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions


def _unit(frames: UInt8[Tensor, "b t c h w"], like: torch.nn.Module) -> Float[Tensor, "b t c h w"]:
    return frames.to(next(like.parameters()).device).float() / 255


def _batches(frames: Tensor, description: str, size: int = 4) -> tqdm:
    return tqdm(frames.split(size), desc=description, leave=False)


@torch.no_grad()
def infer_actions(model: LatentActions, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b s"]:
    """Latent actions between the frames of clips, on the CPU."""
    return torch.cat([model.infer(_unit(part, model)).cpu() for part in _batches(frames, "inferring actions", 16)])


@torch.no_grad()
def tokenize(tokenizer: Tokenizer, frames: UInt8[Tensor, "b t c h w"]) -> Int[Tensor, "b t n"]:
    """Tokens of clips, on the CPU."""
    return torch.cat([tokenizer.encode(_unit(part, tokenizer)).cpu() for part in _batches(frames, "tokenizing")])


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, tokens: Int[Tensor, "b t n"]) -> UInt8[Tensor, "b t c h w"]:
    """Frames of tokens: the ceiling of any dynamics over them."""
    device = next(tokenizer.parameters()).device
    parts = _batches(tokens, "decoding")
    return torch.cat([(tokenizer.decode(part.to(device)) * 255).round().to(torch.uint8).cpu() for part in parts])


def likeness_scores(frames: UInt8[Tensor, "b t c h w"], decoded: UInt8[Tensor, "b t c h w"]) -> dict[str, float]:
    """What codes or latents keep of frames: `psnr`, `ssim`."""
    return {"psnr": float(psnr(frames, decoded).mean()), "ssim": float(ssim(frames, decoded).mean())}


def tokenizer_scores(
    tokenizer: Tokenizer,
    frames: UInt8[Tensor, "b t c h w"],
    tokens: Int[Tensor, "b t n"],
    decoded: UInt8[Tensor, "b t c h w"],
) -> dict[str, float]:
    """The tokenizer's ceiling: `psnr`, `ssim`, `code_usage`, `code_perplexity`, `codes`, `tokens_per_frame`."""
    use = {name: float(value) for name, value in code_use(tokens, tokenizer.codes).items()}
    return {**likeness_scores(frames, decoded), **use, "codes": tokenizer.codes, "tokens_per_frame": tokenizer.tokens}


@torch.no_grad()
def teacher_forced(dynamics: Dynamics, tokens: Int[Tensor, "b t n"], actions: Int[Tensor, "b s"]) -> dict[str, float]:
    """The next frame, all of it masked, from the true past and the action: the first step of the sampler, without sampling.

    Args:
        dynamics: the model.
        tokens: real clips.
        actions: the t - 1 actions between their frames.

    Returns:
        Over all tokens, and over those that differ from the frame before: `cross_entropy` (nats), `accuracy`,
        `changed_cross_entropy`, `changed_accuracy`; also `changed_share` and `chance`, the cross-entropy of guessing.
    """
    device = next(dynamics.parameters()).device
    sums = torch.zeros(6, dtype=torch.float64)
    for part, led in zip(_batches(tokens, "teacher forcing"), actions.split(4), strict=True):
        x = part.to(device)
        logits = dynamics.logits_on_clean(x, torch.full_like(x, dynamics.codes), led.to(device))
        target, changed = x[:, 1:], (x[:, 1:] != x[:, :-1]).double()
        entropy = F.cross_entropy(logits.float().movedim(-1, 1), target, reduction="none").double()
        right = (logits.argmax(-1) == target).double()
        values = [entropy, right, entropy * changed, right * changed, changed, torch.ones_like(changed)]
        sums += torch.stack([value.sum() for value in values]).cpu()
    entropy_sum, right_sum, changed_entropy, changed_right, changes, total = sums.tolist()
    return {
        "cross_entropy": entropy_sum / total,
        "accuracy": right_sum / total,
        "changed_cross_entropy": changed_entropy / max(changes, 1),
        "changed_accuracy": changed_right / max(changes, 1),
        "changed_share": changes / total,
        "chance": float(torch.tensor(float(dynamics.codes)).log()),
    }


@torch.no_grad()
def uncached_latency(
    tokenizer: Tokenizer,
    dynamics: Dynamics,
    tokens: Int[Tensor, "1 t n"],
    actions: Int[Tensor, "1 t"],
    *,
    temperature: float,
    steps: Sequence[int],
    repeats: int,
) -> dict[str, dict[str, float]]:
    """Latency (ms) of one frame the plain way: every step runs all t frames, then all are decoded; for comparison.

    Args:
        tokenizer: decodes.
        dynamics: draws.
        tokens: the past.
        actions: the t actions taken at its frames.
        temperature: of the codes.
        steps: refinement steps to measure.
        repeats: frames timed for each.
    """
    device = next(dynamics.parameters()).device
    past, led = tokens.to(device), actions.to(device)

    def frame(count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        new = dynamics.imagine_uncached(past, led, steps=count, temperature=temperature, generator=generator)
        return tokenizer.decode(torch.cat([past[:, 1:], new[:, None]], 1))

    counts = tqdm(steps, desc="uncached latency", leave=False)
    return {str(n): measure(partial(frame, n), device, repeats=repeats, warmup=1) for n in counts}
