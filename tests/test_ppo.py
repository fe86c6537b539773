"""PPO that records itself on real Procgen: it learns, goes on after a kill, and leaves agents that record as they are."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamloom.cli import main
from dreamloom.datasets.recorder import Recorder
from dreamloom.datasets.store import open_dataset

pytest.importorskip("procgen")
pytest.importorskip("stable_baselines3")

from dreamloom.datasets import ppo, ppo_agents
from dreamloom.datasets.ppo import Learner
from dreamloom.datasets.procgen import collect_procgen

SMALL = {"game": "coinrun", "levels": "0:20", "steps": 120, "num_envs": 2, "segment": 20, "num_threads": 1, "policy": "ppo"}


@pytest.fixture(autouse=True, scope="module")
def few_updates():
    """The network is of the published size, and this machine may be slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ppo._SETTINGS, "n_epochs", 1)
        patch.setattr(ppo, "_MINIBATCHES", 2)
        yield


def record(path: Path, **options):
    collect_procgen(**{**SMALL, "out": path, **options})
    return open_dataset(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ppo") / "whole.hdf5"
    record(path)
    return path


def test_a_training_leaves_a_recording_and_its_agents(trained):
    assert sorted(path.name for path in trained.parent.iterdir()) == ["whole.agents", "whole.hdf5"]
    data = open_dataset(trained)
    assert data.attrs["policy_names"] == ["ppo"]
    assert data.attrs["source"]["train_steps"] == 120
    files = sorted((trained.parent / "whole.agents").iterdir())
    assert [file.stem for file in files] == ["000000040", "000000080", "000000120"]
    told = ppo_agents.notes(files[-1])
    assert {"algorithm", "network", "mean_return", "steps", "game", "levels", "mode", "seed"} == set(told)
    assert (told["steps"], told["levels"]) == (120, "0:20")


@pytest.mark.parametrize("saved", [False, True], ids=["before it is saved", "before the journal is written"])
def test_a_killed_agent_goes_on_learning_to_the_same_bytes(tmp_path, monkeypatch, trained, saved):
    owner, name = (Recorder, "commit") if saved else (ppo_agents.Training, "save")
    original, calls = getattr(owner, name), iter(range(9))

    def killed_at_the_second(*arguments):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(owner, name, killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "a.hdf5")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"other settings: train_steps=120 \(now 240\)"):
        record(tmp_path / "a.hdf5", train_steps=240)
    record(tmp_path / "a.hdf5")
    assert (tmp_path / "a.hdf5").read_bytes() == trained.read_bytes()
    last = "000000120.safetensors"
    assert (tmp_path / "a.agents" / last).read_bytes() == (trained.parent / "whole.agents" / last).read_bytes()


def test_a_longer_training_is_recorded_in_parts(tmp_path, trained):
    data = record(tmp_path / "a.hdf5", train_steps=250)
    assert len(data) == 120
    assert data.attrs["source"]["train_steps"] == 240
    assert sorted(file.stem for file in (tmp_path / "a.agents").iterdir())[-1] == "000000240"
    # Episodes begin anew where each segment does, on the same levels; what is done there is another matter.
    np.testing.assert_array_equal(data.observations[0], open_dataset(trained).observations[0])
    assert not np.array_equal(data.actions[:], open_dataset(trained).actions[:])


def test_an_agent_records_as_it_is(tmp_path, trained):
    folder = trained.parent / "whole.agents"
    agent = sorted(folder.iterdir())[-1]
    options = {"agent": agent, "steps": 60}
    first = record(tmp_path / "a.hdf5", **options)
    assert first.attrs["source"]["agent"]["sha256"]
    assert first.attrs["source"]["agent"]["file"] == agent.name
    assert record(tmp_path / "b.hdf5", **options).path.read_bytes() == first.path.read_bytes()
    assert not (tmp_path / "a.agents").exists()
    mixed = record(tmp_path / "c.hdf5", policy="ppo:1,random:1", **options)
    assert mixed.attrs["policy_names"] == ["ppo", "random"]
    assert set(np.unique(mixed.infos["policy"][:])) == {0, 1}


def test_a_small_network_learns_and_records_too(tmp_path):
    record(tmp_path / "a.hdf5", network="nature")
    agents = tmp_path / "a.agents"
    assert ppo_agents.notes(agents / "000000120.safetensors")["network"] == "nature"
    assert len(record(tmp_path / "b.hdf5", agent=agents, steps=40)) == 40
    with pytest.raises(ValueError, match="--network nature: goes with --policy ppo"):
        record(tmp_path / "c.hdf5", agent=agents, network="nature")


