"""From frames to heads on synthetic latents, as a user goes: fit, encode, diffuse, synthesize, compare, fit heads, play."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dreamloom.agents.agent import load_agent
from dreamloom.agents.cql import DiscreteCQL
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.training import train
from dreamloom.agents.vision import Latents, Vision
from dreamloom.cli import main
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.nn.encoders import Impala

TRAINER = {
    "max_epochs": -1,
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SIZE = {"latent_size": 6, "channels": [2, 2, 4]}


def fit(name: str, model: dict, data: dict, steps: int, *words: str) -> int:
    """Runs `dreamloom fit` of a recipe in the working directory."""
    recipe = {"model": model, "data": data, "trainer": {"max_steps": steps, **TRAINER}}
    recipe["checkpoint"] = {"every_n_train_steps": 1, "save_top_k": -1}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return main(["fit", "-c", f"{name}.yaml", *words])


def agents(vision: dict | None = None, **task: object) -> dict:
    made = {"class_path": "dreamloom.agents.cql.DiscreteCQL", "init_args": {"seeds": 2, "width": 8}}
    if vision:
        encoder = {"class_path": "dreamloom.nn.encoders.Impala", "init_args": vision}
        made["init_args"]["vision"] = {"class_path": "dreamloom.agents.vision.Vision", "init_args": {"encoder": encoder}}
    return {"class_path": "dreamloom.train.agents.AgentTask", "init_args": {"model": made, "updates_per_step": 2, **task}}


def frames(path: Path, **settings: object) -> dict:
    return {"class_path": "dreamloom.train.frames.FrameData", "init_args": {"path": str(path), "batch_size": 8, **settings}}


@pytest.fixture(scope="module")
def house(tmp_path_factory, coinrun_file):
    """A folder in which all was run."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("base", agents(SIZE, seed=4), frames(coinrun_file), 3) == 0
        assert main(["encode", "runs/base", "--data", str(coinrun_file), "--out", "z.hdf5", "--learner-seed", "1"]) == 0
        upsampler = {"class_path": "dreamloom.diffusion.upsampler.Upsampler", "init_args": {"width": 16, "depth": 1}}
        task = {"class_path": "dreamloom.train.replay.UpsamplerTask", "init_args": {"model": upsampler}}
        data = {"class_path": "dreamloom.train.replay.TransitionData", "init_args": {"path": "z.hdf5", "val_fraction": 0.0}}
        assert fit("latents", task, data, 3) == 0
        assert main(["synthesize", "runs/latents", "--n", "300", "--out", "z_synth", "--steps", "4"]) == 0
        rows = {"path": ["z.hdf5", "z_synth"], "shares": [0.5, 0.5], "batch_size": 8}
        heads = {"class_path": "dreamloom.train.agents.AgentData", "init_args": rows}
        assert fit("heads", agents(learner="runs/base", learner_seed=1), heads, 2) == 0
    return folder


@pytest.fixture(autouse=True)
def here(house, monkeypatch):
    monkeypatch.chdir(house)


def test_fit_makes_the_updates_of_the_plain_loop(coinrun_file):
    fitted = load_agent("runs/base")
    assert (fitted.updates, fitted.seed) == (6, 4)
    buffer = FrameBuffer(coinrun_file)
    plain = DiscreteCQL(seeds=2, width=8, vision=Vision(Impala([3, 64, 64], **SIZE)))
    plain.prepare(buffer)
    train(plain, buffer, updates=6, batch_size=8, seed=4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), plain.parameters(), strict=True))


