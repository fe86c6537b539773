"""The spatiotemporal transformer: causal, equal to itself frame by frame, and the same whoever computes attention."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamloom.nn.attention import attend, rotate, rotation
from dreamloom.nn.build import build
from dreamloom.nn.layout import by_columns
from dreamloom.nn.transformer import GELU, FrameCache, SpaceTimeTransformer, causal_mask
from dreamloom.worldmodels.parts import ALLOWED

few = settings(max_examples=15, deadline=None, derandomize=True)


def transformer(seed: int = 0, **settings: object) -> SpaceTimeTransformer:
    """Tiny, in eval mode, with weights large enough that every part matters."""
    torch.manual_seed(seed)
    model = SpaceTimeTransformer(16, 3, 2, **settings).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def stream(
    model: SpaceTimeTransformer, x: torch.Tensor, condition: torch.Tensor | None = None
) -> tuple[torch.Tensor, FrameCache]:
    """Every frame in turn, and the cache at the end."""
    cache, out = model.empty_cache(len(x), x.shape[2]), []
    for t in range(x.shape[1]):
        opened = cache.opened()
        frame = None if condition is None else condition[:, t : t + 1]
        model.stream(torch.randn_like(x[:, :1]), opened, condition=frame)  # a draft: leaves no trace once overwritten
        out.append(model.stream(x[:, t : t + 1], opened, condition=frame))
        cache = opened.closed()
    return torch.cat(out, 1), cache


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The formula, one query at a time, in float64."""
    out = torch.zeros_like(q, dtype=torch.float64)
    for b, head, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        scores = (k[b, head].double() @ q[b, head, i].double()) / q.shape[-1] ** 0.5
        if mask is not None:
            scores[~mask[b % len(mask), 0, i]] = -torch.inf
        out[b, head, i] = scores.softmax(0) @ v[b, head].double()
    return out.float()


@pytest.mark.parametrize("backend", ["sdpa", "math", "flex"])
@pytest.mark.parametrize("masked", ["not", "alike", "each"])
def test_backends_agree_with_the_formula(backend: str, masked: str) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 8) for _ in range(3))
    each = torch.rand(2, 1, 5, 5) < 0.5
    each |= torch.eye(5, dtype=torch.bool)
    mask = {"not": None, "alike": causal_mask(5, 3)[None, None], "each": each}[masked]
    torch.testing.assert_close(attend(q, k, v, mask, backend=backend), softmax_attention(q, k, v, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["math", "flex"])
def test_models_agree_whatever_the_backend(backend: str) -> None:
    x = torch.randn(2, 5, 3, 16)
    with torch.no_grad():
        torch.testing.assert_close(transformer(window=3, backend=backend)(x), transformer(window=3)(x), atol=1e-4, rtol=1e-4)


def test_xformers_without_cuda_is_one_clear_error() -> None:
    q = torch.zeros(1, 1, 2, 8)
    with pytest.raises(ValueError, match=r"'xformers'.*'sdpa'"):
        attend(q, q, q, backend="xformers")


@pytest.mark.parametrize("start", [0, 3_000_000])
def test_rotary_products_depend_on_the_distance_alone(start: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)

    def product(i: int, j: int) -> torch.Tensor:
        return (rotate(q, rotation(torch.tensor([[i]]), 8)) * rotate(k, rotation(torch.tensor([[j]]), 8))).sum()

    torch.testing.assert_close(product(start + 7, start + 4), product(3, 0), atol=1e-5, rtol=1e-5)
    assert abs(product(3, 0) - product(0, 0)) > 1e-3


@given(st.integers(1, 12), st.integers(1, 14))
def test_causal_mask_is_its_definition(length: int, window: int) -> None:
    mask = causal_mask(length, window)
    assert all(mask[i, j] == (j <= i < j + window) for i in range(length) for j in range(length))


cases = st.fixed_dictionaries({"window": st.integers(1, 5), "time_every": st.integers(1, 3), "modulated": st.booleans()})


@few
@given(cases, st.integers(0, 6), st.integers(0, 9))
def test_a_changed_frame_changes_nothing_before_it(case: dict, changed: int, seed: int) -> None:
    model = transformer(seed, **case)
    x, condition = torch.randn(1, 7, 2, 16), torch.randn(1, 7, 16) if case["modulated"] else None
    other = x.clone()
    other[:, changed] = torch.randn(1, 2, 16)
    with torch.no_grad():
        before, after = model(x, condition=condition), model(other, condition=condition)
    torch.testing.assert_close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed], atol=1e-3)


@few
@given(cases, st.integers(1, 12), st.integers(0, 9))
def test_frame_by_frame_equals_all_at_once_also_past_the_window(case: dict, t: int, seed: int) -> None:
    model = transformer(seed, **case)
    x, condition = torch.randn(2, t, 2, 16), torch.randn(2, t, 16) if case["modulated"] else None
    with torch.no_grad():
        torch.testing.assert_close(stream(model, x, condition)[0], model(x, condition=condition), atol=1e-4, rtol=1e-4)


