"""`dreamloom fit` of agents: the plain loop's updates, resumed bit for bit, from one dataset or several."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from dreamloom.agents.agent import load_agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.cli import main
from dreamloom.datasets.transitions import load_transitions

KINDS = {"td3_bc": TD3BC, "iql": IQL}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A folder of its own with two small datasets, and one thread."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("real.hdf5", "synthetic.hdf5")):
        random = np.random.default_rng(seed)
        with h5py.File(name, "w") as file:
            file["observations"] = random.normal(size=(200, 3)).astype(np.float32)
            file["next_observations"] = random.normal(size=(200, 3)).astype(np.float32)
            file["actions"] = random.uniform(-1, 1, (200, 2)).astype(np.float32)
            file["rewards"] = random.normal(size=200).astype(np.float32)
            file["terminals"], file["timeouts"] = random.random(200) < 0.05, np.zeros(200, bool)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recipe(kind: str = "td3_bc", name: str = "run", **data: object) -> list[str]:
    """Words that train two tiny agents for six steps of three updates."""
    agent = {"class_path": f"dreamloom.agents.{kind}.{KINDS[kind].__name__}", "init_args": {"seeds": 2, "width": 16}}
    settings = {
        "model": {
            "class_path": "dreamloom.train.agents.AgentTask",
            "init_args": {"model": agent, "updates_per_step": 3, "seed": 4},
        },
        "data": {
            "class_path": "dreamloom.train.agents.AgentData",
            "init_args": {"path": "real.hdf5", "batch_size": 16, "steps_per_epoch": 4} | data,
        },
        "trainer": {
            "max_steps": 6,
            "max_epochs": -1,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"every_n_train_steps": 2, "save_top_k": -1},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(settings))
    return ["fit", "-c", f"{name}.yaml"]


def last(name: str) -> dict:
    return torch.load(Path("runs", name, "version_0/checkpoints/last.ckpt"), weights_only=True)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict | list):
        keys = a.keys() if isinstance(a, dict) else range(len(a))
        return len(a) == len(b) and all(same(a[key], b[key]) for key in keys)
    return a == b


@pytest.mark.parametrize("kind", KINDS)
def test_fit_makes_the_updates_of_the_plain_loop(kind):
    assert main(recipe(kind)) == 0
    fitted = load_agent("runs/run")
    assert (fitted.updates, fitted.seed) == (18, 4)
    data = load_transitions("real.hdf5")
    plain = KINDS[kind](seeds=2, width=16)
    plain.prepare(data)
    train(plain, Buffer([data]), updates=18, batch_size=16, seed=4, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_run_resumes_bit_for_bit(kind):
    """From step 2 on, as after a kill: the horizon of the schedule is that of the whole run, and an epoch is cut."""
    assert main(recipe(kind, "whole")) == 0
    (halfway,) = Path("runs/whole/version_0/checkpoints").glob("*step=2.ckpt")
    assert main([*recipe(kind, "resumed"), "--ckpt_path", str(halfway)]) == 0
    whole, resumed = last("whole"), last("resumed")
    assert whole["global_step"] == resumed["global_step"] == 6
    for part in ("state_dict", "optimizer_states", "model_config"):
        assert same(whole[part], resumed[part]), part


def test_datasets_are_mixed_by_shares():
    assert main(recipe(path=["real.hdf5", "synthetic.hdf5"], shares=[0.25, 0.75])) == 0
    parts = [load_transitions(name) for name in ("real.hdf5", "synthetic.hdf5")]
    plain = TD3BC(seeds=2, width=16)
    plain.prepare(parts)
    train(plain, Buffer(parts, [0.25, 0.75]), updates=18, batch_size=16, seed=4, progress=False)
    fitted = load_agent("runs/run/version_0")
    assert all(torch.equal(a, b) for a, b in zip(fitted.parameters(), plain.parameters(), strict=True))


def test_mistakes_are_told_in_one_line(capsys):
    assert main(recipe(shares=[0.5, 0.5])) == 2
    assert "1 datasets need as many shares" in capsys.readouterr().err
    assert main(recipe()) == 0
    found = str(next(Path("runs/run").glob("version_*/checkpoints/last.ckpt")))
    assert main([*recipe("iql"), "--ckpt_path", found]) == 2
    assert "other agents than the recipe" in capsys.readouterr().err


def test_a_loss_that_turns_infinite_stops_the_run_and_leaves_the_last_good_checkpoint(monkeypatch, capsys):
    update = TD3BC.update

    def diverging(agent, batch):
        metrics = update(agent, batch)
        if agent.updates > 9:  # of the fourth step
            with torch.no_grad():
                next(agent.critics.parameters()).fill_(torch.inf)
        return {**metrics, "critic_loss": metrics["critic_loss"] * (torch.inf if agent.updates > 9 else 1)}

    monkeypatch.setattr(TD3BC, "update", diverging)
    assert main([*recipe(), "--checkpoint.every_n_train_steps", "1"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the loss of step 4 is not finite: training stopped; the last good checkpoint is" in told
    assert "last.ckpt" in told
    assert last("run")["global_step"] == 3
    assert load_agent("runs/run/version_0/checkpoints/last.ckpt").updates == 9


def test_weights_that_are_not_finite_are_never_saved(monkeypatch, capsys):
    update = TD3BC.update

    def diverging(agent, batch):
        metrics = update(agent, batch)
        if agent.updates == 6:  # the last of the second step: no loss shows it yet
            with torch.no_grad():
                next(agent.actor.parameters()).fill_(torch.nan)
        return metrics

    monkeypatch.setattr(TD3BC, "update", diverging)
    assert main(recipe()) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "after step 2 model.actor" in told
    assert "there is no checkpoint yet" in told
    assert not Path("runs/run/version_0/checkpoints/last.ckpt").exists()


def test_rows_that_are_not_finite_are_refused_or_dropped_aloud(capsys):
    with h5py.File("real.hdf5", "r+") as file:
        file["rewards"][3] = np.nan
    assert main(recipe()) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("dreamloom: real.hdf5: 1 of 200 rows hold NaN or infinite numbers (rewards 1); mend them, or")
    assert main([*recipe(), "--data.nonfinite", "drop"]) == 0
    assert "real.hdf5: left out rows, as data.nonfinite is `drop`: 1 of 200 rows" in capsys.readouterr().err
    assert load_agent("runs/run/version_1").updates == 18
