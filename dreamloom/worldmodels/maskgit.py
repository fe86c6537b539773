"""MaskGIT (Chang et al. 2022, arXiv 2202.04200): fill a frame of tokens in a few parallel steps.

The sampler knows nothing of a transformer: it asks a callable for logits. Orders of unmasking: `random` (the
paper's Genie setting), `confidence` (MaskGIT's own; greedy, inclined to repeat the last frame), `halton` (low-discrepancy,
Besnier et al. 2025, arXiv 2503.17076).
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Order = Literal["random", "confidence", "halton"]


def draw(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
    kind: Callable[..., Tensor] = torch.rand,
) -> Tensor:
    """Numbers of a shape whose first axis is the batch; with a generator a row, rows are independent.

    Args:
        shape: of the whole batch.
        generator: one for all rows, or one for each; torch's own where None.
        device: where the numbers are wanted.
        kind: torch.rand, uniform in [0, 1), or torch.randn, normal.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = generator.device if generator is not None else device
        return kind(tuple(shape), generator=generator, device=source).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"need one generator, or one for each of {shape[0]} worlds, got {len(generator)}")
    return torch.stack([kind(tuple(shape[1:]), generator=g, device=g.device) for g in generator]).to(device)


def masked_after(step: int, steps: int, n: int) -> int:
    """Tokens of n still masked after a step (1..steps): the cosine schedule, at least one token filled a step."""
    left = math.floor(n * math.cos(math.pi / 2 * step / steps))
    return 0 if step == steps else min(left, n - step)


def halton_order(grid: int) -> Int[Tensor, "n"]:
    """Rank of each token of a grid when cells are visited along the Halton sequence in bases 2 and 3."""
    rank: dict[tuple[int, int], int] = {}
    index = 1
    while len(rank) < grid * grid:
        cell = (int(_radical_inverse(index, 2) * grid), int(_radical_inverse(index, 3) * grid))
        rank.setdefault(cell, len(rank))
        index += 1
    return torch.tensor([rank[r, c] for r in range(grid) for c in range(grid)])


def _radical_inverse(index: int, base: int) -> float:
    value, scale = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value, scale = value + digit * scale, scale / base
    return value


def sample_codes(logits: Float[Tensor, "b m k"], uniform: Float[Tensor, "b m"], temperature: float) -> Int[Tensor, "b m"]:
    """Draws codes by inversion of the distribution function, one uniform number a token.

    Args:
        logits: unnormalised log-probabilities.
        uniform: numbers in [0, 1).
        temperature: divides the logits; 0 takes the likeliest code.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def entropies(logits: Float[Tensor, "b m k"]) -> Float[Tensor, "b m"]:
    """Entropy (nats) of each token's distribution: 0 where the model is sure, ln(k) where it knows nothing."""
    logits = logits.float()
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def fill_frame(
    logits: Callable[[Int[Tensor, "b n"], Int[Tensor, "b m"] | None], Float[Tensor, "b m k"]],
    *,
    b: int,
    n: int,
    mask_code: int,
    steps: int,
    temperature: float,
    order: Order,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device,
) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b"]]:
    """Fills b frames of n masked tokens.

    Args:
        logits: what is asked: the codes of some tokens (all where None), given tokens (with `mask_code` where masked).
            It is asked about no more of them than the order needs.
        b: frames.
        n: tokens a frame.
        mask_code: the code that stands for "masked".
        steps: refinement steps, at least 1; more than n makes no difference.
        temperature: see `sample_codes`.
        order: which tokens are kept first.
        generator: randomness, see `draw`.
        device: where to work.

    Returns:
        The tokens, and the mean entropy (nats) of the distributions that they were drawn from, before the temperature.

    Raises:
        ValueError: if steps or temperature are out of range.
    """
    if steps < 1 or not 0 <= temperature < math.inf:
        raise ValueError(f"need steps >= 1 and a finite temperature >= 0, got steps {steps} and temperature {temperature}")
    steps = min(steps, n)
    tokens, entropy = torch.full((b, n), mask_code, device=device), torch.zeros(b, device=device)
    if order == "confidence":
        return _by_confidence(logits, tokens, mask_code, steps, temperature, generator)
    if order == "random":
        turn = draw((b, n), generator, device).argsort(-1)
    else:
        turn = halton_order(math.isqrt(n)).argsort().to(device).expand(b, n)
    for step in range(1, steps + 1):
        chosen = turn[:, n - masked_after(step - 1, steps, n) : n - masked_after(step, steps, n)]
        found = logits(tokens, chosen)
        codes = sample_codes(found, draw(chosen.shape, generator, device), temperature)
        tokens, entropy = tokens.scatter(1, chosen, codes), entropy + entropies(found).sum(-1)
    return tokens, entropy / n


def _by_confidence(
    logits: Callable, tokens: Tensor, mask_code: int, steps: int, temperature: float, generator: object
) -> tuple[Tensor, Tensor]:
    """Keeps the tokens drawn with the highest probability, blurred by Gumbel noise that fades over the steps (section 3.2)."""
    n, entropy = tokens.shape[1], torch.zeros(len(tokens), device=tokens.device)
    for step in range(1, steps + 1):
        masked = tokens == mask_code
        found = logits(tokens, None)
        uniform = draw((*tokens.shape, 2), generator, tokens.device)  # type: ignore[arg-type]
        codes = sample_codes(found, uniform[..., 0], temperature)
        surety = found.float().log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)
        gumbel = -(-uniform[..., 1].clamp_min(1e-20).log()).clamp_min(1e-20).log()
        surety = (surety + temperature * (1 - step / steps) * gumbel).masked_fill(~masked, -torch.inf)
        count = masked_after(step - 1, steps, n) - masked_after(step, steps, n)
        chosen = surety.topk(count, dim=-1).indices
        tokens = tokens.scatter(1, chosen, codes.gather(1, chosen))
        entropy = entropy + entropies(found).gather(1, chosen).sum(-1)
    return tokens, entropy / n
