"""Dynamics: honest losses, no look ahead, action and frame in step, and sampling that equals training and itself uncached."""

import math
from typing import get_args

import pytest
import torch
from exact import float64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_world import counter_clips

from dreamloom.worldmodels.dynamics import Dynamics, Injection, clean_past_mask
from dreamloom.worldmodels.maskgit import Order

INJECTIONS, ORDERS = get_args(Injection), get_args(Order)
few = settings(max_examples=15, derandomize=True)


def dynamics(seed: int = 0, *, strong: bool = True, **settings: object) -> Dynamics:
    """4 tokens a frame of 6 codes, 3 actions; with weights large enough that every part matters."""
    torch.manual_seed(seed)
    model = Dynamics(6, 4, 3, **({"width": 16, "depth": 2, "heads": 2, "window": 3} | settings)).eval()
    for parameter in model.parameters() if strong else []:
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def clip(t: int, b: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, their masked version (frame 0 whole), and actions."""
    tokens, actions = torch.randint(6, (b, t, 4)), torch.randint(3, (b, t - 1))
    masked = tokens.masked_fill(torch.rand(tokens.shape) < 0.7, 6)
    masked[:, 0] = tokens[:, 0]
    return tokens, masked, actions


def train(model: Dynamics, draw, steps: int, lr: float = 3e-3) -> list[float]:
    """Losses of a short training on batches that `draw` gives."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=lr, weight_decay=0)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _ = model.loss(*draw(generator), generator)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    model.eval()
    return losses


@pytest.mark.parametrize("past", ["clean", "masked"])
@pytest.mark.parametrize("injection", INJECTIONS)
def test_random_tokens_cannot_be_predicted_better_than_chance(past: str, injection: str) -> None:
    """Untrained, and after a training that would find any leak of the targets; chance is ln(codes)."""
    torch.manual_seed(0)
    model = Dynamics(16, 8, 3, width=32, depth=2, heads=2, past=past, injection=injection)
    losses = train(
        model,
        lambda g: (torch.randint(16, (32, 4, 8), generator=g), torch.randint(3, (32, 3), generator=g)),
        steps=60,
        lr=1e-2,
    )
    chance = math.log(16)
    assert chance - 0.02 < losses[0] < chance + 0.5
    assert chance - 0.02 < sum(losses[-15:]) / 15 < chance + 0.1


@pytest.mark.parametrize(("past", "injection"), [*(("clean", injection) for injection in INJECTIONS), ("masked", "add")])
def test_a_world_that_actions_decide_is_learned_and_rolls_out_right(past: str, injection: str) -> None:
    """An action that stood one frame early or late could not do this. The rollout outlasts clip and window."""
    model = dynamics(strong=False, past=past, injection=injection, width=32, window=4)
    clips = 16 if past == "clean" else 64  # a clean past has every frame predicted from what is true: it learns from fewer
    losses = train(model, lambda g: counter_clips(clips, 4, g), steps=250)
    if past == "clean":  # with the past masked, a start that is hidden cannot be told
        assert sum(losses[-10:]) / 10 < 0.05
    tokens, actions = counter_clips(32, 12, torch.Generator().manual_seed(1))
    cache = model.observe(tokens[:, 0], torch.full((32,), model.no_action), model.empty_cache(32))
    right = []
    with torch.no_grad():
        for t in range(11):
            drawn, cache, _ = model.imagine(actions[:, t], cache, steps=2, temperature=0.0)
            right.append((drawn == tokens[:, t + 1]).all(-1).float().mean())
    # Trained on masked pasts, it has never seen a wholly clean one of more frames than the clip.
    assert min(right if past == "clean" else right[:3]) > 0.95, right


@few
@given(st.sampled_from(INJECTIONS), st.integers(0, 5), st.integers(0, 99))
def test_a_changed_frame_or_action_changes_nothing_before_it(injection: str, changed: int, seed: int) -> None:
    model = dynamics(seed, injection=injection)
    tokens, _, actions = clip(6)
    other, acted = tokens.clone(), actions.clone()
    other[:, changed] = (tokens[:, changed] + 1) % 6
    with torch.no_grad():
        logits = model.logits(tokens, actions)
        after = model.logits(other, actions)
        torch.testing.assert_close(logits[:, :changed], after[:, :changed])
        assert not torch.allclose(logits[:, changed], after[:, changed], atol=1e-3)
        if changed < 5:
            acted[:, changed] = (actions[:, changed] + 1) % 3
            after = model.logits(tokens, acted)
            torch.testing.assert_close(logits[:, : changed + 1], after[:, : changed + 1])
            assert not torch.allclose(logits[:, changed + 1], after[:, changed + 1], atol=1e-3), (
                "it shows in the very next frame"
            )


@few
@given(st.sampled_from(INJECTIONS), st.integers(1, 4), st.integers(0, 99))
def test_with_a_clean_past_each_masked_frame_sees_only_what_was_before(injection: str, changed: int, seed: int) -> None:
    model = dynamics(seed, injection=injection)
    tokens, masked, actions = clip(6)
    clean, hidden = tokens.clone(), masked.clone()
    clean[:, changed] = (tokens[:, changed] + 1) % 6
    hidden[:, changed] = 6 - masked[:, changed]  # other tokens hidden, others shown
    with torch.no_grad():
        logits = model.logits_on_clean(tokens, masked, actions)
        by_clean = model.logits_on_clean(clean, masked, actions)
        by_masked = model.logits_on_clean(tokens, hidden, actions)
    torch.testing.assert_close(by_clean[:, :changed], logits[:, :changed])  # frames 1..changed
    assert not torch.allclose(by_clean[:, changed], logits[:, changed], atol=1e-3)
    others = [i for i in range(5) if i != changed - 1]
    torch.testing.assert_close(by_masked[:, others], logits[:, others])
    assert not torch.allclose(by_masked[:, changed - 1], logits[:, changed - 1], atol=1e-3)


@given(st.integers(1, 9), st.integers(1, 11))
def test_clean_past_mask_is_its_definition(t: int, window: int) -> None:
    mask = clean_past_mask(t, window)
    who = [("clean", i) for i in range(t)] + [("masked", i) for i in range(1, t)]
    assert mask.shape == (len(who), len(who))
    for row, (kind, i) in enumerate(who):
        for column, (other, j) in enumerate(who):
            if other == "masked":
                seen = kind == "masked" and i == j
            else:
                seen = i - window < j <= i and not (kind == "masked" and i == j)
            assert mask[row, column] == seen, (kind, i, other, j)


@few
@given(st.sampled_from(INJECTIONS), st.integers(1, 2), st.integers(2, 7), st.integers(0, 99))
def test_the_sampler_sees_what_training_saw(injection: str, every: int, t: int, seed: int) -> None:
    """Streamed logits of a masked frame are those of the clean-past training pass, also beyond the window."""
    model = dynamics(seed, injection=injection, time_every=every)
    tokens, masked, actions = clip(t)
    led, cache = model.leading(actions), model.empty_cache(2)
    with torch.no_grad():
        for i in range(t - 1):
            cache = model.observe(tokens[:, i], led[:, i], cache)
        streamed = model.head(model._stream(masked[:, -1], led[:, -1], cache.opened()))
        trained = model.logits_on_clean(tokens, masked, actions)[:, -1]
    torch.testing.assert_close(streamed, trained, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3, 25])
