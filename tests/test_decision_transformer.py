"""Decision Transformer and BCT: they look back and not ahead, remember as they were trained, and learn what needs memory."""

import pytest
import torch
from test_agents_pixels import Mirror, vision
from test_frames import write

from dreamloom.agents.decision_transformer import DecisionTransformer
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.training import train
from dreamloom.datasets.augment import Augment

SMALL = {"context": 4, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    return [write(folder / f"{kind}.hdf5", [9, 7, 8], [True, False, True], discrete=kind) for kind in (False, True)]


def trained(path, *, updates=2, augment=None, drac=0.0, **settings):
    buffer = FrameBuffer(path, stack=2, augment=augment)
    agent = DecisionTransformer(vision=vision(drac=drac), **SMALL, **settings)
    agent.prepare(buffer)
    metrics = train(agent, buffer, updates=updates, batch_size=8, progress=False)
    return agent, buffer, metrics


@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
def test_looks_back_and_not_ahead(files, discrete, returns):
    agent, buffer, _ = trained(files[discrete], returns=returns)
    windows = buffer.ending(buffer.rows[None, 5:11], 4)
    features, actions = agent.see(windows.observations[0]), windows.actions[0]
    said = agent.actor(features, actions, windows.returns[0], windows.real[0])
    later, other = features.clone(), actions.clone()
    later[:, 3] += 1
    other[:, 2:] = 1 - other[:, 2:].clamp(max=1)  # the action of a step is not known when it is chosen
    again = agent.actor(later, other, windows.returns[0], windows.real[0])
    torch.testing.assert_close(again[:, :3], said[:, :3])
    assert not torch.allclose(again[:, 3], said[:, 3])
    changed = agent.actor(features, actions, windows.returns[0] + 1, windows.real[0])
    assert torch.allclose(changed, said) is not returns


@pytest.mark.parametrize("discrete", [True, False])
def test_padding_is_not_seen(files, discrete):
    agent, buffer, _ = trained(files[discrete])
    first = buffer.ending(buffer.rows[None, :1], 4)
    assert first.real[0, 0].tolist() == [False, False, False, True]
    features = agent.see(first.observations[0])
    said = agent.actor(features, first.actions[0], first.returns[0], first.real[0])
    features[:, :3] += 5
    torch.testing.assert_close(agent.actor(features, first.actions[0], first.returns[0], first.real[0])[:, 3], said[:, 3])


@pytest.mark.parametrize("discrete", [True, False])
def test_player_says_what_the_window_says(files, discrete):
    agent, buffer, _ = trained(files[discrete], target_return=2.5)
    rows = buffer.rows[None, :6]
    frames, rewards = buffer.stacked(rows), torch.arange(6.0) / 4
    player, told, acted = agent.player(3), [], []
    for t in range(6):
        earned = torch.full((1, 1), float(rewards[t - 1]) if t else 0.0)
        told.append(2.5 - float(rewards[:t].sum()))
        acted.append(player(frames[:, t : t + 1], earned, torch.tensor([1])))
    actions = torch.cat(acted, 1)
    returns = torch.tensor(told)[None] / agent.scale
    units = actions if discrete else (actions - agent.action_low) * 2 / (agent.action_high - agent.action_low) - 1
    said = agent.actor(agent.see(frames[:, 2:]), units[:, 2:], returns[:, 2:], torch.ones(1, 4, dtype=torch.bool))[:, -1]
    expected = said.argmax(-1) if discrete else agent.action_low + (said + 1) * (agent.action_high - agent.action_low) / 2
    torch.testing.assert_close(actions[:, -1], expected)


def test_learns_what_only_memory_can_tell(files):
    agent, buffer, before = trained(files[1], updates=1, lr=3e-3)
    after = train(agent, buffer, updates=150, batch_size=16, progress=False)
    assert after["bc_loss"] < 0.5 * before["bc_loss"]


def test_augmented_windows_and_the_regulariser(files):
    _, buffer, metrics = trained(files[1], augment=Augment([Mirror()]), drac=0.1)
    windows = buffer.windows(5, 4, [torch.Generator().manual_seed(0)])
    assert windows.observations.dtype == torch.float32
    torch.testing.assert_close(windows.observations, windows.plain.flip(-1) / 255)
    assert metrics["bc_loss"].isfinite().all()
    with pytest.raises(ValueError, match=r"needs data\.augment"):
        trained(files[1], drac=0.1)


def test_one_seed_only():
    with pytest.raises(ValueError, match="one seed"):
        DecisionTransformer(vision=vision(), seeds=2)
