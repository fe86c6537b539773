"""CUDA graphs repeat updates exactly: same numbers as updates one kernel at a time."""

import copy

import pytest
import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.bc import BC
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.cql import CQL, DiscreteCQL
from dreamloom.agents.edac import EDAC
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import Updates, train
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.nn.graphs import Replay, set_rate, tensor_rates

SMALL = {"seeds": 2, "width": 16}


def some_rows(discrete: bool = False, n: int = 300) -> Transitions:
    draw = torch.Generator().manual_seed(0)
    s, s_next = torch.randn(2, n, 3, generator=draw)
    a = torch.randint(4, (n,), generator=draw) if discrete else torch.rand(n, 2, generator=draw) * 2 - 1
    ends = torch.rand(n, generator=draw) < 0.1
    columns = (s, a, s.sum(1), s_next, ends, torch.zeros(n, dtype=torch.bool))
    return Transitions(*(column.numpy() for column in columns))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "agent",
    [
        BC(**SMALL),
        TD3BC(**SMALL),
        IQL(**SMALL),
        CQL(**SMALL),
        EDAC(critics=3, **SMALL),
        DiscreteCQL(**SMALL),
        IQL(seeds=1, width=8),
    ],
    ids=lambda agent: type(agent).__name__,
)
def test_graphs_make_the_updates_that_plain_calls_make(agent: Agent) -> None:
    data = some_rows(discrete=agent.kinds == ("discrete",))
    plain, replayed = agent, copy.deepcopy(agent)
    plain.phases = 0
    for each in (plain, replayed):
        each.prepare(data, seed=3)
        each.to("cuda")
        found = train(each, Buffer([data], device="cuda"), updates=21, batch_size=32, seed=3, progress=False)
        assert each.updates == 21
        assert all(value.isfinite().all() for value in found.values())
    for (name, one), other in zip(plain.state_dict().items(), replayed.state_dict().values(), strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.gpu
def test_a_graph_goes_on_where_plain_updates_stopped() -> None:
    data = some_rows()
    agent = TD3BC(**SMALL)
    agent.prepare(data, seed=0)
    agent.to("cuda")
    buffer = Buffer([data], device="cuda")
    train(agent, buffer, updates=7, batch_size=32, progress=False)
    update = Updates(agent, buffer, 32)
    # Every second update is one of the actor too: numbers 8, 10, ... 16.
    found = [set(update()) for _ in range(9)]
    assert found == [{"critic_loss", "q", *({"actor_loss", "bc_loss"} if number % 2 == 0 else {})} for number in range(8, 17)]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_upsampler_fits_as_it_does_without_a_graph(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = some_rows()
    settings = {"steps": 25, "batch_size": 64, "seed": 5, "progress": False}
    replayed = Upsampler(width=32, depth=2, precision=precision).cuda().fit(data, **settings)
    monkeypatch.setattr("dreamloom.diffusion.upsampler.Replay", lambda function, **_: function)
    plain = Upsampler(width=32, depth=2, precision=precision).cuda().fit(data, **settings)
    for one, other in zip(plain.parameters(), replayed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert len(replayed.sample(100)) == 100


@pytest.mark.gpu
def test_a_replayed_step_sees_new_rates_and_new_seeds() -> None:
    weight = torch.zeros(1, device="cuda", requires_grad=True)
    optimizer, generator = torch.optim.Adam([weight], lr=1.0, fused=True), torch.Generator("cuda")
    tensor_rates(optimizer)
    drawn = torch.zeros(1, device="cuda")

    def step() -> None:
        drawn.copy_(torch.rand(1, generator=generator, device="cuda"))
        weight.grad = torch.ones_like(weight)
        optimizer.step()

    replay = Replay(step, generators=[generator], optimizer=optimizer)
    numbers, places = [], []
    for seed, rate in [(1, 1.0), (1, 1.0), (1, 1.0), (1, 1.0), (2, 0.0), (1, 0.5)]:
        generator.manual_seed(seed)
        set_rate(optimizer.param_groups[0], rate)
        replay()
        numbers.append(drawn.item())
        places.append(weight.item())
    assert replay.graph is not None
    assert numbers[0] == numbers[3] == numbers[5] != numbers[4]
    assert places == pytest.approx([-1, -2, -3, -4, -4, -4.5], rel=1e-4)


def test_a_rate_is_set_where_it_is() -> None:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0)
    set_rate(optimizer.param_groups[0], 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5
    tensor_rates(optimizer)
    rate = optimizer.param_groups[0]["lr"]
    set_rate(optimizer.param_groups[0], 0.25)
    assert rate.item() == 0.25
