"""Training runs: killed and resumed, and spread over ranks, they end in the weights of a plain run."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from exact import float64

from dreamloom.cli import main

VQ = {"class_path": "dreamloom.tokenizers.quantizers.VQ"}
TINY = {"size": 16, "width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1}
TASKS = {
    "tokenizer": {
        "class_path": "dreamloom.train.tasks.TokenizerTask",
        "init_args": {
            "model": {
                "class_path": "dreamloom.tokenizers.st_vivit.Tokenizer",
                "init_args": {"quantizer": VQ | {"init_args": {"width": 16, "codes": 16, "latent": 4}}, "patch": 4, **TINY},
            }
        },
    },
    "latent_actions": {
        "class_path": "dreamloom.train.tasks.LatentActionTask",
        "init_args": {
            "model": {
                "class_path": "dreamloom.worldmodels.latent_actions.LatentActions",
                "init_args": {"quantizer": VQ | {"init_args": {"width": 16, "codes": 4, "latent": 4}}, "patch": 8, **TINY},
            }
        },
    },
    "dynamics": {
        "class_path": "dreamloom.train.tasks.DynamicsTask",
        "init_args": {
            "model": {
                "class_path": "dreamloom.worldmodels.dynamics.Dynamics",
                "init_args": {"codes": 16, "tokens": 16, "actions": 3, "width": 16, "depth": 1, "heads": 2},
            }
        },
    },
}
TRAINER = {"max_steps": 12, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """A folder of its own with a small dataset: a square that moves as its action says."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    actions = random.integers(0, 3, 120)
    place = np.clip(6 + np.cumsum(np.concatenate([[0], actions[:-1] - 1])), 0, 12)
    frames = np.full((120, 16, 16, 3), 40, np.uint8)
    for frame, x in zip(frames, place, strict=True):
        frame[6:10, x : x + 4] = (200, 120, 30)
    with h5py.File("data.hdf5", "w") as file:
        file["observations"], file["actions"] = frames, actions
        file["terminals"], file["timeouts"] = np.arange(120) % 20 == 19, np.zeros(120, bool)
    return tmp_path


def write_recipe(name: str, task: str, **overrides) -> list[str]:
    """Words of `dreamloom` that train a tiny model; the run goes to runs/<name>."""
    model = {**TASKS[task], "init_args": {**TASKS[task]["init_args"], **overrides.pop("model", {})}}
    data = {"path": "data.hdf5", "length": 4, "batch_size": 4, "val_fraction": 0.2, "val_batches": 1, "steps_per_epoch": 5}
    recipe = {
        "model": model,
        "data": {"class_path": "dreamloom.train.data.ClipData", "init_args": data | overrides.pop("data", {})},
        "trainer": TRAINER | overrides.pop("trainer", {}),
        "checkpoint": {"every_n_train_steps": 3},
    }
    assert not overrides
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return ["fit", "-c", f"{name}.yaml"]


def last(name: str) -> dict:
    return torch.load(Path("runs", name, "version_0/checkpoints/last.ckpt"), weights_only=True)


def leaves(tree: object, path: str = "") -> dict[str, object]:
    """Every tensor and number of a checkpoint by its place."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {place: leaf for key, value in items for place, leaf in leaves(value, f"{path}/{key}").items()}
    return {path: tree}


KILLED = """
import io, os, signal, sys, torch
from dreamloom.cli import main
torch.set_num_threads(int(sys.argv.pop(1)))  # the order of sums depends on it
real, calls = torch.save, []
def save(obj, file, *args, **kwargs):
    calls.append(file)
    if len(calls) < 3:
        return real(obj, file, *args, **kwargs)
    whole = io.BytesIO()
    real(obj, whole)
    with open(file, "wb") if not hasattr(file, "write") else file as half:
        half.write(whole.getvalue()[:1000])
        half.flush()
        os.kill(os.getpid(), signal.SIGKILL)
