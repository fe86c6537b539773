"""Ten steps of each task on fixed data end in the same losses as ever: what a refactoring must not move.

A change that is meant to move them writes them anew: `python tests/test_golden.py` prints the table.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from toy_world import square_clips

from dreamloom.datasets.types import Clip
from dreamloom.tokenizers.quantizers import FSQ, VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.train.optimizers import MuonAdamW
from dreamloom.train.tasks import DynamicsTask, LatentActionTask, Task, TokenizerTask
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions

GOLDEN: dict[str, list[float]] = {
    "tokenizer": [0.298991, 0.282941, 0.270606, 0.261797, 0.255432, 0.249348, 0.24385, 0.237781, 0.236184, 0.228457],
    "tokenizer_vq": [0.359898, 0.30996, 0.285291, 0.259259, 0.243121, 0.235215, 0.220135, 0.212252, 0.195658, 0.190451],
    "latent_actions": [0.303702, 0.273043, 0.273995, 0.26919, 0.263492, 0.266269, 0.256565, 0.256686, 0.248718, 0.248994],
    "dynamics": [2.683111, 2.579346, 2.561722, 2.325855, 2.503556, 2.359192, 2.224346, 1.990745, 2.190406, 2.142017],
    "dynamics_masked_adaln": [
        3.78444,
        3.384092,
        3.041798,
        2.790752,
        2.569042,
        2.468411,
        2.383831,
        2.060131,
        2.254294,
        2.322734,
    ],
}
SMALL = {"width": 16, "heads": 2, "window": 3}
EYES = {"size": 8, "patch": 4, "encoder_depth": 1, "decoder_depth": 1, **SMALL}


def muon(parameters: object) -> torch.optim.Optimizer:
    return MuonAdamW(parameters, lr=0.01)  # type: ignore[arg-type]


def dynamics(**settings: object) -> Task:
    """On tokens of an untrained tokenizer and the true directions."""
    tokenizer = Tokenizer(FSQ(16, [5, 5]), **EYES)
    with TemporaryDirectory() as folder:
        weights = {f"model.{name}": x for name, x in tokenizer.state_dict().items()}
        torch.save({"model_config": tokenizer.config, "state_dict": weights}, Path(folder, "eyes.ckpt"))
        model = Dynamics(25, 4, 4, depth=2, **SMALL, **settings)
        return DynamicsTask(model, tokenizer=str(Path(folder, "eyes.ckpt")), optimizer=muon)


TASKS = {
    "tokenizer": lambda: TokenizerTask(Tokenizer(FSQ(16, [5, 5]), **EYES)),
    "tokenizer_vq": lambda: TokenizerTask(Tokenizer(VQ(16, 25, latent=4), **EYES), optimizer=muon),
    "latent_actions": lambda: LatentActionTask(LatentActions(VQ(16, 4, latent=4), **EYES)),
    "dynamics": dynamics,
    "dynamics_masked_adaln": lambda: dynamics(past="masked", injection="adaln"),
}


def losses(name: str) -> list[float]:
    """The losses of ten steps, seeded as in training."""
    torch.manual_seed(0)
    task = TASKS[name]().train()
    optimizer, generator, found = task.optimizer(task.model.parameters()), torch.Generator().manual_seed(0), []
    for step in range(10):
        frames, actions = square_clips(4, 4, generator)
        actions = torch.cat([actions, actions[:, :1]], 1)
        torch.manual_seed(step)
        loss, _ = task.loss(Clip((frames * 255).to(torch.uint8), actions=actions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(round(loss.item(), 6))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_ten_steps_end_where_they_always_did(name: str) -> None:
    assert losses(name) == pytest.approx(GOLDEN[name], rel=1e-3)


if __name__ == "__main__":
    for name in TASKS:
        print(f'    "{name}": {losses(name)},')
