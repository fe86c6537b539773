"""What every World must do, whatever is inside: each `check_*` takes a Case; tests/test_conformance.py runs all on all CASES.

A world of one's own joins with one line in CASES.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from exact import float64
from jaxtyping import config
from test_canvas import canvas_world
from test_diffusion_world import diffusion_world
from test_forcing import forcing_plain, forcing_world
from test_genie import genie
from torch import Tensor
from walk_world import WalkWorld

from dreamloom.worldmodels.genie import Genie
from dreamloom.worldmodels.world import Outcome, Sampling, World, split_state, stack_states


@dataclass(frozen=True)
class Case:
    """A world and what holds of it.

    Attributes:
        build: makes it, always the same; tiny, as it is stepped often.
        plain: rolls it out without its cache: (world, prompt (b, t, c, h, w), actions (b, s, ...), generators for each
            step) -> frames (b, s, c, h, w); None where the world has no cache.
        rounding: grey levels by which frames may differ where sums are added up in another order.
    """

    build: Callable[[], Any]
    plain: Callable[[Any, Tensor, Tensor, list], Tensor] | None = None
    rounding: int = 1


def genie_plain(world: Genie, prompt: Tensor, actions: Tensor, generators: list) -> Tensor:
    """Every frame of a Genie computed from all frames before it."""
    frames = prompt.float() / 255
    tokens = world.tokenizer.encode(frames)
    led = torch.full(prompt.shape[:2], world.dynamics.no_action)[:, 1:]
    if world.latent_actions is not None:
        led = world.latent_actions.infer(frames)
    steps, shown = world.sampling.steps, []
    for action, generator in zip(actions.unbind(1), generators, strict=True):
        led = torch.cat([led, action[:, None]], 1)
        drawn = world.dynamics.imagine_uncached(tokens, led, steps=steps, order=world.order, generator=generator)
        tokens = torch.cat([tokens, drawn[:, None]], 1)
        shown.append((world.tokenizer.decode(tokens)[:, -1] * 255).round())
    return torch.stack(shown, 1).to(torch.uint8)


CASES = {
    "genie of latent actions": Case(genie, plain=genie_plain),
    "genie of true actions": Case(lambda: genie(latent=False, injection="prepend", order="halton"), plain=genie_plain),
    "diffusion of pixels, true actions": Case(diffusion_world),
    "diffusion of pixels, latent actions": Case(lambda: diffusion_world(latent=True)),
    "canvas, true actions": Case(canvas_world),
    "canvas, latent actions": Case(lambda: canvas_world(latent=True)),
    "latents by shortcut forcing": Case(forcing_world, plain=forcing_plain),
    "hand-written": Case(WalkWorld, rounding=0),
    "hand-written, continuous": Case(lambda: WalkWorld(continuous=True, rewards=False), rounding=0),
}


def tensors(state: Any) -> dict[str, Tensor]:
    """Every tensor of a state by its name."""
    found: dict[str, Tensor] = {}
    for f in fields(state):
        value = getattr(state, f.name)
        found |= {f"{f.name}.{k}": v for k, v in tensors(value).items()} if is_dataclass(value) else {f.name: value}
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two states hold the very same numbers."""
    others = tensors(other)
    return all(torch.equal(x, others[name]) for name, x in tensors(one).items())


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def prompt_of(world: World, b: int, t: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(256, (b, t, *world.frame_shape), dtype=torch.uint8, generator=seeded(seed)[0])


def actions_of(world: World, *shape: int, seed: int = 0) -> Tensor:
    """Allowed actions: (*shape,) of a discrete world, (*shape, a) of a continuous one."""
    random, space = np.random.default_rng(seed), world.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.from_numpy(random.integers(space.n, size=shape))
    assert isinstance(space, gymnasium.spaces.Box)
    return torch.from_numpy(random.uniform(space.low, space.high, (*shape, *space.shape)).astype(np.float32))


def rolled(world: World, state: Any, actions: Tensor, seed: int = 0) -> tuple[Any, Tensor]:
    """The last state of worlds that take actions (b, s, ...), world i with a generator of its own, and frames (b, s, ...)."""
    generators, shown = seeded(*(100 * seed + i for i in range(len(actions)))), []
    for action in actions.unbind(1):
        state, outcome = world.step(state, action, generators)
        shown.append(outcome.frame)
    return state, torch.stack(shown, 1)


def near(one: Tensor, other: Tensor, rounding: int) -> None:
    apart = (one.int() - other.int()).abs().max().item()
    assert apart <= rounding, f"frames differ by {apart} grey levels"


def check_it_says_what_it_is(case: Case) -> None:
    world = case.build()
    assert isinstance(world, World)
    assert isinstance(world.name, str)
    assert world.fps > 0
    c, h, w = world.frame_shape
    assert (world.prompts.dtype, world.prompts.shape[2:]) == (torch.uint8, (c, h, w))
    assert isinstance(world.device, torch.device)
    assert world.game is None or isinstance(world.game, str)
    if isinstance(world.action_space, gymnasium.spaces.Discrete):
        assert (world.action_space.start, len(world.action_names)) == (0, world.action_space.n)
    else:
        assert isinstance(world.action_space, gymnasium.spaces.Box)


def check_shapes_and_dtypes(case: Case) -> None:
    world = case.build()
    c, h, w = world.frame_shape
    for shape, b in (((c, h, w), 1), ((h, w, c), 1), ((2, c, h, w), 1), ((3, 2, c, h, w), 3), ((2, 1, c, 2 * h, w + 3), 2)):
        state = world.reset(torch.randint(256, shape, dtype=torch.uint8))
        assert {len(x) for x in tensors(state).values()} == {b}, "the first axis of every tensor is the batch of worlds"
        state, outcome = world.step(state, actions_of(world, b), seeded(*range(b)))
        require_outcome(outcome, (b, c, h, w))
        assert torch.equal(outcome.frame, state.frame)
    one_for_all = actions_of(world, 1)[0]
    world.step(world.reset(prompt_of(world, 3)), one_for_all.item() if one_for_all.ndim == 0 else one_for_all, seeded(0)[0])


def require_outcome(outcome: Outcome, shape: tuple[int, ...]) -> None:
    """Types of all that a step shows."""
    assert (outcome.frame.dtype, outcome.frame.shape) == (torch.uint8, shape)
    kinds = {"reward": torch.float32, "terminal": torch.bool, "uncertainty": torch.float32}
    for name, kind in kinds.items():
        value = getattr(outcome, name)
        assert value is None or (value.dtype, value.shape) == (kind, shape[:1]), name


def check_a_generator_fixes_all_that_is_drawn(case: Case) -> None:
    world = case.build()
    start, actions = world.reset(prompt_of(world, 2)), actions_of(world, 2, 4)
    (one, seen), before = rolled(world, start, actions), torch.get_rng_state()
    torch.manual_seed(12345)  # the global generator has no say
    other, seen_again = rolled(world, start, actions)
    assert same(one, other)
    assert torch.equal(seen, seen_again)
    torch.set_rng_state(before)
    world.step(start, actions[:, 0], seeded(0, 1))
    assert torch.equal(torch.get_rng_state(), before), "a step with a generator leaves the global one alone"


@float64()
def check_a_batch_equals_its_worlds_one_by_one(case: Case) -> None:
    """Worlds of different age, with a generator each; stacked, stepped and split."""
    world = case.build()
    starts = [world.reset(prompt_of(world, 1, t, seed=t)) for t in (1, 2, 5)]
    actions = actions_of(world, 3, 5)
    state, seen = rolled(world, stack_states(starts), actions)
    for i, start in enumerate(starts):
        generator, alone = seeded(i), start
        for t in range(5):
            alone, outcome = world.step(alone, actions[i : i + 1, t], generator)
            near(outcome.frame, seen[i : i + 1, t], case.rounding)
        for name, x in tensors(split_state(state)[i]).items():
            atol = case.rounding if x.dtype == torch.uint8 else 1e-3
            torch.testing.assert_close(x, tensors(alone)[name], atol=atol, rtol=1e-3, msg=name)


def check_stack_and_split_are_inverse(case: Case) -> None:
    world = case.build()
    state, _ = rolled(world, world.reset(prompt_of(world, 3)), actions_of(world, 3, 2))
    parts = split_state(state)
    assert [len(part.frame) for part in parts] == [1, 1, 1]
    assert same(stack_states(parts), state)
    turned = stack_states([parts[2], parts[0]])
    assert all(torch.equal(x, tensors(state)[name][[2, 0]]) for name, x in tensors(turned).items())


def check_a_step_leaves_its_state_alone(case: Case) -> None:
    world = case.build()
    state = world.reset(prompt_of(world, 2))
    before = {name: x.clone() for name, x in tensors(state).items()}
    for seed in (0, 1):
        rolled(world, state, actions_of(world, 2, 3, seed=seed), seed)
        assert all(torch.equal(x, before[name]) for name, x in tensors(state).items())


@float64()
def check_cached_equals_plain(case: Case) -> None:
    if case.plain is None:
        pytest.skip("this world has no cache")
    world = case.build()
    prompt, actions = prompt_of(world, 2), actions_of(world, 2, 9)
    _, seen = rolled(world, world.reset(prompt), actions)
    generators = seeded(0, 1)
    with torch.inference_mode():
        near(case.plain(world, prompt, actions, [generators] * 9), seen, case.rounding)


def check_a_state_keeps_its_size(case: Case) -> None:
    """Constant memory: all tensors, and what they keep alive, stay as large as after the second step, for thirty windows.

    What grows does so with every step, with every window, or by doubling; `tests/test_genie.py` takes a thousand steps.
    """
    world = case.build()

    def size(state: Any) -> dict[str, Any]:
        return {name: (x.shape, x.untyped_storage().nbytes()) for name, x in tensors(state).items()}

    actions, generator = actions_of(world, 100, 1), seeded(0)
    state = world.reset(prompt_of(world, 1))
    config.update("jaxtyping_disable", True)  # shapes were checked by others, at half the time of a step
    try:
        for i, action in enumerate(actions):
            state, _ = world.step(state, action, generator, Sampling(steps=1))
            second = size(state) if i < 2 else second
            assert size(state) == second
    finally:
        config.update("jaxtyping_disable", False)
    assert all(x.isfinite().all() for x in tensors(state).values() if x.is_floating_point())


def check_resets_do_not_feel_one_another(case: Case) -> None:
    """A rollout is the same whether or not other worlds were reset and stepped in between, from these frames or others."""
    world, fresh = case.build(), case.build()
    prompt, actions = prompt_of(world, 2), actions_of(world, 2, 4)
    state = world.reset(prompt)
    other, _ = rolled(world, world.reset(prompt_of(world, 3, seed=1)), actions_of(world, 3, 3, seed=1), seed=1)
    generators, shown = seeded(0, 1), []
    for action in actions.unbind(1):
        state, outcome = world.step(state, action, generators)
        shown.append(outcome.frame)
        other, _ = world.step(other, actions_of(world, 3, seed=2), seeded(7, 8, 9))
    end, seen = rolled(fresh, fresh.reset(prompt), actions)
    assert same(state, end)
    assert torch.equal(torch.stack(shown, 1), seen)
    assert same(world.reset(prompt), fresh.reset(prompt))


def check_bad_actions_are_told(case: Case) -> None:
    world = case.build()
    state, good = world.reset(prompt_of(world, 2)), actions_of(world, 2)
    space = world.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        bad = [-1, int(space.n), torch.tensor([0, int(space.n)]), torch.zeros(3, dtype=torch.long)]
    else:
        bad = [good.new_full(good.shape, torch.nan), torch.cat([good, good[:1]])]
    for action in bad:
        with pytest.raises(ValueError, match="action"):
            world.step(state, action, seeded(0)[0])


def check_bad_prompts_are_told(case: Case) -> None:
    world = case.build()
    c, h, w = world.frame_shape
    for prompt in (torch.rand(c, h, w), torch.zeros(h, w, dtype=torch.uint8), torch.zeros(0, c, h, w, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="prompt"):
            world.reset(prompt)


def check_sampling_may_be_asked_for(case: Case) -> None:
    world = case.build()
    state, action = world.reset(prompt_of(world, 2)), actions_of(world, 2)
    default, _ = world.step(state, action, seeded(0, 1))
    told, _ = world.step(state, action, seeded(0, 1), Sampling())
    assert same(default, told)
    world.step(state, action, seeded(0, 1), replace(Sampling(), steps=1))


CHECKS = {name.removeprefix("check_"): check for name, check in dict(vars()).items() if name.startswith("check_")}