@pytest.mark.parametrize("t", [1, 8])
@float64()
def test_cached_sampling_equals_uncached(injection: str, order: str, steps: int, t: int) -> None:
    """Same generator, same tokens; the window spans 3 frames, the history up to 8."""
    model, (tokens, _, _) = dynamics(injection=injection), clip(t)
    actions = torch.randint(3, (2, t))
    led, cache = model.leading(actions), model.empty_cache(2)
    sampling = {"steps": steps, "order": order, "temperature": 1.0}
    with torch.no_grad():
        for i in range(t):
            cache = model.observe(tokens[:, i], led[:, i], cache)
        drawn, grown, _ = model.imagine(led[:, -1], cache, generator=torch.Generator().manual_seed(7), **sampling)
        plain = model.imagine_uncached(tokens, actions, generator=torch.Generator().manual_seed(7), **sampling)
        observed = model.observe(drawn, led[:, -1], cache)
    assert torch.equal(drawn, plain)
    torch.testing.assert_close(grown.keys, observed.keys)
    torch.testing.assert_close(grown.values, observed.values)
    assert grown.keys.shape == cache.keys.shape
    assert grown.length.tolist() == [t + 1] * 2


@float64()
def test_a_batch_equals_its_worlds_one_by_one() -> None:
    model, (tokens, _, _) = dynamics(), clip(2, b=3)
    led, cache = torch.tensor([0, 1, 2]), model.empty_cache(3)
    with torch.no_grad():
        cache = model.observe(tokens[:, 0], led, cache)
        together, *_ = model.imagine(led, cache, generator=[torch.Generator().manual_seed(i) for i in range(3)])
        for i in range(3):
            alone = model.observe(tokens[i : i + 1, 0], led[i : i + 1], model.empty_cache(1))
            drawn, *_ = model.imagine(led[i : i + 1], alone, generator=torch.Generator().manual_seed(i))
            assert torch.equal(drawn[0], together[i])