def test_run_resumes_bit_for_bit(coinrun_file):
    (first,) = Path("runs/base/version_0/checkpoints").glob("*step=1.ckpt")
    assert fit("again", agents(SIZE, seed=4), frames(coinrun_file), 3, "--ckpt_path", str(first)) == 0
    whole, resumed = load_agent("runs/base"), load_agent("runs/again")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_latents_are_the_learners_own_in_order_of_time(coinrun_file):
    rows, latents = load_transitions("z.hdf5"), Latents.of(load_agent("runs/base"), seed=1)
    real = load_transitions(coinrun_file)
    pixels = torch.from_numpy(real.observations).permute(0, 3, 1, 2)
    np.testing.assert_allclose(rows.observations, latents.encode(pixels).numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(rows.actions, real.actions)
    assert np.array_equal(rows.rewards, real.rewards)
    assert np.array_equal(rows.terminals, real.terminals)
    known = np.ones(len(rows), bool) if rows.next_known is None else rows.next_known
    after = torch.from_numpy(real.next_observations).permute(0, 3, 1, 2)
    np.testing.assert_allclose(rows.next_observations[known], latents.encode(after).numpy()[known], rtol=1e-4, atol=1e-5)
    with open_dataset("z.hdf5") as data:
        assert data.attrs["game"] == "coinrun"
        assert len(data.action_names) == 15


def test_synthetic_latents_have_the_actions_rewards_and_endings_of_the_data():
    made, real = load_transitions("z_synth"), load_transitions("z.hdf5")
    assert made.actions.dtype == np.int64
    assert set(made.actions) <= set(real.actions)
    assert set(made.rewards) <= set(real.rewards)
    assert made.observations.shape == (300, 6)


def test_heads_act_on_frames_through_the_frozen_encoder(house):
    base, heads = load_agent("runs/base"), load_agent("runs/heads")
    assert isinstance(heads.vision, Latents)
    kept = Latents.of(base, seed=1).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in heads.vision.state_dict().items())
    picture = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    assert heads.act(picture).shape == (2, 3)


def test_real_and_synthetic_latents_are_compared():
    assert main(["eval", "replay", "z_synth", "--real", "z.hdf5", "--out", "fidelity", "--rows", "200"]) == 0
    found = json.loads(Path("fidelity/metrics.json").read_text())["synthetic"]
    assert 0 < found["js"]["mean"] < 1
    assert {"s0", "a=0", "r", "s'5"} <= set(found["js"]["columns"])
    assert 0.5 <= found["c2st"]["auc"] <= 1


@pytest.mark.parametrize("run", ["base", "heads"])
def test_agents_play_procgen_on_levels_seen_and_unseen(run, capsys):
    # Nobody lives long in bigfish; CoinRun would last 1,000 steps.
    words = ["--env", "procgen:bigfish", "--heldout", "1000:1100", "--episodes", "2", "--out", run, "--device", "cpu"]
    assert main(["eval", "agent", f"runs/{run}", *words]) == 0
    metrics = json.loads(Path(run, "metrics.json").read_text())
    assert metrics["levels"] == "0:10", "those of the recording"
    assert metrics["heldout"]["levels"] == "1000:1100"
    assert np.shape(metrics["returns"]) == np.shape(metrics["heldout"]["returns"]) == (2, 2)
    gap = np.mean(metrics["returns"]) - np.mean(metrics["heldout"]["returns"])
    assert metrics["gap"]["mean"] == pytest.approx(gap)
    assert metrics["scores"] == pytest.approx([(np.mean(r) - 1) / 0.39 for r in metrics["returns"]])
    assert "gap:" in capsys.readouterr().out


def test_mistakes_are_told_in_one_line(coinrun_file, capsys):
    rows = {"class_path": "dreamloom.train.agents.AgentData", "init_args": {"path": "z.hdf5"}}
    assert fit("wrong", agents(learner="runs/base", learner_seed=0), rows, 1) == 2
    assert "not of the learner given" in capsys.readouterr().err
    assert fit("wrong", agents(SIZE), frames(coinrun_file, stack=2), 1) == 2
    assert "see the encoder's `shape`" in capsys.readouterr().err
    assert main(["encode", "runs/heads", "--data", str(coinrun_file), "--out", "y.hdf5"]) == 2
    assert "latents need a learner from pixels" in capsys.readouterr().err
    assert main(["encode", "runs/base", "--data", str(coinrun_file), "--out", "z.hdf5"]) == 2
    assert "z.hdf5: exists already" in capsys.readouterr().err
    assert main(["eval", "agent", "runs/base", "--env", "HalfCheetah-v5", "--levels", "0:9", "--out", "x"]) == 2
    assert "--levels and --heldout are for procgen" in capsys.readouterr().err
    assert main(["eval", "agent", "runs/base", "--env", "procgen:tetris", "--out", "x"]) == 2
    assert "tetris" in capsys.readouterr().err