def test_which_agent_of_a_folder(tmp_path):
    learner = Learner(1, device="cpu", seed=0)
    for steps, value in enumerate([1.0, 4.0, 7.2, 10.0, 9.5]):
        learner.recent.clear()
        learner.recent.append(value)
        learner.keep(tmp_path / f"{steps}.safetensors", steps=steps)
    learner.recent.clear()
    learner.keep(tmp_path / "5.safetensors", steps=5)  # no episode ended
    assert [file.stem for file in ppo_agents.agent_files(tmp_path, "expert")] == ["3"]
    assert [file.stem for file in ppo_agents.agent_files(tmp_path, "suboptimal")] == ["2"]
    assert len(ppo_agents.agent_files(tmp_path, "mixed")) == 6
    assert [file.stem for file in ppo_agents.agent_files(tmp_path / "5.safetensors", "expert")] == ["5"]


def test_all_agents_of_a_folder_record_together(tmp_path, trained):
    options = {"agent": trained.parent / "whole.agents", "quality": "mixed", "num_envs": 4, "steps": 160}
    data = record(tmp_path / "a.hdf5", policy="ppo:0.75,random:0.25", **options)
    assert data.attrs["policy_names"] == ["ppo-000000040", "ppo-000000080", "ppo-000000120", "random"]
    assert np.bincount(data.infos["policy"][:]).tolist() == [40] * 4
    assert [told["steps"] for told in data.attrs["source"]["agents"]] == [40, 80, 120]


def test_it_learns_what_is_rewarded():
    learner, shares = Learner(8, device="cpu", seed=0), []
    learner.model.n_epochs = 4
    frames, first = np.full((8, 64, 64, 3), 90, np.uint8), np.zeros(8, bool)
    for part in range(8):
        act = learner.start(np.random.SeedSequence(part), 8)
        taken = []
        for _ in range(8):
            taken.append(act(frames, first) == 3)
            learner.reward(taken[-1].astype(np.float32), np.ones(8, bool))
        learner.update(frames, first)
        shares.append(np.mean(taken))
    assert shares[0] < 0.2
    assert shares[-1] > 2 * max(shares[0], 1 / 15)
    assert learner.mean_return == pytest.approx(np.mean(list(learner.recent)))


def test_a_step_is_remembered_with_what_came_of_it():
    learner = Learner(2, device="cpu", seed=0)
    act = learner.start(np.random.SeedSequence(0), 3)
    began, ends = [[1, 1], [0, 0], [1, 0]], [[0, 0], [1, 0], [0, 1]]
    for t in range(3):
        frames = np.full((2, 64, 64, 3), t, np.uint8)
        act(frames, np.array(began[t], bool))
        learner.reward(np.array([t, 2.0]), np.array(ends[t], bool))
    buffer = learner.model.rollout_buffer
    assert buffer.full
    np.testing.assert_array_equal(buffer.episode_starts, began)
    assert buffer.observations[:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert list(learner.recent) == [1.0, 6.0]  # rewards as they are; the buffer's are scaled
    assert np.abs(buffer.rewards).max() <= 10


def test_a_checkpoint_is_all_there_is_to_know(tmp_path):
    one, other = Learner(2, device="cpu", seed=0), Learner(2, device="cpu", seed=1)
    frames, first = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8), np.zeros(2, bool)

    def play(learner, seed):
        act = learner.start(np.random.SeedSequence(seed), 4)
        for t in range(4):
            act(frames, first)
            learner.reward(np.array([t, 1.0]), np.ones(2, bool))
        learner.update(frames, first)
        return torch.cat([value.flatten() for value in learner.model.policy.state_dict().values()])

    play(one, 0)
    one.save(tmp_path / "a.pt")
    other.load(tmp_path / "a.pt")
    assert torch.equal(play(one, 1), play(other, 1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "ppo,random"}, "unknown policy 'ppo'"),
        ({"policy": "random", "train_steps": 500}, "--train-steps 500: goes with --policy ppo"),
        ({"train_steps": 50}, "--train-steps 50: .* at least --steps"),
        ({"agent": Path("nowhere")}, "--agent nowhere: no agent is there"),
    ],
)
def test_a_users_mistake_is_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        record(tmp_path / "a.hdf5", **options)
    assert not list(tmp_path.iterdir())


def test_other_files_are_no_agents(tmp_path, trained, capsys):
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not an agent"):
        record(tmp_path / "a.hdf5", agent=tmp_path / "a.safetensors")
    folder = trained.parent / "whole.agents"
    with pytest.raises(ValueError, match="goes with --policy ppo, not 'random'"):
        record(tmp_path / "a.hdf5", agent=folder / "000000120.safetensors", policy="random")


def test_help_tells_what_it_costs(capsys):
    with pytest.raises(SystemExit):
        main(["collect", "procgen", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"About \d+ steps a second and CPU core", told)
    assert "--agent AGENT" in told