@pytest.mark.parametrize(("past", "drawn_for"), [("masked", "clip"), ("clean", "frame")])
def test_mask_rates_are_drawn_one_by_one_and_the_first_frame_is_whole(past: str, drawn_for: str) -> None:
    hidden = dynamics(past=past, mask_low=0.5).mask(
        torch.Size((200, 5, 256)), torch.Generator().manual_seed(0), torch.device("cpu")
    )
    assert not hidden[:, 0].any()
    rates = hidden[:, 1:].float().mean(-1)
    assert float(rates.min()) > 0.35
    assert abs(float(rates.mean()) - 0.75) < 0.02
    spread = 0.5 / math.sqrt(12)  # of U(0.5, 1)
    assert abs(float(rates.mean(1).std()) / (spread if drawn_for == "clip" else spread / 2) - 1) < 0.15
    assert (float(rates.std(1).mean()) < 0.05) == (drawn_for == "clip")


@pytest.mark.parametrize("past", ["clean", "masked"])
def test_loss_counts_masked_tokens_alone(past: str) -> None:
    """Embeddings are made equal, so that a token matters as a target only."""
    model, (tokens, _, actions) = dynamics(past=past), clip(5)
    model.token_in.weight.data[:] = model.token_in.weight.data[0].clone()
    hidden = model.mask(tokens.shape, torch.Generator().manual_seed(3), tokens.device)

    def loss(tokens: Tensor) -> Tensor:
        return model.loss(tokens, actions, torch.Generator().manual_seed(3))[0]

    shown, covered = torch.where(hidden, tokens, (tokens + 1) % 6), torch.where(hidden, (tokens + 1) % 6, tokens)
    torch.testing.assert_close(loss(shown), loss(tokens))
    assert abs(float(loss(covered) - loss(tokens))) > 1e-3


def test_loss_is_the_cross_entropy_of_the_pass_it_says() -> None:
    for past in ("clean", "masked"):
        model, (tokens, _, actions) = dynamics(past=past), clip(5)
        hidden = model.mask(tokens.shape, torch.Generator().manual_seed(3), tokens.device)
        masked = tokens.masked_fill(hidden, 6)
        with torch.no_grad():
            loss, metrics = model.loss(tokens, actions, torch.Generator().manual_seed(3))
            logits = model.logits_on_clean(tokens, masked, actions) if past == "clean" else model.logits(masked, actions)[:, 1:]
        p = logits.log_softmax(-1).gather(-1, tokens[:, 1:, :, None])[..., 0]
        by_clip = [-p[i][hidden[i, 1:]].mean() for i in range(len(tokens))]
        torch.testing.assert_close(loss, torch.stack(by_clip).mean())
        right = (logits.argmax(-1) == tokens[:, 1:])[hidden[:, 1:]]
        changed = (tokens[:, 1:] != tokens[:, :-1])[hidden[:, 1:]]
        torch.testing.assert_close(metrics["accuracy"], right.float().mean())
        torch.testing.assert_close(metrics["changed_accuracy"], right[changed].float().mean())


def test_logits_are_float32_under_autocast() -> None:
    model, (tokens, masked, actions) = dynamics(), clip(3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.logits(tokens, actions).dtype == torch.float32
        assert model.logits_on_clean(tokens, masked, actions).dtype == torch.float32
        assert model.loss(tokens, actions)[0].dtype == torch.float32


def test_context_noise_replaces_some_of_the_past_and_no_target() -> None:
    model, tokens = dynamics(context_noise=0.5), torch.zeros(100, 3, 4, dtype=torch.long)
    noised = model._noised(tokens, torch.Generator().manual_seed(0), (0, 1))
    share = float((noised != tokens).float().mean())
    assert 0.25 * 5 / 6 - 0.05 < share < 0.25 * 5 / 6 + 0.05
    assert (tokens == 0).all()
    still = dynamics(context_noise=0.0)
    assert torch.equal(still._noised(tokens, None, (0, 1)), tokens)


@pytest.mark.parametrize("past", ["clean", "masked"])
def test_one_clip_is_learned_by_heart(past: str) -> None:
    model, (tokens, _, actions) = dynamics(strong=False, past=past, width=32, window=5), clip(5)
    losses = train(model, lambda g: (tokens.repeat(8, 1, 1), actions.repeat(8, 1)), steps=200)
    assert sum(losses[-10:]) / 10 < 0.02
