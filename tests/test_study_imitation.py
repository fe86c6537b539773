"""The study of imitation, on real CoinRun: who labels clips, what is cloned, and how labels become actions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import record

from dreamloom import cli
from dreamloom.agents.bc import BC
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.relabelled import Relabelled
from dreamloom.agents.training import train
from dreamloom.agents.vision import Vision
from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.eval import study_report
from dreamloom.eval.inverse_labels import inverse_labels, inverse_said, labelled_episodes
from dreamloom.eval.labelers import (
    Labelled,
    clips,
    dictionary,
    followed,
    inferred,
    latent_labels,
    load_latent_actions,
    merged_actions,
    true_labels,
)
from dreamloom.eval.labelers import Labels as Arm
from dreamloom.eval.study import read_study
from dreamloom.eval.study_imitation import Imitation, eval_imitation
from dreamloom.nn.encoders import Nature
from dreamloom.recipes import recipe_paths
from dreamloom.tokenizers.quantizers import VQ
from dreamloom.worldmodels.latent_actions import LatentActions

# In fruitbot everybody falls within 200 steps, whatever they do; CoinRun would last 1,000.
RECIPE = """
environments:
  procgen:fruitbot: {data}
learners:
  bc:
    class_path: dreamloom.agents.bc.BC
    init_args:
      seeds: 2
      depth: 0
      drawn: true
      vision:
        class_path: dreamloom.agents.vision.Vision
        init_args:
          encoder:
            class_path: dreamloom.nn.encoders.Nature
            init_args: {{latent_size: 6, channels: [4, 4, 4]}}
arms:
  latent, 20: {{by: latent, samples: 20}}
  latent, 50, most frequent: {{by: latent, samples: 50, drawn: false}}
  all: {{by: "true"}}
  few: {{by: "true", samples: 20}}
  inverse: {{by: inverse}}
  inverse, sure: {{by: inverse, sure: 0.5}}
  random: {{by: random}}
