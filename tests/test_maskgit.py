"""MaskGIT: the schedule, the orders, and draws that follow the distribution they are said to follow."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamloom.worldmodels.maskgit import draw, fill_frame, halton_order, masked_after, sample_codes

ORDERS = ("random", "confidence", "halton")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def fill(logits: torch.Tensor, *, asked: list | None = None, **settings: object) -> torch.Tensor:
    """Fills frames whose logits (b n k) do not depend on what is filled already; `asked` keeps what the model was shown."""
    b, n, k = logits.shape

    def told(tokens: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
        if asked is not None:
            asked.append(tokens)
        return logits if wanted is None else logits.take_along_dim(wanted[..., None], 1)

    defaults = {"steps": 4, "temperature": 1.0, "order": "random", "generator": torch.Generator().manual_seed(0)}
    return fill_frame(told, b=b, n=n, mask_code=k, device=torch.device("cpu"), **(defaults | settings))[0]


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_every_step_fills_at_least_one_token_and_the_last_fills_all(case: tuple[int, int]) -> None:
    steps, n = case
    left = [masked_after(step, steps, n) for step in range(steps + 1)]
    assert (left[0], left[-1]) == (n, 0)
    assert all(before - after >= 1 for before, after in itertools.pairwise(left))


def test_the_schedule_is_the_cosine() -> None:
    assert [masked_after(s, 4, 256) for s in range(5)] == [
        256,
        *(math.floor(256 * math.cos(math.pi * s / 8)) for s in (1, 2, 3)),
        0,
    ]


@pytest.mark.parametrize("grid", [1, 2, 5, 8, 16])
def test_halton_order_visits_every_token_once(grid: int) -> None:
    assert sorted(halton_order(grid).tolist()) == list(range(grid * grid))


def test_halton_order_spreads_its_first_tokens() -> None:
    """Of 16 x 16 tokens the first 64 leave no 4 x 4 block empty and crowd none; rows in order would fill four."""
    first = (halton_order(16) < 64).reshape(4, 4, 4, 4).sum((1, 3))
    assert int(first.min()) >= 2
    assert int(first.max()) <= 6


def test_codes_are_drawn_from_the_softmax() -> None:
    """Chi-square over 8 codes (7 degrees of freedom: 24.3 is exceeded once in a thousand times) at three temperatures."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -2.0])
    for temperature in (0.5, 1.0, 3.0):
        uniform = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(1))
        codes = sample_codes(logits.expand(1, 20_000, 8), uniform, temperature)
        expected = 20_000 * (logits / temperature).softmax(0)
        assert ((codes[0].bincount(minlength=8) - expected).square() / expected).sum() < 24.3


@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_a_code_without_probability_is_never_drawn(seed: int, temperature: float) -> None:
    """Also for uniform numbers at the very ends of [0, 1)."""
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(seed))
    logits[..., 0] = logits[..., 4] = -torch.inf
    codes = sample_codes(logits, torch.tensor([[0.0, 0.5, 1 - 2**-24]]), temperature)
    assert bool(((codes > 0) & (codes < 4)).all())


@pytest.mark.parametrize("order", ORDERS)
def test_entropy_rises_with_temperature(order: str) -> None:
    logits = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(64, 16, 16) * 2
    entropies = []
    for temperature in (0.0, 0.3, 1.0, 2.0, 10.0):
        p = fill(logits, order=order, temperature=temperature).flatten().bincount(minlength=16) / 1024
        entropies.append(float(torch.special.entr(p).sum()))
    assert entropies[0] == 0
    assert all(b > a + 0.05 for a, b in itertools.pairwise(entropies)), entropies
    assert entropies[-1] > 0.97 * math.log(16)


@pytest.mark.parametrize("order", ORDERS)
def test_temperature_zero_takes_the_likeliest_whatever_the_generator(order: str) -> None:
    logits = torch.randn(2, 16, 9)
    for seed in (0, 1):
        (generator,) = generators(seed)
        assert torch.equal(fill(logits, order=order, temperature=0.0, generator=generator), logits.argmax(-1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3, 9, 50])
