"""Learners from pixels: the algorithms of vectors with an encoder each, frozen latents, augmentation and its regulariser."""

import copy

import numpy as np
import pytest
import torch
from test_frames import write
from torch import nn

from dreamloom.agents.agent import ALLOWED, Agent, load_agent
from dreamloom.agents.bc import BC
from dreamloom.agents.bcq import BCQ
from dreamloom.agents.cql import CQL, DiscreteCQL
from dreamloom.agents.drq_bc import DrQBC
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.agents.vision import Latents, Vision
from dreamloom.datasets.augment import Augment, ColourCutout, ColourJitter, Identity, RandomConvolution, Shift
from dreamloom.nn.build import build
from dreamloom.nn.encoders import Impala

LATENT = 16
DISCRETE, CONTINUOUS = (BC, BCQ, DiscreteCQL, IQL), (BC, DrQBC, TD3BC, CQL, IQL)
ALL = [*((kind, True) for kind in DISCRETE), *((kind, False) for kind in CONTINUOUS)]
every = pytest.mark.parametrize(
    ("kind", "discrete"), ALL, ids=lambda x: getattr(x, "__name__", "discrete" if x else "continuous")
)


class Mirror(Identity):
    """Changes every frame."""

    def forward(self, frames, drawn):
        return frames.flip(-1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels")
    return [write(folder / f"{kind}.hdf5", [30, 20], [True, False], discrete=kind) for kind in (False, True)]


def vision(stack: int = 2, drac: float = 0.0) -> Vision:
    return Vision(Impala([3 * stack, 4, 5], latent_size=LATENT, channels=[2, 4, 6]), drac=drac)


def trained(kind, path, *, updates=3, seeds=1, seed=0, drac=0.0, augment=None, **settings) -> Agent:
    buffer = FrameBuffer(path, stack=2, augment=augment)
    agent = kind(seeds=seeds, width=8, depth=1, vision=vision(drac=drac), **settings)
    agent.prepare(buffer)
    train(agent, buffer, updates=updates, batch_size=8, seed=seed, progress=False)
    return agent


def weights(agent: Agent, seed: int) -> dict[str, torch.Tensor]:
    """Of one seed: batched weights cut, encoders and trunks by their place in their list."""
    found = {}
    for name, value in agent.named_parameters():
        words = name.split(".")
        places = [i for i, word in enumerate(words) if word in ("encoders", "each")]
        if places:
            if words[places[0] + 1] == str(seed):
                found[".".join([*words[: places[0] + 1], *words[places[0] + 2 :]])] = value
        else:
            found[name] = value[seed]
    return found


@every
def test_seeds_trained_together_are_those_trained_alone(kind, discrete, files):
    together = trained(kind, files[discrete], seeds=2, seed=3)
    for i in range(2):
        alone = weights(trained(kind, files[discrete], seed=3 + i), 0)
        for name, value in weights(together, i).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@every
def test_everything_trains_but_the_targets(kind, discrete, files):
    before, after = (trained(kind, files[discrete], updates=n) for n in (0, 3))
    changed = {name: not value.equal(dict(after.named_parameters())[name]) for name, value in before.named_parameters()}
    still = [name for name, moved in changed.items() if not moved]
    assert not [name for name in still if not name.startswith("target_") and ".stages." not in name], "a layer did not learn"
    assert any(moved for name, moved in changed.items() if ".stages." in name)


@every
def test_agent_is_loaded_and_acts_on_frames(kind, discrete, files, tmp_path):
    agent = trained(kind, files[discrete], seeds=2)
    torch.save(
        {"model_config": agent.config, "state_dict": {f"model.{k}": v for k, v in agent.state_dict().items()}},
        tmp_path / "a.ckpt",
    )
    loaded = load_agent(tmp_path / "a.ckpt")
    frames = torch.randint(0, 256, (2, 5, 6, 4, 5), dtype=torch.uint8)
    actions = loaded.act(frames)
    assert actions.equal(agent.act(frames))
    assert actions.shape == ((2, 5) if discrete else (2, 5, 2))
    assert loaded.discrete == discrete
    assert isinstance(build(agent.config, ALLOWED), kind)


@every
def test_regulariser_pulls_what_is_said_of_augmented_frames_to_the_plain(kind, discrete, files):
    rates = {"critic_lr": 1e-3} if kind is CQL else {"lr": 1e-3}
    settings = {"augment": Augment([Mirror()]), "updates": 40, "seed": 1, **rates}
    plain, held = (trained(kind, files[discrete], drac=drac, **settings) for drac in (0.0, 100.0))
    frames = FrameBuffer(files[discrete], stack=2).sample(40, [torch.Generator().manual_seed(9)]).observations
    gaps = []
    for agent in (plain, held):
        network = agent.critics if hasattr(agent, "critics") else agent.actor
        said = network.all if discrete and hasattr(network, "all") else network
        rest = () if discrete or not hasattr(agent, "critics") else (torch.zeros(1, 40, 2),)
        with torch.no_grad():
            here, there = (said(agent.look(x), *rest) for x in (frames, frames.flip(-1)))
        gaps.append(float((here - there).square().mean() / here.var()))
    assert gaps[1] < gaps[0]


def test_regulariser_needs_augmentation(files):
    with pytest.raises(ValueError, match=r"needs data\.augment"):
        trained(DiscreteCQL, files[1], drac=0.1)


def test_frames_that_do_not_fit_are_refused(files):
    with pytest.raises(ValueError, match=r"frames are \(c, h, w\) = \(3, 4, 5\), the agents have a Vision of \(6, 4, 5\)"):
        BC(vision=vision()).prepare(FrameBuffer(files[1]))
    with pytest.raises(ValueError, match="no vision"):
        BC().prepare(FrameBuffer(files[1]))
    with pytest.raises(ValueError, match="are discrete"):
        DrQBC(vision=vision()).prepare(FrameBuffer(files[1], stack=2))


def test_bcq_takes_the_best_of_the_likely_actions(files):
    agent = trained(BCQ, files[1], threshold=0.3)
    agent.actor.logits = lambda s: torch.tensor([[[0.5, 0.3, 0.14, 0.06]]]).log()
    agent.critics.all = lambda s: torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert agent.policy(torch.zeros(1, 1, 3)).item() == 1
    agent.threshold = 0.2
    assert agent.policy(torch.zeros(1, 1, 3)).item() == 2


def test_discrete_cql_is_double_dqn_and_an_exact_logsumexp(files):
    agent = DiscreteCQL(vision=vision(), depth=0)
    buffer = FrameBuffer(files[1], stack=2)
    agent.prepare(buffer)
    batch = buffer.sample(16, agent.streams())
    q, q_next = (
        agent.critics.all(agent.look(batch.observations))[0, 0],
        agent.critics.all(agent.look(batch.next_observations))[0, 0],
    )
    chosen = q.gather(1, batch.actions[0, :, None])[:, 0]
    y = batch.rewards[0] + 0.99 * (1 - batch.terminals[0]) * q_next.amax(1)
    metrics = agent.update(batch)
    torch.testing.assert_close(metrics["bellman_loss"][0], (chosen - y).square().mean().detach())
    torch.testing.assert_close(metrics["conservative_loss"][0], (q.logsumexp(1) - chosen).mean().detach())


def test_latents_are_the_sum_of_what_the_networks_stand_on(files):
    agent = trained(IQL, files[1], seeds=2)
    frames = torch.randint(0, 256, (5, 6, 4, 5), dtype=torch.uint8)
    features = agent.vision.encoders[1](frames / 255)
    z = [network.trunk.each[1][0](features) for network in (agent.actor, agent.critics)]
    torch.testing.assert_close(Latents.of(agent, seed=1).encode(frames), sum(z).detach())
    side_by_side = Latents.of(agent, seed=1, combine="concatenation")
    assert side_by_side.latent_size == 2 * LATENT
    torch.testing.assert_close(side_by_side.encode(frames), torch.cat(z, 1).detach())
    with pytest.raises(ValueError, match="seeds 0 to 1"):
        Latents.of(agent, seed=2)


def test_heads_on_latents_act_on_frames_and_leave_them_alone(files):
    from dreamloom.agents.buffer import Buffer
    from dreamloom.datasets.types import Transitions

    latents = Latents.of(trained(DiscreteCQL, files[1]))
    before = copy.deepcopy(latents.state_dict())
    random, n = np.random.default_rng(0), 60
    z, z_next = random.normal(size=(2, n, LATENT)).astype(np.float32)
    none = np.zeros(n, bool)
    rows = Transitions(z, random.integers(0, 4, n), random.normal(size=n).astype(np.float32), z_next, none, none)
    agent = DiscreteCQL(seeds=2, width=8, depth=2, vision=latents)
    agent.prepare(rows, actions=7)
    train(agent, Buffer([rows]), updates=3, batch_size=8, progress=False)
    assert agent.act(torch.zeros(2, 5, 6, 4, 5, dtype=torch.uint8)).shape == (2, 5)
    assert agent.critics.all(torch.zeros(2, 1, LATENT)).shape == (2, 1, 1, 7)
    assert all(value.equal(latents.state_dict()[name]) for name, value in before.items())
    assert isinstance(build(agent.config, ALLOWED).vision, Latents)
    with pytest.raises(ValueError, match="no latents"):
        BC(vision=Latents.of(trained(BC, files[1]))).prepare(
            Transitions(z[:, :5], rows.actions, rows.rewards, z_next[:, :5], none, none)
        )


def test_noise_of_drq_falls():
    agent = DrQBC(noise_updates=10)
    seen = []
    for agent.updates in (1, 6, 11, 50):
        seen.append(agent.noise_now())
    assert seen == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_modules_of_a_vision_have_no_seed_but_their_own():
    eyes = vision()
    eyes.grow(3)
    eyes.reset([torch.Generator().manual_seed(i) for i in range(3)])
    assert len(eyes.trunks().each) == 3
    kernels = [next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).weight for encoder in eyes.encoders]
    assert not kernels[0].equal(kernels[1])


@pytest.mark.gpu
@every
def test_graphs_make_the_updates_from_frames_that_plain_calls_make(kind, discrete, files, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    augment = Augment([Shift(1), ColourJitter(), ColourCutout(), RandomConvolution()])
    found = []
    for phases in (0, None):
        buffer = FrameBuffer(files[discrete], stack=2, augment=copy.deepcopy(augment), device="cuda")
        agent = kind(seeds=2, width=8, depth=1, vision=vision(drac=0.1))
        agent.prepare(buffer)
        agent.to("cuda")
        agent.phases = agent.phases if phases is None else phases
        metrics = train(agent, buffer, updates=12, batch_size=8, seed=3, progress=False)
        assert agent.updates == 12
        assert all(value.isfinite().all() for value in metrics.values())
        found.append({name: value for name, value in agent.state_dict().items() if isinstance(value, torch.Tensor)})
    for name, one in found[0].items():
        torch.testing.assert_close(one, found[1][name], msg=lambda text, name=name: f"{name}: {text}")
