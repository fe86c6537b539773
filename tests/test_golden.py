"""Ten steps of each task on fixed data end in the same losses as ever: what a refactoring must not move.

In float64 and on frames of which no two patches are equal, so that they are the losses of every processor; the table holds six
digits of them. A change that is meant to move them writes them anew: `python tests/test_golden.py` prints the table.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from exact import float64
from toy_world import square_clips

from dreamloom.datasets.types import Clip
from dreamloom.tokenizers.quantizers import FSQ, VQ
from dreamloom.tokenizers.st_vivit import Tokenizer
from dreamloom.train.tasks import DynamicsTask, LatentActionTask, Task, TokenizerTask
from dreamloom.worldmodels.dynamics import Dynamics
from dreamloom.worldmodels.latent_actions import LatentActions

GOLDEN: dict[str, list[float]] = {
    "tokenizer": [0.262969, 0.256911, 0.248018, 0.241563, 0.234711, 0.225356, 0.219519, 0.214387, 0.210629, 0.20091],
    "tokenizer_vq": [0.231823, 0.196549, 0.130909, 0.09303, 0.075034, 0.06256, 0.054707, 0.050289, 0.047796, 0.045946],
    "latent_actions": [0.194279, 0.16146, 0.158044, 0.154234, 0.151897, 0.14774, 0.14397, 0.141152, 0.140977, 0.141842],
    "dynamics": [3.07303, 2.13587, 2.095389, 1.616434, 1.351586, 1.332588, 1.428242, 0.987287, 1.142481, 1.216061],
    "dynamics_masked_adaln": [
        4.042242,
        2.447693,
        2.181162,
        1.947068,
        1.692012,
        1.656817,
        1.676439,
        1.392731,
        1.237072,
        1.166201,
    ],
}
SMALL = {"width": 16, "heads": 2, "window": 3}
EYES = {"size": 8, "patch": 4, "encoder_depth": 1, "decoder_depth": 1, **SMALL}


def fast(parameters: object) -> torch.optim.Optimizer:
    """Not Muon, which turns matrices in bfloat16: `tests/test_optimizers.py` compares it with torch's, step for step."""
    return torch.optim.AdamW(parameters, lr=0.01)  # type: ignore[arg-type]


def dynamics(**settings: object) -> Task:
    """On tokens of an untrained tokenizer and the true directions."""
    tokenizer = Tokenizer(FSQ(16, [5, 5]), **EYES)
    with TemporaryDirectory() as folder:
        weights = {f"model.{name}": x for name, x in tokenizer.state_dict().items()}
        torch.save({"model_config": tokenizer.config, "state_dict": weights}, Path(folder, "eyes.ckpt"))
        model = Dynamics(25, 4, 4, depth=2, **SMALL, **settings)
        return DynamicsTask(model, tokenizer=str(Path(folder, "eyes.ckpt")), optimizer=fast)


TASKS = {
    "tokenizer": lambda: TokenizerTask(Tokenizer(FSQ(16, [5, 5]), **EYES)),
    "tokenizer_vq": lambda: TokenizerTask(Tokenizer(VQ(16, 25, latent=4), **EYES), optimizer=fast),
    "latent_actions": lambda: LatentActionTask(LatentActions(VQ(16, 4, latent=4), **EYES)),
    "dynamics": dynamics,
    "dynamics_masked_adaln": lambda: dynamics(past="masked", injection="adaln"),
}


@float64()
def losses(name: str) -> list[float]:
    """The losses of ten steps, seeded as in training."""
    torch.manual_seed(0)
    task = TASKS[name]().train()
    optimizer, generator, found = task.optimizer(task.model.parameters()), torch.Generator().manual_seed(0), []
    for step in range(10):
        frames, actions = square_clips(4, 4, generator)
        actions = torch.cat([actions, actions[:, :1]], 1)
        noise = torch.randint(56, frames.shape, generator=generator)
        torch.manual_seed(step)
        loss, _ = task.loss(Clip((frames * 200 + noise).to(torch.uint8), actions=actions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(round(loss.item(), 6))
    return found


@pytest.mark.parametrize("name", TASKS)
def test_ten_steps_end_where_they_always_did(name: str) -> None:
    assert losses(name) == pytest.approx(GOLDEN[name], abs=2e-6)


if __name__ == "__main__":
    for name in TASKS:
        print(f'    "{name}": {losses(name)},')