latent_actions: {model}
share: 0.3
members: 2
inverse_steps: 3
levels: "0:10"
test: "1000:1100"
updates: 3
batch_size: 8
episodes: 2
"""
WORDS = ["eval", "imitation", "-c", "study.yaml", "--out", "report"]


def tiny_model(codes: int = 4) -> LatentActions:
    torch.manual_seed(0)
    depths = {"encoder_depth": 1, "decoder_depth": 1}
    quantizer = VQ(width=16, codes=codes, latent=4)
    return (
        LatentActions(quantizer, patch=16, width=16, heads=2, pairs=True, backend="math", **depths).eval().requires_grad_(False)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, a latent action model, a recipe and the study's report."""
    folder = tmp_path_factory.mktemp("study")
    data = record(folder / "fruitbot.hdf5", game="fruitbot", levels="0:10")
    model = tiny_model()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model_config": model.config, "state_dict": weights}, folder / "actions.ckpt")
    (folder / "study.yaml").write_text(RECIPE.format(data=data, model=folder / "actions.ckpt"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(study_report, "REPETITIONS", 20)
        assert cli.main(WORDS) == 0
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(study_report, "REPETITIONS", 20)


@pytest.fixture(scope="module")
def frames(folder: Path) -> FrameBuffer:
    return FrameBuffer(folder / "fruitbot.hdf5")


def test_every_cell_has_its_figures(frames: FrameBuffer) -> None:
    arms = json.loads(Path("report/study.json").read_text())["results"]["procgen:fruitbot"]["bc"]
    assert list(arms) == list(yaml.safe_load(Path("study.yaml").read_text())["arms"])
    for cell in arms.values():
        for part in (cell, cell["train"]):
            assert np.shape(part["episode_returns"]) == (2, 2)
            assert part["scores"] == pytest.approx(100 * (np.array(part["episode_returns"]) > 0).mean(1))
            assert part["low"] <= part["iqm"] <= part["high"]
        assert len(cell["right"]) == len(cell["rows"]) == 2
        assert cell["wall_s"] > 0
    assert arms["all"]["rows"] == [len(frames)] * 2
    assert arms["all"]["right"] == arms["few"]["right"] == [1, 1]
    assert arms["few"]["rows"] == [20, 20]
    assert arms["random"]["right"] == pytest.approx([1 / 15] * 2)
    assert len(arms["inverse"]["accuracy"]) == 2
    assert arms["inverse, sure"]["rows"][0] < arms["inverse"]["rows"][0] < len(frames)


def test_report_has_every_arm_and_a_plot() -> None:
    told = Path("report/report.md").read_text()
    for words in ("| latent, 50, most frequent |", "levels of the clips", "levels `0:10`", "![bc](bc.png)"):
        assert words in told
    assert Path("report/bc.png").stat().st_size > 5000


def test_latent_arms_share_a_policy_and_a_cell_made_again_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.stem.split("--")[2] for path in Path("report/learners").glob("*.pt")) == sorted(
        ["latent", "all", "few", "inverse", "inverse, sure"]
    )
    cell = Path("report/cells/procgen:fruitbot--bc--latent, 20.json")
    before = json.loads(cell.read_text())
    cell.unlink()
    for path in Path("report/learners").glob("*latent.pt"):
        path.unlink()
    assert cli.main(WORDS) == 0
    said = capsys.readouterr().out
    assert "latent, 20" in said
    assert "inverse" not in said, "the other cells are kept"
    assert json.loads(cell.read_text())["episode_returns"] == before["episode_returns"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--updates", "4"], "holds a study with other updates"),
        (["--test", "4:30"], "levels 0:10 reach into those of test, 4:30"),
        (["--clip", "1"], "clip at least 2"),
        (["--environments", "{Hopper-v5: a.hdf5}"], "environments procgen:GAME, not Hopper-v5"),
        (["--arms", "{a: {by: latent}}"], "`samples` go with latent labels"),
        (["--arms", "{a: {by: random, samples: 5}}"], "`samples` go with latent labels"),
        (["--arms", "{a: {by: 'true', sure: 0.5}}"], "`sure` with those of inverse models"),
        (["--arms", "{a: {by: inverse, sure: 0}}"], "`sure` lie in (0, 1]"),
        (["--out", "other", "--latent_actions", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_recipe_can_be_built_and_says_what_it_is() -> None:
    word = "recipes/studies/imitation.yaml"
    study, out = read_study(["-c", word, "--out", "reports/x"], Imitation, eval_imitation)
    assert out == Path("reports/x")
    assert {arm.by for arm in study.arms.values()} == {"true", "latent", "inverse", "random"}
    assert {arm.samples for arm in study.arms.values() if arm.by == "latent"} == {50, 100, 200}
    assert [agent.seeds for agent in study.learners.values()] == [5]
    assert isinstance(load_latent_actions(study.latent_actions), LatentActions)
    assert f"dreamloom eval imitation -c {word}" in recipe_paths()[word].read_text()


def test_actions_of_one_motion_are_one() -> None:
    merged = merged_actions(ACTION_NAMES, "coinrun")
    assert merged[:9].tolist() == list(range(9)), "directions stay apart"
    assert [ACTION_NAMES[i] for i in merged[9:]] == ["none"] * 6
    assert ACTION_NAMES[merged_actions(ACTION_NAMES, "starpilot")[9]] == "D", "which fires there"


def test_rows_with_a_frame_after_them_and_clips_stay_within_an_episode(frames: FrameBuffer) -> None:
    first = frames.episodes.first
    for stride in (1, 2):
        rows = followed(frames, stride)
        assert (first[rows + stride] == first[rows]).all()
        others = frames.rows[~torch.isin(frames.rows, rows)]
        ahead = (others + stride).clamp(max=len(first) - 1)
        assert ((first[ahead] != first[others]) | (others + stride >= len(first))).all()
    start = frames.rows[frames.rows == first[frames.rows]][:1]
    seen = clips(frames, start, range(-2, 3, 2))[0]
    assert torch.equal(seen[0], seen[1]), "the first frame repeats"
    assert torch.equal(seen[2], frames.stacked(start + 2)[0])


def latent(frames: FrameBuffer, model: LatentActions, seeds: list[int], arm: Arm, stride: int) -> Labelled:
    labels = inferred(frames, model, stride=stride, clip=2)
    return latent_labels(frames, labels, seeds, (model.actions, 15), stride=stride, arm=arm)


def test_latent_labels_are_what_the_model_infers_and_see_no_action_but_the_labelled(frames: FrameBuffer) -> None:
    model = tiny_model()
    told = latent(frames, model, [0, 1], Arm("latent", 200), stride=2)
    row = int(told.rows[0][7])
    pair = torch.stack([frames.stacked(torch.tensor([i]))[0] for i in (row, row + 2)])[None]
    assert int(told.labels[0, row]) == int(model.infer(pair.float() / 255))
    blind = FrameBuffer("fruitbot.hdf5")
    blind.episodes = blind.episodes._replace(actions=torch.zeros_like(blind.episodes.actions))
    again = latent(blind, model, [0, 1], Arm("latent", 200), stride=2)
    assert torch.equal(told.labels, again.labels)
    assert not torch.equal(told.table, again.table)
    assert not torch.equal(told.table[0], told.table[1]), "each seed has its own draw"


def test_dictionary() -> None:
    labels, actions = torch.tensor([0, 0, 0, 2]), torch.tensor([4, 4, 1, 3])
    drawn = dictionary(labels, actions, (3, 5), drawn=True)
    assert drawn[0].tolist() == pytest.approx([0, 1 / 3, 0, 0, 2 / 3])
    assert drawn[1].tolist() == pytest.approx([0, 0.25, 0, 0.25, 0.5]), "a label that was not seen stands for all"
    assert dictionary(labels, actions, (3, 5), drawn=False).argmax(1).tolist() == [4, 4, 3]


def test_labels_become_actions_by_the_table_of_their_seed() -> None:
    table = torch.stack([torch.eye(3), torch.eye(3).roll(1, 1)])
    rows = [torch.arange(3), torch.tensor([0])]
    told = Labelled(torch.tensor([[0, 1, 2], [2, 1, 0]]), rows, table)
    said = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert told.act(said, torch.Generator().manual_seed(0)).tolist() == [[0, 1, 2], [1, 2, 0]]
    assert told.right(torch.tensor([0, 0, 2])) == pytest.approx([2 / 3, 1.0])
    even = Labelled(told.labels, rows, torch.full((2, 3, 4), 0.25))
    acted = even.act(torch.zeros(2, 2000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.bincount(acted.flatten()).tolist() == pytest.approx([1000] * 4, abs=120)


def test_inverse_models_know_the_actions_of_some_episodes_alone(frames: FrameBuffer) -> None:
    known, other = labelled_episodes(frames, 0.3, 0)
    first = frames.episodes.first
    assert not torch.isin(first[known], first[other]).any()
    assert 0.3 <= len(known) / len(followed(frames, 1)) < 0.8
    settings = {"share": 0.3, "members": 2, "steps": 2, "batch": 8}
    said = inverse_said(frames, 15, [0], **settings)
    told = inverse_labels(frames, 15, [0], said, share=0.3, sure=1.0)
    assert torch.equal(told.labels[0, known], frames.episodes.actions[known]), "these are kept"
    hidden = FrameBuffer("fruitbot.hdf5")
    actions = hidden.episodes.actions.clone()
    actions[other] = 0
    hidden.episodes = hidden.episodes._replace(actions=actions)
    assert torch.equal(inverse_said(hidden, 15, [0], **settings)["labels"][0, other], told.labels[0, other])
    some = inverse_labels(frames, 15, [0], said, share=0.3, sure=0.25).rows[0]
    assert len(some) == len(known) + round(0.25 * len(other))
    left_out = other[~torch.isin(other, some)]
    assert said["variance"][0, some].max() <= said["variance"][0, left_out].min()


def test_an_inverse_model_of_many_steps_finds_actions_that_show() -> None:
    frames = FrameBuffer("fruitbot.hdf5")
    actions = frames.episodes.actions % 2
    bright = (200 * actions).to(torch.uint8)[:, None, None, None].expand(-1, 64, 64, 3).contiguous()
    frames.episodes = frames.episodes._replace(frames=bright, actions=actions)
    said = inverse_said(frames, 15, [0], share=0.3, members=2, steps=20, batch=16)
    told = inverse_labels(frames, 15, [0], said, share=0.3, sure=0.5)
    assert told.notes["accuracy"][0] > 0.9
    assert told.notes["accuracy_kept"][0] >= told.notes["accuracy"][0]


def test_agents_clone_the_labels_of_their_own_rows() -> None:
    frames = FrameBuffer("fruitbot.hdf5")
    labels = torch.stack([torch.zeros(len(frames.episodes.frames)), torch.ones(len(frames.episodes.frames))]).long()
    buffer = Relabelled(frames, labels, [frames.rows[:5], frames.rows[5:9]], 2)
    batch = buffer.sample(16, [torch.Generator().manual_seed(i) for i in range(2)])
    assert batch.actions.tolist() == [[0] * 16, [1] * 16]
    known = {tuple(frame.flatten().tolist()) for frame in frames.stacked(frames.rows[5:9])}
    assert {tuple(frame.flatten().tolist()) for frame in batch.observations[1]} <= known
    agent = BC(seeds=2, depth=0, lr=1e-2, vision=Vision(Nature(latent_size=8, channels=(4, 4, 4))))
    agent.prepare(buffer)
    train(agent, buffer, updates=20, batch_size=16, progress=False)
    assert agent.act(frames.stacked(frames.rows[:9]).expand(2, -1, -1, -1, -1)).tolist() == [[0] * 9, [1] * 9]


def test_a_policy_that_draws_does_so_by_its_probabilities(frames: FrameBuffer) -> None:
    count = len(frames.episodes.frames)
    halves = (torch.arange(count) % 2).expand(2, -1)
    buffer = Relabelled(frames, halves, [frames.rows[:1], frames.rows[1:2]], 2)  # 0 for the first seed, 1 for the second
    agent = BC(seeds=2, depth=0, drawn=True, vision=Vision(Nature(latent_size=8, channels=(4, 4, 4))))
    agent.prepare(buffer)
    seen = frames.stacked(frames.rows[:1]).expand(2, 400, -1, -1, -1)
    chances = agent.actor(agent.look(seen[:, :1])).exp()[:, 0, 1]
    said = agent.player(400)(seen, torch.zeros(2, 400), torch.arange(400))
    assert said.float().mean(1).tolist() == pytest.approx(chances.tolist(), abs=0.08)
    assert torch.equal(said, agent.player(400)(seen, torch.zeros(2, 400), torch.arange(400))), "the same draws again"
    assert len(agent.act(seen).unique(dim=1)[0]) == 1


@pytest.mark.gpu
def test_labels_on_a_gpu_are_those_of_the_cpu() -> None:
    model = tiny_model()
    arm = Arm("latent", 50)
    told = [
        latent(FrameBuffer("fruitbot.hdf5", device=device), model.to(device), [0], arm, stride=1) for device in ("cpu", "cuda")
    ]
    assert (told[0].labels == told[1].labels.cpu()).float().mean() > 0.99
    assert [len(rows) for rows in told[0].rows] == [len(rows) for rows in told[1].rows]
    few = true_labels(FrameBuffer("fruitbot.hdf5", device="cuda"), 15, [0], 20)
    assert (
        few.act(few.labels[:, few.rows[0]], torch.Generator("cuda").manual_seed(0)).tolist()
        == few.labels[:, few.rows[0]].tolist()
    )
