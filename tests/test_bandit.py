"""UCB-DrAC's bandit with learners from pixels: who is told what when, and that a run goes on with what was found out."""

from pathlib import Path

import pytest
import torch
import yaml
from test_frames import write

from dreamloom.agents import judged
from dreamloom.agents.bc import BC
from dreamloom.agents.cql import DiscreteCQL
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.judged import agreement
from dreamloom.agents.training import train
from dreamloom.agents.vision import Vision
from dreamloom.cli import main
from dreamloom.datasets.augment import Augmentation, Identity
from dreamloom.datasets.bandit import UCBDrAC
from dreamloom.nn.encoders import Impala


class Paint(Augmentation):
    """Makes every picture one colour."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, frames, drawn):
        return torch.full_like(frames, self.value)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.hdf5", [20, 20, 20], [True, False, True])


def bandit(**settings):
    return UCBDrAC([Paint(0.25), Paint(0.5), Identity()], **{"every": 2, "rows": 8, **settings})


def buffer(path, augment):
    return FrameBuffer(path, choose={"levels": "10:12"}, augment=augment, judge=FrameBuffer(path, choose={"levels": "12:13"}))


def learner(kind=DiscreteCQL, seeds=1):
    return kind(seeds=seeds, width=8, vision=Vision(Impala([3, 4, 5], latent_size=4, channels=[2, 2, 2])))


def trained(path, updates, seeds=1, kind=DiscreteCQL):
    frames, agent = buffer(path, bandit()), learner(kind, seeds)
    agent.prepare(frames)
    train(agent, frames, updates=updates, batch_size=4, progress=False)
    return agent, frames


def test_a_choice_is_kept_and_rewarded_by_agreement_on_other_levels(file, monkeypatch):
    frames, agent, seen = buffer(file, bandit()), learner(), []
    agent.prepare(frames)
    rewards = iter([0.1, 0.9, 0.2, 0.3, 0.3])
    told = lambda who, judge, rows: [next(rewards)] if who is agent and judge is frames.judge and rows == 8 else []  # noqa: E731
    monkeypatch.setattr(judged, "agreement", told)
    for _ in range(9):
        seen.append(agent.draw(frames, 4).observations.flatten(2)[0])
        agent.updates += 1
    painted = [{0.25: 0, 0.5: 1}.get(float(x.unique()[0]), 2) if len(x.unique()) == 1 else 2 for x in seen]
    assert painted == [0, 0, 1, 1, 2, 2, 1, 1, 1], "each once, then the best"
    assert frames.augment.bandits[0].state_dict() == {"counts": [1, 2, 1], "returns": [[0.1], [0.9, 0.3], [0.2]]}


def test_agreement_is_the_share_of_equal_actions(file):
    agent, frames = trained(file, 1, seeds=2)
    judge = frames.judge
    batch = judge.take(judge.rows[None].expand(2, -1))
    expected = (agent.act(batch.observations) == batch.actions).float().mean(1)
    assert agreement(agent, judge, 100) == pytest.approx(expected.tolist())
    assert len(judge.spread(5)) == 5


def test_continuous_actions_agree_by_distance(tmp_path):
    path = write(tmp_path / "a.hdf5", [20, 20, 20], [True, False, True], discrete=False)
    agent, frames = trained(path, 3, kind=BC)
    (value,) = agreement(agent, frames.judge, 8)
    assert value < 0


def test_seeds_have_bandits_of_their_own(file):
    both, frames = trained(file, 9, seeds=2)
    alone, other = trained(file, 9)
    assert len(frames.augment.bandits) == 2
    assert frames.augment.bandits[0].state_dict() == other.augment.bandits[0].state_dict()
    torch.testing.assert_close(
        both.critics.weights[0][0], alone.critics.weights[0][0], rtol=1e-3, atol=1e-5, msg="trained alone or together"
    )


def test_a_bandit_goes_on_with_what_it_has_found_out(file):
    whole, frames = trained(file, 9)
    half, before = trained(file, 5)
    after, agent = buffer(file, bandit()), learner()
    agent.prepare(after)
    agent.load_state_dict(half.state_dict())
    agent.optimizer.load_state_dict(half.optimizer.state_dict())
    after.augment.load_state_dict(before.augment.state_dict())
    train(agent, after, updates=4, batch_size=4, progress=False)
    assert after.augment.state_dict() == frames.augment.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), agent.parameters(), strict=True))


RECIPE = """
model:
  class_path: dreamloom.train.agents.AgentTask
  init_args:
    updates_per_step: 3
    model:
      class_path: dreamloom.agents.bc.BC
      init_args:
        width: 8
        vision:
          class_path: dreamloom.agents.vision.Vision
          init_args:
            drac: 0.1
            encoder: {class_path: dreamloom.nn.encoders.Nature, init_args: {latent_size: 4, channels: [2, 2, 2]}}
data:
  class_path: dreamloom.train.frames.FrameData
  init_args:
    batch_size: 4
    levels: "0:7"
    judge: "7:10"
    augment:
      class_path: dreamloom.datasets.bandit.UCBDrAC
      init_args:
        every: 2
        augmentations:
          - class_path: dreamloom.datasets.augment.Crop
          - class_path: dreamloom.datasets.augment.Greyscale
trainer: {max_epochs: -1, max_steps: 4, accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false}
checkpoint: {every_n_train_steps: 1, save_top_k: -1}
"""


def test_a_run_keeps_its_bandit_in_the_checkpoint(coinrun_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    yaml.safe_load(RECIPE)
    Path("whole.yaml").write_text(RECIPE)
    Path("again.yaml").write_text(RECIPE)
    words = ["--data.path", str(coinrun_file)]
    assert main(["fit", "-c", "whole.yaml", *words]) == 0
    (first,) = Path("runs/whole/version_0/checkpoints").glob("*step=2.ckpt")
    assert main(["fit", "-c", "again.yaml", *words, "--ckpt_path", str(first)]) == 0
    kept = [
        torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)["FrameData"]["augment"]
        for name in ("whole", "again")
    ]
    assert kept[0] == kept[1]
    assert sum(kept[0]["_extra_state"]["bandits"][0]["counts"]) == 5, "12 updates, a choice for every 2, the last not told yet"
    capsys.readouterr()
    assert main(["fit", "-c", "whole.yaml", *words, "--data.judge", "6:10"]) == 2
    assert "no level in common" in capsys.readouterr().err
    assert main(["fit", "-c", "whole.yaml", *words, "--data.judge", "null"]) == 2
    assert "it needs `judge`" in capsys.readouterr().err


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="every and rows"):
        bandit(every=0)
