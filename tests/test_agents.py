"""Offline learners: closed forms of their losses, seeds that do not see each other, and that they learn at all."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import expectile
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from dreamloom.agents.agent import ALLOWED, Agent, load_agent
from dreamloom.agents.bc import BC
from dreamloom.agents.buffer import Batch, Buffer
from dreamloom.agents.cql import CQL, DiscreteCQL, log_integral
from dreamloom.agents.edac import EDAC, mean_similarity
from dreamloom.agents.iql import IQL, Gaussian, expectile_loss
from dreamloom.agents.networks import Critics
from dreamloom.agents.sac import TanhGaussian, Temperature
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.datasets.types import Transitions
from dreamloom.nn.build import build

ALL = (BC, TD3BC, IQL, CQL, EDAC)
WITH_CRITICS = (TD3BC, IQL, CQL, EDAC)
SMALL = {"width": 16, "depth": 2}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that share a busy core wait for each other at every one of these tiny products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(n: int = 400, o: int = 3, a: int = 2, *, seed: int = 0, high: float = 1.0) -> Transitions:
    """Rows without meaning."""
    random = np.random.default_rng(seed)
    observations = random.normal(5, 3, (n, o)).astype(np.float32)
    actions = random.uniform(-high, high, (n, a)).astype(np.float32)
    following = observations + random.normal(0, 1, (n, o)).astype(np.float32)
    rewards, ends = random.normal(0, 1, n).astype(np.float32), random.random(n) < 0.1
    return Transitions(observations, actions, rewards, following, ends, ~ends & (random.random(n) < 0.1))


def trained(kind: type[Agent], data: Transitions, *, updates: int = 7, seed: int = 0, seeds: int = 1, **settings) -> Agent:
    agent = kind(seeds=seeds, **SMALL, **settings)
    agent.prepare(data)
    train(agent, Buffer([data]), updates=updates, batch_size=32, seed=seed, progress=False)
    return agent


def batch(done: float, following: float, seeds: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    s, a, r = (torch.rand(seeds, 8, n, generator=generator) for n in (3, 2, 1))
    return Batch(s, a, r[..., 0], torch.full_like(s, following), torch.full((seeds, 8), done))


@pytest.mark.parametrize("kind", ALL)
def test_seeds_trained_together_are_those_trained_alone(kind):
    data = rows()
    together = trained(kind, data, seed=3, seeds=3)
    for i in range(3):
        alone = trained(kind, data, seed=3 + i)
        for (name, many), one in zip(together.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(many[i], one[0], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    weight = together.actor.weights[0]
    assert not torch.allclose(weight[0], weight[1], atol=1e-2)


@pytest.mark.parametrize("kind", ALL)
def test_every_parameter_has_the_seed_first(kind):
    agent = trained(kind, rows(), seeds=3, updates=1)
    assert all(parameter.shape[0] == 3 for parameter in agent.parameters())


@pytest.mark.parametrize("kind", ALL)
def test_training_goes_on_where_it_stopped(kind):
    data, settings = rows(), {"cosine": False} if kind is IQL else {}
    whole = trained(kind, data, updates=8, **settings)
    halves = trained(kind, data, updates=4, **settings)
    train(halves, Buffer([data]), updates=4, batch_size=32, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


@pytest.mark.parametrize("kind", ALL)
def test_agent_is_loaded_from_its_config_and_weights(kind, tmp_path):
    agent = trained(kind, rows(high=2.0), seeds=2)
    weights = {f"model.{name}": value for name, value in agent.state_dict().items()}
    torch.save({"model_config": agent.config, "state_dict": weights}, tmp_path / "last.ckpt")
    loaded = load_agent(tmp_path / "last.ckpt")
    observations = torch.randn(2, 5, 3)
    assert torch.equal(loaded.act(observations), agent.act(observations))
    assert (loaded.seeds, loaded.updates) == (2, 7)
    assert isinstance(build(agent.config, ALLOWED), kind)


@pytest.mark.parametrize("kind", ALL)
def test_actions_are_in_the_units_of_the_data(kind):
    data = rows(high=3.0)
    agent = kind(**SMALL)
    agent.prepare(data)
    actions = agent.act(torch.randn(1, 500, 3) * 100)
    low, high = torch.from_numpy(data.actions.min(0)), torch.from_numpy(data.actions.max(0))
    assert (actions >= low - 1e-4).all()
    assert (actions <= high + 1e-4).all()
    assert actions.abs().max() > 1.5
    moved = agent.begin(Buffer([data]).sample(400, agent.streams())).actions
    assert moved.abs().max() <= 1 + 1e-5
    assert moved.abs().max() > 0.98


@pytest.mark.parametrize("kind", WITH_CRITICS)
def test_only_terminals_cut_the_bootstrap(kind):
    def loss(done: float, following: float) -> torch.Tensor:
        agent = kind(seeds=2, **SMALL, normalize=False)
        agent.prepare(rows())
        agent.streams()
        metrics = agent.update(batch(done, following))
        return metrics["bellman_loss" if kind is CQL else "critic_loss"]

    assert torch.allclose(loss(1.0, 0.0), loss(1.0, 9.0))
    assert not torch.allclose(loss(0.0, 0.0), loss(0.0, 9.0))


def test_a_timeout_leaves_no_trace_in_a_batch():
    data = rows()
    unlimited = Transitions(**{**vars(data), "timeouts": np.zeros(len(data), bool)})
    assert torch.equal(Buffer([data]).table, Buffer([unlimited]).table)


# A point in the plane is pushed towards the origin; nobody pushes as well as the best of the data.


def episode(policy, n: int = 64, steps: int = 15, seed: int = 0) -> tuple[float, Transitions]:
    """Mean return of n episodes, and their rows."""
    s = np.random.default_rng(seed).uniform(-1, 1, (n, 2)).astype(np.float32)
    total, columns = np.zeros(n), []
    for t in range(steps):
        a = policy(s)
        following = np.clip(s + 0.3 * a, -2, 2).astype(np.float32)
        reward = -np.square(following).sum(1)
        columns.append((s, a.astype(np.float32), reward.astype(np.float32), following, np.full(n, t == steps - 1)))
        total, s = total + reward, following
    s, a, r, following, timeouts = (np.concatenate(column) for column in zip(*columns, strict=True))
    return float(total.mean()), Transitions(s, a, r, following, np.zeros(len(s), bool), timeouts)


@pytest.mark.parametrize("kind", ALL)
def test_learns_to_beat_the_random_policy_and_what_it_saw(kind):
    random = np.random.default_rng(1)
    clumsy, data = episode(lambda s: np.clip(-0.6 * s + random.normal(0, 0.7, s.shape), -1, 1), n=200)
    uniform, _ = episode(lambda s: random.uniform(-1, 1, s.shape))
    settings = {"lr": 3e-3} if kind is not CQL else {"actor_lr": 1e-3, "critic_lr": 3e-3, "alpha": 1.0, "actions": 4}
    settings |= {"critics": 4} if kind is EDAC else {}
    agent = kind(seeds=2, width=32, depth=2, **settings, **({} if kind is BC else {"gamma": 0.9, "tau": 0.05}))
    agent.prepare(data)
    train(agent, Buffer([data], reward_scale=5.0), updates=300, batch_size=64, progress=False)
    for i in range(2):
        scored, _ = episode(lambda s, i=i: agent.act(torch.from_numpy(s).expand(2, -1, -1))[i].numpy())
        assert scored > clumsy / 2 > uniform


# Closed forms


@pytest.mark.parametrize("level", [0.5, 0.7, 0.9])
def test_expectile_loss_is_smallest_at_the_expectile(level):
    q = np.random.default_rng(0).normal(size=500)
    v = torch.tensor(expectile(q, level), requires_grad=True)
    (slope,) = torch.autograd.grad(expectile_loss((torch.from_numpy(q) - v)[None].float(), level).sum(), v)
    assert abs(float(slope)) < 1e-5


def test_td3_bc_divides_out_the_scale_of_the_values():
    agent = TD3BC(seeds=2)
    q, pi, a = torch.randn(2, 50), torch.rand(2, 50, 3), torch.rand(2, 50, 3)
    loss, bc = agent.actor_loss(q, pi, a)
    assert torch.allclose(loss, agent.actor_loss(1000 * q, pi, a)[0], atol=1e-5)
    assert torch.allclose(loss, bc - 2.5 * q.mean(1) / q.abs().mean(1), atol=1e-5)
    assert torch.allclose(bc, ((pi - a) ** 2).flatten(1).mean(1))


def test_td3_bc_target_is_the_smaller_value_of_a_noisy_action_within_bounds():
    agent = TD3BC(**SMALL)
    agent.prepare(rows())
    seen = []
    agent.target_critics.forward = lambda s, a: seen.append(a) or torch.stack([a.sum(-1), a.sum(-1) - 1], 1)
    agent.streams()
    s = torch.randn(1, 400, 3)
    y = agent.target_values(torch.ones(1, 400), s, torch.zeros(1, 400))
    (a,) = seen
    assert torch.allclose(y, 1 + 0.99 * (a.sum(-1) - 1), atol=1e-6)
    shift = (a - agent.target_actor(s)).abs()
    assert a.abs().max() <= 1
    assert 0.3 < shift.max() <= 0.5 + 1e-6


def test_log_integral_over_a_table_is_its_logsumexp():
    q = torch.randn(2, 3, 7, 5)  # seven actions, each once
    assert torch.allclose(log_integral(q, torch.full((2, 7, 5), -math.log(7))), q.logsumexp(2), atol=1e-5)


def test_log_integral_from_a_policys_samples_is_the_integral():
    torch.manual_seed(0)
    k, policy = 3.0, TanhGaussian(1, 1, 1, width=4, depth=1)
    a, density = policy.sample(torch.zeros(1, 1, 1), torch.randn(1, 40_000, 1, 1))
    estimate = log_integral(k * a[..., 0][:, None], density)
    assert float(estimate) == pytest.approx(math.log(2 * math.sinh(k) / k), abs=0.05)


def test_cql_estimates_the_integral_of_its_critics():
    agent = CQL(actions=4000, **SMALL)
    agent.prepare(rows(a=1))
    agent.critics.many = lambda s, a: 2 * a.sum(-1)[:, None].expand(-1, 2, -1, -1)
    agent.streams()
    estimate = agent.soft_maximum(torch.zeros(1, 2, 3), torch.ones(1, 2, 3))
    assert estimate.shape == (1, 2, 2)
    assert torch.allclose(estimate, torch.tensor(math.log(2 * math.sinh(2) / 2)), atol=0.05)


def test_mean_similarity_is_the_mean_cosine():
    g = torch.randn(2, 4, 6, 3)
    expected = torch.stack(
        [
            sum(torch.cosine_similarity(g[s, i], g[s, j], -1).mean() for i in range(4) for j in range(4) if i != j) / 3
            for s in range(2)
        ]
    )
    assert torch.allclose(mean_similarity(g), expected, atol=1e-5)
    assert torch.allclose(mean_similarity(g[:, :1].expand(-1, 4, -1, -1)), torch.tensor(4.0), atol=1e-5)


def test_edac_makes_gradients_differ():
    similar, apart = (trained(EDAC, rows(), updates=60, critics=4, eta=eta, lr=3e-3) for eta in (0.0, 20.0))
    s, a = torch.randn(1, 50, 3), torch.rand(1, 50, 2)
    values = [mean_similarity(agent.values_and_gradients(s, a)[1]) for agent in (similar, apart)]
    assert values[1] < values[0] - 0.2


def test_critics_gradient_by_the_action_is_that_of_each_critic():
    agent = EDAC(critics=3, **SMALL)
    agent.prepare(rows())
    s, a = torch.randn(1, 4, 3), torch.rand(1, 4, 2)
    q, gradient = agent.values_and_gradients(s, a)
    assert torch.allclose(q, agent.critics(s, a), atol=1e-6)
    step = torch.zeros(2).index_fill(0, torch.tensor(1), 1e-2)
    slope = (agent.critics(s, a + step) - agent.critics(s, a - step)) / 2e-2
    assert (slope - gradient[..., 1]).abs().median() < 1e-4  # a kink may lie between the two


def test_log_densities_are_those_of_torch():
    torch.manual_seed(0)
    squashed = TanhGaussian(2, 3, 2, width=8, depth=1)
    squashed.reset([torch.Generator().manual_seed(i) for i in range(2)])
    s = torch.randn(2, 5, 3)
    a, log_prob = squashed.sample(s, torch.randn(2, 5, 2))
    mean, log_std = squashed(s).chunk(2, -1)
    expected = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform()).log_prob(a).sum(-1)
    assert torch.allclose(log_prob, expected, atol=1e-3)
    gaussian = Gaussian(2, 3, 2, width=8, depth=1)
    with torch.no_grad():
        gaussian.log_std.fill_(-0.7)
    expected = Normal(gaussian(s), torch.tensor(-0.7).exp()).log_prob(a).sum(-1)
    assert torch.allclose(gaussian.log_prob(s, a), expected, atol=1e-4)


def test_temperature_rises_while_entropy_is_too_low():
    temperature = Temperature(1)
    for log_pi, sign in ((5.0, -1), (-5.0, 1)):  # entropy -5 and 5, the target is 0
        (slope,) = torch.autograd.grad(temperature.loss(torch.full((1, 4), log_pi), 0.0).sum(), temperature.log)
        assert math.copysign(1, float(slope)) == sign


def test_iql_lowers_the_actors_rate_to_zero_along_a_cosine():
    agent, data = IQL(lr=1.0, **SMALL), rows()
    agent.prepare(data)
    rates = []
    schedule = agent.schedule
    agent.schedule = lambda: (schedule(), rates.append(agent.groups["actor"]["lr"]))
    train(agent, Buffer([data]), updates=4, batch_size=4, progress=False)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)])
    assert agent.groups["critics"]["lr"] == 1.0


@pytest.mark.parametrize("kind", [TD3BC, EDAC])
def test_a_step_is_that_of_plain_adam_whatever_the_memory_layout_of_the_gradient(kind):
    agent = kind(seeds=2, **SMALL)
    agent.prepare(rows())
    weight = agent.critics.weights[1]
    before = weight.detach().clone()
    wanted = torch.randn_like(weight).mT.contiguous().mT  # columns first, as second derivatives come out
    agent.groups["critics"]["params"] = [weight]
    agent.descend("critics", (weight * wanted).sum((1, 2, 3)))
    expected = before - agent.groups["critics"]["lr"] * wanted.sign()  # Adam's first step
    assert torch.allclose(weight, expected, atol=1e-6)


def test_first_critic_is_the_first_of_all():
    critics = Critics(2, 3, 3, 2, width=8, depth=2)
    critics.reset([torch.Generator().manual_seed(i) for i in range(2)])
    s, a = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
    assert torch.allclose(critics.first(s, a), critics(s, a)[:, 0], atol=1e-6)


def test_bfloat16_stays_close():
    exact, rounded = (trained(TD3BC, rows(), precision=precision) for precision in ("float32", "bfloat16"))
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())
    observations = torch.randn(1, 50, 3)
    assert torch.allclose(exact.act(observations), rounded.act(observations), atol=0.05)
    assert not torch.equal(exact.act(observations), rounded.act(observations))


# The buffer


def streams(seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(seeds)]


def test_shares_hold_in_every_batch():
    real, synthetic = rows(50), rows(500, seed=1)
    real.rewards[:], synthetic.rewards[:] = 1, 2
    mixed = Buffer([real, synthetic], [0.25, 0.75]).sample(64, streams(3))
    assert mixed.observations.shape == (3, 64, 3)
    assert torch.equal((mixed.rewards == 1).sum(1), torch.tensor([16, 16, 16]))
    assert not torch.equal(mixed.observations[0], mixed.observations[1])
    uniform = Buffer([real, synthetic]).sample(5500, streams(1))
    assert 400 < int((uniform.rewards == 1).sum()) < 600
    assert (Buffer([real], reward_scale=3.0).sample(8, streams(1)).rewards == 3).all()


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(1, 300))
def test_batches_are_full_whatever_the_shares(weights, size):
    shares = [weight / sum(weights) for weight in weights]
    assert Buffer([rows(5)] * len(shares), shares).sample(size, streams(1)).rewards.shape == (1, size)


def test_rows_keep_together():
    data = rows(30)
    drawn = Buffer([data]).sample(200, streams(1))
    places = [int(np.flatnonzero(data.rewards == reward)[0]) for reward in drawn.rewards[0].numpy()]
    names = ("observations", "actions", "rewards", "next_observations", "terminals")
    for column, values in zip(drawn, (getattr(data, name) for name in names), strict=True):
        assert np.array_equal(column[0].numpy(), values[places].astype(np.float32))
    assert set(places) == set(range(30))


def test_rows_without_a_successor_are_left_out_unless_terminal():
    data = rows(100)
    known = np.ones(100, bool)
    known[:10] = False
    marked = Transitions(**{**vars(data), "next_known": known})
    lost = int((~data.terminals[:10]).sum())
    with pytest.warns(UserWarning, match=f"{lost} of 100 rows"):
        assert len(Buffer([marked])) == 100 - lost


@pytest.mark.parametrize(
    ("shares", "said"), [([0.5], "2 datasets need as many shares"), ([0.7, 0.7], "sum 1"), ([1.5, -0.5], "at least 0")]
)
def test_shares_that_do_not_fit_are_refused(shares, said):
    with pytest.raises(ValueError, match=said):
        Buffer([rows(5), rows(5)], shares)


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        Buffer([rows(5), rows(5, a=3)])
    discrete = Transitions(**{**vars(rows(5)), "actions": np.zeros(5, np.int64)})
    with pytest.raises(ValueError, match="TD3BC is for continuous actions, the data's are discrete"):
        TD3BC().prepare(discrete)
    with pytest.raises(ValueError, match="DiscreteCQL is for discrete actions"):
        DiscreteCQL().prepare(rows(5))
    with pytest.raises(ValueError, match="there are none"):
        TD3BC().prepare(rows(5)[:0])
    with pytest.raises(ValueError, match="there are none"):
        Buffer([rows(5)[:0]])
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        TD3BC(seeds=0)
    with pytest.raises(ValueError, match="at least 2 critics"):
        EDAC(critics=1)


def test_statistics_are_those_of_all_rows():
    parts = [rows(40), rows(60, seed=1)]
    agent = BC(**SMALL)
    agent.prepare(parts)
    everything = np.concatenate([part.observations for part in parts])
    assert np.allclose(agent.observation_mean, everything.mean(0), atol=1e-4)
    assert np.allclose(agent.observation_std, everything.std(0) + 1e-3, atol=1e-4)
    plain = BC(normalize=False, **SMALL)
    plain.prepare(parts)
    assert plain.observation_mean.eq(0).all()
    assert plain.observation_std.eq(1).all()