torch.save = save
main(sys.argv[1:])
"""


def kill(words: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", KILLED, str(torch.get_num_threads()), *words]
    return subprocess.run(command, timeout=500, capture_output=True)


@pytest.mark.parametrize("task", ["tokenizer", "dynamics"])
def test_run_killed_while_it_writes_a_checkpoint_resumes_bit_for_bit(task):
    """The third checkpoint (step 9) is cut short by kill -9, so the run goes on from step 6."""
    model = {}
    if task == "dynamics":
        assert main(write_recipe("eyes", "tokenizer", trainer={"max_steps": 1})) == 0
        model = {"tokenizer": "runs/eyes/version_0/checkpoints/last.ckpt"}
    assert main(write_recipe("whole", task, model=model)) == 0
    killed = kill(write_recipe("killed", task, model=model))
    assert killed.returncode == -9, killed.stderr.decode()
    assert last("killed")["global_step"] == 6
    assert main(["fit", "-c", "killed.yaml", "--ckpt_path", "last"]) == 0
    whole, resumed = last("whole"), last("killed")
    assert whole["global_step"] == resumed["global_step"] == 12
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        expected, got = leaves(whole[part]), leaves(resumed[part])
        assert expected.keys() == got.keys()
        for place, value in expected.items():
            same = torch.equal(value, got[place]) if isinstance(value, torch.Tensor) else value == got[place]
            assert same, place


def test_checkpoints_keep_the_levels_of_every_file_that_a_run_saw(workspace):
    words = write_recipe("levels", "tokenizer", trainer={"max_steps": 1, "limit_val_batches": 0})
    assert main(words) == 0
    assert last("levels")["ClipData"] == {"levels": []}
    for name, attrs in {"found": {}, "told": {"source": json.dumps({"levels": "0:50"})}}.items():
        shutil.copy("data.hdf5", f"{name}.hdf5")
        with h5py.File(f"{name}.hdf5", "a") as file:
            file["infos/level_seed"] = 3 + np.arange(120) // 20
            file.attrs.update(attrs)
    assert main([*words, "--data.path", "found.hdf5", "--trainer.max_steps", "2", "--ckpt_path", "last"]) == 0
    assert last("levels")["ClipData"] == {"levels": ["3:9"]}
    assert main([*words, "--data.path", "told.hdf5", "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    assert last("levels")["ClipData"] == {"levels": ["0:50", "3:9"]}


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}  # Adam turns the rounding of a zero gradient into a step
RANK = """
import sys
from exact import float64
from dreamloom.cli import main
with float64():
    for recipe in sys.argv[1:]:
        assert main(["fit", "-c", recipe]) == 0
"""


def _free_port() -> int:
    """A port below those that the system gives to others, who might take it before the ranks do."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def run_two_ranks(recipes: list[str]) -> None:
    """Each recipe in turn on two processes that share a process group, as `torchrun` would start them."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    group = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "PYTHONPATH": path}
    command = [sys.executable, "-c", RANK, *recipes]
    ranks = [subprocess.Popen(command, env=group | {"LOCAL_RANK": str(rank)}) for rank in range(2)]
    try:
        assert [rank.wait(timeout=500) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()


def test_the_learning_rate_falls_until_the_time_is_over() -> None:
    words = write_recipe("timed", "tokenizer", model={"warmup_steps": 1, "final_lr": 0.1}, trainer={"max_steps": -1})
    assert main([*words, "--trainer.max_time=00:00:00:02"]) == 0
    schedule = last("timed")["lr_schedulers"][0]
    assert last("timed")["global_step"] > 1
    assert schedule["base_lrs"][0] * 0.1 == pytest.approx(schedule["_last_lr"][0], rel=0.2)


def test_two_ranks_train_like_one_with_twice_the_batch():
    """In weights and in codebook statistics, dead codes that are reset and masks included.

    Sums over two ranks round otherwise than sums over one batch. In float64, and with frames of which no two patches are
    equal, that leaves each vector at its code, so what differs is rounding: 1e-16, grown in five steps by less than a million.
    """
    with h5py.File("data.hdf5", "a") as file:
        frames = file["observations"]
        frames[:] = frames[:] + np.random.default_rng(1).integers(0, 40, frames.shape, np.uint8)
    trainer = {"max_steps": 5, "limit_val_batches": 0}
    ranks = {"strategy": "ddp", "devices": 2}
    tasks = ("tokenizer", "latent_actions", "dynamics")
    for task in tasks:
        model = {"optimizer": SGD, "warmup_steps": 0}
        if task == "dynamics":
            model["tokenizer"] = "runs/one_tokenizer/version_0/checkpoints/last.ckpt"
        write_recipe(f"two_{task}", task, model=model, data={"batch_size": 2}, trainer=trainer | ranks)
        with float64():
            assert main(write_recipe(f"one_{task}", task, model=model, data={"batch_size": 4}, trainer=trainer)) == 0
    run_two_ranks([f"two_{task}.yaml" for task in tasks])
    for task in tasks:
        one, two = last(f"one_{task}")["state_dict"], last(f"two_{task}")["state_dict"]
        assert {value.dtype for value in one.values()} <= {torch.float64, torch.int64, torch.bool}
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
