"""`dreamloom fit` on transitions: the weights of `Upsampler.fit`, killed or not, and a checkpoint that samples."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from test_train import kill, last, leaves

from dreamloom.cli import main
from dreamloom.datasets.transitions import load_transitions
from dreamloom.diffusion.upsampler import Upsampler, load_upsampler

MODEL = {"width": 16, "depth": 1, "ema_every": 2, "condition": "return_to_go"}
TRAINER = {
    "max_steps": 12,
    "accelerator": "cpu",
    "gradient_clip_val": 1.0,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data("data.hdf5", observation=3)


def write_data(name: str, *, observation: int) -> None:
    random = np.random.default_rng(0)
    with h5py.File(name, "w") as file:
        for column in ("observations", "next_observations"):
            file[column] = random.normal(size=(300, observation)).astype(np.float32)
        file["actions"] = random.normal(size=(300, 2)).astype(np.float32)
        file["rewards"] = random.normal(size=300).astype(np.float32)
        file["terminals"], file["timeouts"] = np.arange(300) % 20 == 19, np.zeros(300, bool)


def write_recipe(name: str, *, data: str = "data.hdf5", val_fraction: float = 0.0) -> list[str]:
    model = {"class_path": "dreamloom.diffusion.upsampler.Upsampler", "init_args": MODEL}
    settings = {"path": data, "batch_size": 8, "val_fraction": val_fraction, "val_batches": 2, "steps_per_epoch": 5}
    recipe = {
        "model": {"class_path": "dreamloom.train.replay.UpsamplerTask", "init_args": {"model": model}},
        "data": {"class_path": "dreamloom.train.replay.TransitionData", "init_args": settings},
        "trainer": TRAINER,
        "checkpoint": {"every_n_train_steps": 3},
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return ["fit", "-c", f"{name}.yaml"]


def test_fit_from_a_recipe_ends_in_the_weights_of_fit_in_python() -> None:
    assert main(write_recipe("recipe")) == 0
    python = Upsampler(**MODEL).fit(load_transitions("data.hdf5"), steps=12, batch_size=8, progress=False)
    recipe = load_upsampler("runs/recipe/version_0")
    expected = python.state_dict()
    assert expected.keys() == recipe.state_dict().keys()
    for name, value in recipe.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    weights = dict(recipe.network.named_parameters())
    assert any(not torch.equal(weights[n], p) for n, p in recipe.average.named_parameters()), "averaged weights differ"
    made = recipe.sample(7, condition=(0.5, 1.0))
    assert made.observations.shape == (7, 3)
    assert np.isfinite(made.observations).all()


def test_run_killed_while_it_writes_a_checkpoint_resumes_bit_for_bit() -> None:
    """Averaged weights included. The third checkpoint (step 9) is cut short, so the run goes on from step 6."""
    assert main(write_recipe("whole", val_fraction=0.1)) == 0
    killed = kill(write_recipe("killed", val_fraction=0.1))
    assert killed.returncode == -9, killed.stderr.decode()
    assert last("killed")["global_step"] == 6
    assert main(["fit", "-c", "killed.yaml", "--ckpt_path", "last"]) == 0
    whole, resumed = last("whole"), last("killed")
    assert any(name.startswith("model.average.") for name in whole["state_dict"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        expected, got = leaves(whole[part]), leaves(resumed[part])
        assert expected.keys() == got.keys()
        for place, value in expected.items():
            assert torch.equal(value, got[place]) if isinstance(value, torch.Tensor) else value == got[place], place


def test_resuming_on_other_data_is_refused(capsys: pytest.CaptureFixture) -> None:
    words = write_recipe("mine")
    assert main(words) == 0
    write_data("other.hdf5", observation=4)
    write_recipe("mine", data="other.hdf5")
    assert main([*words, "--ckpt_path", "last"]) == 2
    assert re.search(r"trained on rows of .*'observation': 3.*the data has .*'observation': 4", capsys.readouterr().err)