def test_a_generator_a_row_makes_rows_independent_of_their_batch(order: str, steps: int) -> None:
    logits = torch.randn(3, 9, 7)
    together = fill(logits, order=order, steps=steps, generator=generators(5, 6, 7))
    alone = [fill(logits[i : i + 1], order=order, steps=steps, generator=generators(5 + i)) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, fill(logits, order=order, steps=steps, generator=generators(8, 9, 10)))


@pytest.mark.parametrize("order", ORDERS)
def test_each_step_shows_the_model_what_was_filled_and_keeps_it(order: str) -> None:
    asked: list[torch.Tensor] = []
    final = fill(torch.randn(2, 16, 5), order=order, steps=6, asked=asked)
    for step, tokens in enumerate(asked):
        masked = tokens == 5
        assert (masked.sum(-1) == masked_after(step, 6, 16)).all()
        assert torch.equal(tokens[~masked], final[~masked])
    assert bool((final < 5).all())


def test_orders_fill_what_they_say_first() -> None:
    """`confidence` (greedy, so that no noise blurs it) the surest tokens, `halton` its own, `random` another each time."""
    logits = torch.zeros(1, 16, 4)
    logits[0, :, 1] = torch.arange(16.0)
    filled = {}
    for order in ORDERS:
        asked: list[torch.Tensor] = []
        fill(logits, order=order, steps=2, temperature=0.0, asked=asked)
        filled[order] = set((asked[1][0] != 4).nonzero().flatten().tolist())
    first = 16 - masked_after(1, 2, 16)
    assert filled["confidence"] == set(range(16 - first, 16))
    assert filled["halton"] == set((halton_order(4) < first).nonzero().flatten().tolist())
    others = []
    for seed in range(3):
        asked = []
        fill(logits, steps=2, asked=asked, generator=torch.Generator().manual_seed(seed))
        others.append(frozenset((asked[1][0] != 4).nonzero().flatten().tolist()))
    assert len(set(others)) > 1


def test_more_steps_than_tokens_make_no_difference() -> None:
    logits = torch.randn(1, 4, 5)
    assert torch.equal(fill(logits, steps=4), fill(logits, steps=100))


@pytest.mark.parametrize(("steps", "temperature"), [(0, 1.0), (-1, 1.0), (1, -0.1), (1, math.inf), (1, math.nan)])
def test_settings_out_of_range_are_told(steps: int, temperature: float) -> None:
    with pytest.raises(ValueError, match="steps >= 1 and a finite temperature"):
        fill(torch.zeros(1, 4, 3), steps=steps, temperature=temperature)


def test_too_few_generators_are_told() -> None:
    with pytest.raises(ValueError, match="each of 3 worlds, got 2"):
        draw((3, 4), generators(0, 1), torch.device("cpu"))


@pytest.mark.parametrize("order", ORDERS)
def test_uncertainty_is_the_mean_entropy_of_what_was_drawn(order: str) -> None:
    """Of frames that the model knows nothing of, is sure of, and knows half of."""
    sure = torch.zeros(4, 8)
    sure[:, 3] = 1e4
    logits = torch.stack([torch.zeros(4, 8), sure, torch.cat([sure[:2], torch.zeros(2, 8)])])
    settings = {"steps": 3, "temperature": 0.5, "order": order, "generator": torch.Generator().manual_seed(0)}
    _, entropy = fill_frame(
        lambda tokens, wanted: logits if wanted is None else logits.take_along_dim(wanted[..., None], 1),
        **{"b": 3, "n": 4, "mask_code": 8, "device": torch.device("cpu")} | settings,
    )
    torch.testing.assert_close(entropy, torch.tensor([1.0, 0.0, 0.5]) * torch.tensor(8.0).log())
