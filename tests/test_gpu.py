"""What only a GPU can show; skipped elsewhere."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from test_diffusion_world import diffusion_world
from test_imagined import write_walks
from test_rollouts import agent_of
from torch import Tensor

from dreamloom.nn.attention import attend
from dreamloom.nn.encoders import Impala
from dreamloom.nn.transformer import causal_mask
from dreamloom.train.actors import AgentPolicy, RandomPolicy
from dreamloom.train.rollouts import Rollouts
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.outcomes import Outcomes, judged
from dreamloom.worldmodels.starts import DataStarts
from dreamloom.worldmodels.world import Sampling

pytestmark = pytest.mark.gpu


def rollout(model: Dynamics, t: int, *, cached: bool) -> Tensor:
    """Tokens (b t n) of greedy frames after a first one; float32 or bfloat16, as autocast has it."""
    tokens = torch.randint(64, (2, 1, 16), generator=torch.Generator().manual_seed(0)).cuda()
    actions = torch.randint(3, (2, t), generator=torch.Generator().manual_seed(1)).cuda()
    led, cache = model.leading(actions), model.empty_cache(2)
    cache = model.observe(tokens[:, 0], led[:, 0], cache)
    for i in range(t):
        generator = torch.Generator("cuda").manual_seed(i)
        if cached:
            new, cache, _ = model.imagine(led[:, i + 1], cache, steps=4, generator=generator)
        else:
            new = model.imagine_uncached(tokens, actions[:, : i + 1], steps=4, generator=generator)
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens


@pytest.mark.parametrize("backend", ["sdpa", "math", "flex"])
@pytest.mark.parametrize("injection", ["add", "prepend", "adaln"])
@torch.inference_mode()
def test_cached_sampling_equals_uncached_on_a_gpu(backend: str, injection: str) -> None:
    torch.manual_seed(0)
    model = Dynamics(64, 16, 3, width=64, depth=3, heads=2, window=4, injection=injection, backend=backend).cuda().eval()
    assert torch.equal(rollout(model, 8, cached=True), rollout(model, 8, cached=False))


@torch.inference_mode()
def test_cached_sampling_in_bfloat16_agrees_with_uncached_but_for_rounding() -> None:
    """Sums are taken in another order, so a draw near the edge of two codes may fall to the other side; few do in one frame."""
    torch.manual_seed(0)
    model = Dynamics(64, 16, 3, width=64, depth=3, heads=2, window=4).cuda().eval()
    with torch.autocast("cuda", torch.bfloat16):
        cached, plain = rollout(model, 1, cached=True), rollout(model, 1, cached=False)
    assert (cached == plain).float().mean() > 0.8


@pytest.mark.parametrize("backend", ["math", "flex", "xformers"])
def test_backends_agree_on_a_gpu(backend: str) -> None:
    if backend == "xformers":
        pytest.importorskip("xformers.ops")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 16, 32, device="cuda") for _ in range(3))
    mask = causal_mask(16, 5, q.device)[None, None]
    torch.testing.assert_close(attend(q, k, v, mask, backend=backend), attend(q, k, v, mask), atol=1e-3, rtol=1e-3)


def test_rollouts_in_a_world_on_a_gpu_under_agents_and_at_random(tmp_path: Path) -> None:
    """World, heads and agents compute on the GPU, randomness comes from the CPU: the same starts and draws as there."""
    walks = write_walks(tmp_path / "walks.hdf5")
    world = judged(diffusion_world(actions=2, context=2), Outcomes(Impala((6, 8, 8), latent_size=8, channels=(4, 4, 4))))
    starts = DataStarts(walks, world, length=2)
    agent = agent_of(walks)
    made = {}
    for name, policy in (("agent", AgentPolicy(agent, world)), ("random", RandomPolicy(world.action_space))):
        source = Rollouts(world, starts, policy, seed=0, horizon=3, batch_size=4, sampling=Sampling())
        for device in ("cpu", "cuda"):
            source.to(device)
            with ThreadPoolExecutor(1) as pool:
                made[name, device], _ = source.shard(range(32), pool, lambda rows: None)
        ours, theirs = made[name, "cpu"], made[name, "cuda"]
        assert theirs["observations"].shape == ours["observations"].shape
        first = np.flatnonzero(np.append(True, (ours["terminals"] | ours["timeouts"])[:-1]))
        assert np.array_equal(ours["observations"][first], theirs["observations"][first])
        near = np.abs(ours["observations"].astype(int) - theirs["observations"]) <= 8
        assert near.mean() > 0.8, "a GPU rounds products, and a frame hangs on the one before"
