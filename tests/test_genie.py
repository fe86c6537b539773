"""Genie behind the World protocol: streaming is the plain rollout, states stack and split, prompts are checked."""

from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest
import torch
from exact import float64
from torch import Tensor

from dreamloom.nn.transformer import FrameCache
from dreamloom.tokenizers.quantizers import FSQ, VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.worldmodels.dynamics import Dynamics, Injection
from dreamloom.worldmodels.genie import Genie, GenieState
from dreamloom.worldmodels.latent_actions import LatentActions
from dreamloom.worldmodels.maskgit import Order
from dreamloom.worldmodels.world import Outcome, Sampling, World, split_state, stack_states

SMALL = {"width": 16, "heads": 2, "window": 3}


def genie(*, injection: str = "add", latent: bool = True, seed: int = 0, **settings: Any) -> Genie:
    """8 x 8 frames of 4 tokens; weights large enough that every part matters."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(FSQ(16, [5, 5]), size=8, patch=4, encoder_depth=1, decoder_depth=2, **SMALL)
    dynamics = Dynamics(25, 4, 3, depth=2, injection=injection, **SMALL)
    actions = LatentActions(VQ(16, 3, latent=4), size=8, patch=4, encoder_depth=1, decoder_depth=1, **SMALL) if latent else None
    model = Genie(tokenizer, dynamics, actions, **({"steps": 2} | settings)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def frames(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def tensors(state: Any) -> dict[str, Tensor]:
    """Every tensor of a state by its name."""
    found = {}
    for f in fields(state):
        value = getattr(state, f.name)
        found |= {f.name: value} if isinstance(value, Tensor) else {f"{f.name}.{k}": v for k, v in tensors(value).items()}
    return found


def same(a: GenieState, b: GenieState) -> bool:
    return all(torch.equal(x, tensors(b)[name]) for name, x in tensors(a).items())


def test_it_is_a_world() -> None:
    world = genie(game="coinrun")
    assert isinstance(world, World)
    assert world.action_names == ["action 0", "action 1", "action 2"]
    assert world.frame_shape == (3, 8, 8)
    assert world.action_space.n == 3
    state, outcome = world.step(world.reset(frames(3, 8, 8)), 1)
    assert isinstance(outcome, Outcome)
    assert torch.equal(outcome.frame, state.frame)
    assert (outcome.frame.shape, outcome.frame.dtype) == ((1, 3, 8, 8), torch.uint8)


@pytest.mark.parametrize("injection", get_args(Injection))
@pytest.mark.parametrize("order", get_args(Order))
@float64()
def test_a_rollout_equals_the_plain_one(injection: str, order: str) -> None:
    """Every frame computed again from all frames before it, tokens and pictures, three windows long."""
    world = genie(injection=injection, order=order)
    prompt = frames(2, 2, 3, 8, 8)
    state = world.reset(prompt)
    tokens = world.tokenizer.encode(prompt.float() / 255)
    assert world.latent_actions is not None
    actions = world.latent_actions.infer(prompt.float() / 255)
    with torch.inference_mode():
        for i in range(9):
            action = torch.tensor([i % 3, (i + 1) % 3])
            state, outcome = world.step(state, action, torch.Generator().manual_seed(i))
            actions = torch.cat([actions, action[:, None]], 1)
            drawn = world.dynamics.imagine_uncached(
                tokens, actions, steps=2, order=order, generator=torch.Generator().manual_seed(i)
            )
            tokens = torch.cat([tokens, drawn[:, None]], 1)
            plain = (world.tokenizer.decode(tokens)[:, -1] * 255).round()
            assert (outcome.frame.float() - plain).abs().max() <= 1, "a rounding error may tip a grey level, no more"


def test_a_rollout_of_1000_frames_keeps_its_size_and_costs_the_same_at_its_end() -> None:
    """Cost: shapes of all that a step reads are those of the first step."""
    world = genie(steps=1)
    state = first = world.reset(frames(3, 8, 8))

    def size(state: GenieState) -> list[tuple[torch.Size, int]]:
        return [(x.shape, x.untyped_storage().nbytes()) for x in tensors(state).values()]

    state, _ = world.step(state, 0, torch.Generator().manual_seed(0))
    second, generator = size(state), torch.Generator().manual_seed(1)
    for i in range(1, 1000):
        state, _ = world.step(state, i % 3, generator)
    assert size(state) == second
    assert [shape for shape, _ in second] == [shape for shape, _ in size(first)]
    assert int(state.dynamics.length) == int(state.decoder.length) == 1001
    assert bool(state.dynamics.keys.isfinite().all())


def test_same_generator_same_dream_and_the_state_is_left_alone() -> None:
    world = genie()
    state = world.reset(frames(2, 3, 3, 8, 8))
    before = {name: x.clone() for name, x in tensors(state).items()}
    one, two, other = (world.step(state, 1, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert same(one[0], two[0])
    assert not same(one[0], other[0])
    assert all(torch.equal(x, before[name]) for name, x in tensors(state).items())


@float64()
def test_worlds_in_a_batch_do_not_feel_one_another() -> None:
    """Three worlds of different age, stacked, stepped with a generator each, and split: each is as if alone."""
    world = genie()
    alone = [world.reset(frames(1, t, 3, 8, 8)) for t in (1, 2, 5)]
    state = stack_states(alone)
    for i in range(5):
        actions = [(i + w) % 3 for w in range(3)]
        state, outcome = world.step(state, torch.tensor(actions), seeded(*(10 * i + w for w in range(3))))
        stepped = [world.step(alone[w], actions[w], seeded(10 * i + w)) for w in range(3)]
        alone = [s for s, _ in stepped]
        assert (outcome.frame.int() - torch.cat([o.frame for _, o in stepped]).int()).abs().max() <= 1
    for one, part in zip(alone, split_state(state), strict=True):
        for name, x in tensors(one).items():
            torch.testing.assert_close(tensors(part)[name], x, atol=1 if x.dtype == torch.uint8 else 1e-4, rtol=1e-4)


def test_stack_and_split_are_inverse() -> None:
    state = genie().reset(frames(3, 2, 3, 8, 8))
    parts = split_state(state)
    assert [len(part.frame) for part in parts] == [1, 1, 1]
    assert isinstance(parts[0].decoder, FrameCache)
    assert same(stack_states(parts), state)
    assert same(stack_states([parts[2], parts[0]]), GenieState(**_rows(state, [2, 0])))


def _rows(state: GenieState, rows: list[int]) -> dict[str, Any]:
    caches = {
        name: FrameCache(**{k: x[rows] for k, x in tensors(getattr(state, name)).items()}) for name in ("dynamics", "decoder")
    }
    return {"frame": state.frame[rows], **caches}


@pytest.mark.parametrize(
    ("shape", "b"),
    [
        ((3, 8, 8), 1),
        ((8, 8, 3), 1),
        ((5, 3, 8, 8), 1),
        ((2, 5, 3, 8, 8), 2),
        ((30, 17, 3), 1),
        ((3, 5, 6), 1),
        ((2, 1, 3, 64, 9), 2),
    ],
)
def test_prompts_of_every_documented_shape_and_size(shape: tuple[int, ...], b: int) -> None:
    world, prompt = genie(), frames(*shape)
    state = world.reset(prompt)
    assert state.frame.shape == (b, 3, 8, 8)
    assert same(world.reset(prompt.numpy()), state)
    world.step(state, 0)


@pytest.mark.parametrize(
    "prompt",
    [
        torch.rand(3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.long),
        frames(8, 8),
        frames(1, 1, 1, 3, 8, 8),
        frames(1, 8, 8),
        frames(2, 1, 8, 8, 3),
        frames(0, 3, 8, 8),
        np.zeros((8, 8, 4), np.uint8),
    ],
)
def test_other_prompts_are_told(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"uint8|channels"):
        genie().reset(prompt)


def test_a_long_prompt_is_seen_whole_and_its_last_frame_shown() -> None:
    world, prompt = genie(), frames(1, 9, 3, 8, 8)
    state = world.reset(prompt)
    with torch.inference_mode():
        shown = (world.tokenizer.decode(world.tokenizer.encode(prompt.float() / 255))[:, -1] * 255).round()
    assert (state.frame.float() - shown).abs().max() <= 1
    assert int(state.dynamics.length) == 9


def test_a_prompt_of_several_frames_is_seen_with_the_actions_inferred_from_it() -> None:
    world, prompt = genie(), frames(1, 4, 3, 8, 8)
    tokens = world.tokenizer.encode(prompt.float() / 255)
    assert world.latent_actions is not None
    led = world.dynamics.leading(world.latent_actions.infer(prompt.float() / 255))
    cache = world.dynamics.empty_cache(1)
    with torch.inference_mode():
        for t in range(4):
            cache = world.dynamics.observe(tokens[:, t], led[:, t], cache)
    assert torch.equal(world.reset(prompt).dynamics.keys, cache.keys)
    assert led[0, 0] == world.dynamics.no_action


def test_without_a_latent_action_model_prompts_have_no_action() -> None:
    world = genie(latent=False)
    state = world.reset(frames(1, 3, 3, 8, 8))
    world.step(state, 2)


@pytest.mark.parametrize("action", [-1, 3, torch.tensor([0, 3])])
def test_actions_out_of_range_are_told(action: Any) -> None:
    world = genie()
    with pytest.raises(ValueError, match="actions must be 0 to 2"):
        world.step(world.reset(frames(2, 1, 3, 8, 8)), action)


@pytest.mark.parametrize("sampling", [Sampling(steps=0), Sampling(temperature=-1.0), Sampling(temperature=float("nan"))])
def test_sampling_out_of_range_is_told(sampling: Sampling) -> None:
    world = genie()
    with pytest.raises(ValueError, match="steps >= 1"):
        world.step(world.reset(frames(3, 8, 8)), 0, sampling=sampling)


def test_temperature_zero_needs_no_generator() -> None:
    world = genie()
    state = world.reset(frames(3, 8, 8))
    greedy = Sampling(steps=1, temperature=0.0)
    one, two = (world.step(state, 0, torch.Generator().manual_seed(s), greedy)[0] for s in (0, 1))
    assert same(one, two)


def test_parts_that_do_not_fit_are_told() -> None:
    world = genie()
    tokenizer, actions = world.tokenizer, world.latent_actions
    with pytest.raises(ValueError, match="does not fit"):
        Genie(tokenizer, Dynamics(9, 4, 3, depth=1, **SMALL))
    with pytest.raises(ValueError, match="do not fit"):
        Genie(tokenizer, Dynamics(25, 4, 5, depth=1, **SMALL), actions)
    with pytest.raises(ValueError, match="need 3 action names"):
        Genie(tokenizer, world.dynamics, actions, action_names=["one"])