@few
@given(cases, st.integers(1, 6), st.lists(st.permutations(range(4)), min_size=2, max_size=2), st.integers(0, 4))
def test_leaving_out_what_is_not_asked_for_changes_nothing_else(case: dict, t: int, turns: list, m: int) -> None:
    """Some tokens of a frame, others in each world, and a frame taken into the cache for its own sake."""
    model, wanted = transformer(**case), torch.tensor(turns)[:, :m]
    x, condition = torch.randn(2, t, 4, 16), torch.randn(2, t, 16) if case["modulated"] else None
    last = None if condition is None else condition[:, -1:]
    with torch.no_grad():
        cache = stream(model, x[:, :-1], condition)[1] if t > 1 else model.empty_cache(2, 4)
        opened, kept = cache.opened(), cache.opened()
        some = model.stream(x[:, -1:], cache.opened(), condition=last, wanted=wanted)
        whole = model.stream(x[:, -1:], opened, condition=last)
        model.remember(x[:, -1:], kept, condition=last)
    torch.testing.assert_close(some, whole.take_along_dim(wanted[:, None, :, None], 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((kept.keys, kept.values), (opened.keys, opened.values))


def test_weights_by_columns_are_the_same_weights() -> None:
    model, x = transformer(), torch.randn(2, 5, 3, 16)
    with torch.no_grad():
        before, names = model(x), {name: weight.clone() for name, weight in model.state_dict().items()}
        torch.testing.assert_close(by_columns(model)(x), before, atol=1e-5, rtol=1e-5)
    assert model.blocks[0].mlp[0].weight.stride() == (1, 64)
    assert all(torch.equal(weight, names[name]) for name, weight in model.state_dict().items())


@given(st.floats(-50, 50))
def test_gelu_is_torchs_own_with_and_without_gradients(x: float) -> None:
    value = torch.tensor(x)
    expected = torch.nn.functional.gelu(value, approximate="tanh")
    torch.testing.assert_close(GELU()(value), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(GELU()(value.clone().requires_grad_()), expected)
    assert torch.equal(value, torch.tensor(x)), "in place on its own copy only"


def test_time_is_looked_at_and_forgotten_after_the_window() -> None:
    """Three layers that span 3 frames each: what frame 0 shows reaches frame 6 and no further."""
    model, x = transformer(window=3).double(), torch.randn(1, 9, 2, 16, dtype=torch.float64)
    other = x.clone()
    other[:, 0] = torch.randn(1, 2, 16)
    with torch.no_grad():
        moved = (model(x) - model(other)).abs().amax((0, 2, 3))
    assert (moved[:7] > 1e-9).all()
    assert (moved[7:] < 1e-13).all()


def test_time_every_counts_from_the_last_block() -> None:
    model = transformer(time_every=2)
    assert [block.time is not None for block in model.blocks] == [True, False, True]
    assert model.empty_cache(1, 2).keys.shape[1] == model.time_layers == 2


def test_a_cache_never_grows_and_is_never_changed() -> None:
    model = transformer(window=4)

    def size(cache: FrameCache) -> int:
        return sum(getattr(cache, f.name).untyped_storage().nbytes() for f in fields(cache))

    with torch.no_grad():
        young, old = stream(model, torch.randn(1, 5, 2, 16))[1], stream(model, torch.randn(1, 200, 2, 16))[1]
        assert size(young) == size(old)
        assert int(old.length) == 200
        keys = old.keys.clone()
        model.stream(torch.randn(1, 1, 2, 16), old.opened())
    assert torch.equal(old.keys, keys)


def test_modulation_starts_as_none_and_learns() -> None:
    torch.manual_seed(0)
    model, x = SpaceTimeTransformer(16, 2, 2, modulated=True), torch.randn(1, 3, 2, 16)
    one, two = model(x, condition=torch.randn(1, 3, 16)), model(x, condition=torch.randn(1, 3, 16))
    assert torch.equal(one, two)
    one.square().mean().backward()
    assert model.blocks[0].modulation.weight.grad.abs().sum() > 0


def test_sizes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="width 16 and heads 3"):
        SpaceTimeTransformer(16, 1, 3)
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        SpaceTimeTransformer(16, 1, 2, window=0)


@pytest.mark.parametrize(
    "config",
    [
        None,
        [],
        {"class_path": "dreamloom.worldmodels.dynamics.Dynamics"},
        {"class_path": ["x"], "init_args": {}},
        {"class_path": "dreamloom.worldmodels.dynamics.Dynamics", "init_args": {"width": -3}},
        {"class_path": "dreamloom.worldmodels.dynamics.Dynamics", "init_args": {"width": 30, "heads": 0}},
    ],
)
def test_a_malformed_part_is_a_value_error(config: object) -> None:
    with pytest.raises(ValueError, match=r"needs class_path|may be built|cannot be built"):
        build(config, ALLOWED)
