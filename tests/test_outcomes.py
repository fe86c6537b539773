"""Heads for rewards and endings: they learn what is rare and stay calibrated, join any world, and travel in its bundle."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance import CHECKS, Case
from hypothesis import given
from hypothesis import strategies as st
from test_genie import genie
from test_imagined import write_walks
from torch import Tensor
from walk_world import SIDE, WalkWorld, drawn

import dreamloom
from dreamloom.cli import main
from dreamloom.datasets.clips import ClipSource
from dreamloom.nn.encoders import Impala
from dreamloom.train.outcomes import EveryRow, Labels, StepBatches
from dreamloom.worldmodels.bundle import load_world, save_bundle
from dreamloom.worldmodels.imagined import ImaginedVectorEnv
from dreamloom.worldmodels.outcomes import Judged, Outcomes, from_bytes, judged, load_outcomes, to_bytes, two_hot

RECIPE = "recipes/coinrun/outcomes.yaml"


def heads(frames: int = 2, **settings: Any) -> Outcomes:
    torch.manual_seed(0)
    return Outcomes(Impala((3 * frames, SIDE, SIDE), latent_size=16, channels=(4, 4, 4)), **settings)


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20))
def test_two_hot_means_what_was_earned(rewards: list[float]) -> None:
    values, earned = heads().values, torch.tensor(rewards)
    target = two_hot(earned, values)
    torch.testing.assert_close(target @ values, earned, atol=1e-4, rtol=1e-4)
    assert ((target > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(target.sum(-1), torch.ones(len(rewards)))


def test_bins_are_dense_around_nothing() -> None:
    values = heads(bins=9, limit=10.0).values
    assert (values[4], values[-1].round(decimals=4), values[0].round(decimals=4)) == (0, 10, -10)
    assert (values.diff()[4:].diff() > 0).all()
    assert two_hot(torch.tensor([99.0]), values).argmax() == 8
    assert (two_hot(torch.tensor([0.0]), values)[0, 4]) == 1


def seen(kinds: Tensor) -> Tensor:
    """Two frames each, (n, 2, 3, 8, 8) in [0, 1], that show the kind."""
    return drawn(kinds)[:, None].expand(-1, 2, -1, -1, -1).float() / 255


@pytest.mark.parametrize("rare", [None, 0.5])
def test_rare_outcomes_are_told_with_their_true_chance(rare: float | None) -> None:
    """Kind 0 never ends, kind 1 in 4% of the cases, kind 2 in 60%. Rows as they come, or rare ones oftener."""
    random = torch.Generator().manual_seed(0)
    kinds = (torch.rand(20_000, generator=random) < 0.03).long()
    kinds[torch.rand(20_000, generator=random) < 0.02] = 2
    ended = torch.rand(20_000, generator=random) < torch.tensor([0.0, 0.04, 0.6])[kinds]
    rewards = torch.where(ended, 10.0, 0.0)
    model = heads()
    model.balance(float(ended.float().mean()), float(ended.float().mean()))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        if rare is None:
            rows, weights = torch.randint(20_000, (256,), generator=random), torch.ones(256)
        else:
            often, seldom = torch.nonzero(ended).squeeze(1), torch.nonzero(~ended).squeeze(1)
            rows = torch.cat([part[torch.randint(len(part), (128,), generator=random)] for part in (often, seldom)])
            weights = torch.cat([torch.full((128,), len(part) / 20_000 / 0.5) for part in (often, seldom)])
        loss, _ = model.loss(seen(kinds[rows]), None, rewards[rows], ended[rows], weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        told = model(seen(torch.tensor([0, 1, 2])))
        chance, mean = told.ending.sigmoid(), model.mean_reward(told)
    truth = torch.tensor([0.0, 0.04, 0.6])
    assert (chance - truth).abs().max() < 0.15
    assert chance[0] < 0.01
    torch.testing.assert_close(mean, 10 * chance, atol=0.7, rtol=0.3)


def test_labels_add_up_to_the_next_frame(tmp_path: Path) -> None:
    path = write_walks(tmp_path / "walks.hdf5")
    one, two = Labels(path, 1), Labels(path, 2)
    assert one.rewards.nonzero()[0].tolist() == [7, 16]
    assert one.terminals.nonzero()[0].tolist() == [7, 13, 16]
    assert two.rewards.nonzero()[0].tolist() == [6, 7, 15, 16]
    assert two.terminals.nonzero()[0].tolist() == [6, 7, 12, 13, 15, 16]
    assert two.rare.tolist() == two.terminals.tolist()


def test_rare_steps_are_drawn_often_at_their_weight(tmp_path: Path) -> None:
    path = write_walks(tmp_path / "walks.hdf5")
    source = ClipSource(path, length=2)
    kept: dict[str, Any] = {"batch_size": 8, "rare": 0.5, "seed": 0}
    whole = StepBatches(source, Labels(path, 1), rank=0, world_size=1, **kept)
    assert whole.rows.tolist() == [*range(1, 8), *range(9, 14), 15, 16], "each has a frame before it"
    step = whole[3]
    assert step.frames.shape == (8, 2, 3, SIDE, SIDE)
    assert int(step.terminals.sum()) == 4
    assert step.weights[step.terminals].unique().tolist() == pytest.approx([3 / 14 * 2])
    assert float(step.weights.mean()) == pytest.approx(1.0)
    parts = [StepBatches(source, Labels(path, 1), rank=i, world_size=2, **kept | {"batch_size": 4})[3] for i in range(2)]
    assert torch.equal(torch.stack([part.frames for part in parts], 1).flatten(0, 1), step.frames)
    every = EveryRow(whole, 100)
    assert torch.cat([every[i].rewards for i in range(2)]).tolist() == [0.0] * 6 + [1.0] + [0.0] * 6 + [1.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads that learned from recorded walks where a walk ends, by the command of the recipe."""
    folder = tmp_path_factory.mktemp("fit")
    write_walks(folder / "walks.hdf5", lengths=(8,) * 12)
    words = [
        *("fit", "-c", RECIPE, "--data.path", str(folder / "walks.hdf5"), "--data.stride", "1", "--data.residence", "ram"),
        *("--model.model.init_args.encoder.init_args.shape", f"[6, {SIDE}, {SIDE}]", "--data.batch_size", "16"),
        *("--trainer.max_steps", "80", "--data.steps_per_epoch", "80", "--model.warmup_steps", "5"),
        *("--model.model.init_args.bins", "5", "--model.model.init_args.limit", "3.0"),
        *("--model.optimizer.init_args.lr", "0.01", "--trainer.default_root_dir", str(folder / "runs")),
        *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    ]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(words) == 0
    finally:
        os.chdir(before)
    return next(folder.glob("**/last.ckpt"))


def test_the_recipe_learns_where_walks_end(trained: Path) -> None:
    model = load_outcomes(trained)
    places = torch.arange(1, SIDE)
    with torch.no_grad():
        told = model(torch.stack([drawn(places - 1), drawn(places)], 1).float() / 255)
    assert told.ending.sigmoid()[-1] > 0.8
    assert told.ending.sigmoid()[:-1].max() < 0.2
    assert model.mean_reward(told)[-1] == pytest.approx(2 / 12, abs=0.12), "two of twelve walks are rewarded"


def test_a_world_with_outcomes_is_a_world(trained: Path) -> None:
    case = Case(lambda: judged(WalkWorld(rewards=False), trained), rounding=0)
    for check in CHECKS:
        if check != "cached_equals_plain":
            CHECKS[check](case)


def test_an_environment_pays_and_ends_as_the_outcomes_tell(trained: Path) -> None:
    env = ImaginedVectorEnv(8, world=WalkWorld(rewards=False, slips=0.0), outcomes=trained, horizon=20)
    env.reset(seed=0)
    ended, paid = np.zeros(8, bool), np.zeros(8)
    for _ in range(9):
        _, rewards, terminated, _, _ = env.step(np.ones(8, int))
        paid += rewards * ~ended
        ended |= terminated
    assert ended.all()
    assert paid == pytest.approx(np.full(8, 2 / 12), abs=0.12)


def test_rewards_may_come_from_elsewhere() -> None:
    def moved_right(frames: Tensor) -> Tensor:
        return (frames[:, 1] - frames[:, 0]).flatten(1).any(1).float()

    env = ImaginedVectorEnv(2, world=WalkWorld(slips=0.0), rewards=moved_right)
    env.reset(seed=0)
    env.state = env.world.reset(drawn(torch.tensor([0, 3]))[:, None])
    assert env.step(np.array([0, 1]))[1].tolist() == [0.0, 1.0]


def test_bundles_keep_outcomes(trained: Path, tmp_path: Path) -> None:
    world, model = genie(prompts=torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)), load_outcomes(trained)
    save_bundle(world, tmp_path / "with", outcomes=model)
    save_bundle(world, tmp_path / "without")
    kept, plain = load_world(tmp_path / "with"), dreamloom.load_world(tmp_path / "without")
    assert isinstance(kept, Judged)
    assert kept.name == plain.name
    given = load_world(tmp_path / "without", outcomes=trained)
    for loaded in (kept, given):
        _, outcome = loaded.step(loaded.reset(loaded.prompts), 1, torch.Generator().manual_seed(0))
        frame = plain.step(plain.reset(plain.prompts), 1, torch.Generator().manual_seed(0))[1].frame
        assert torch.equal(outcome.frame, frame), "heads do not change what is seen"
        assert (outcome.reward.dtype, outcome.terminal.dtype) == (torch.float32, torch.bool)
    copy = from_bytes(to_bytes(model))
    with torch.no_grad():
        assert torch.equal(copy(seen(torch.arange(8))).rewards, model(seen(torch.arange(8))).rewards)


def test_heads_of_other_actions_are_not_bundled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained on"):
        save_bundle(genie(), tmp_path / "world", outcomes=heads(actions=5))
    assert not (tmp_path / "world").exists()


def test_what_does_not_fit_is_told(trained: Path) -> None:
    with pytest.raises(ValueError, match="stacks"):
        judged(WalkWorld(), Outcomes(Impala((6, 16, 16))))
    with pytest.raises(ValueError, match="actions of size 5"):
        judged(WalkWorld(), heads(actions=5))
    with pytest.raises(ValueError, match="odd number of bins"):
        heads(bins=4)
    with pytest.raises(ValueError, match="depend on actions"):
        heads(actions=2)(seen(torch.tensor([0])))


def test_heads_may_look_at_actions() -> None:
    model = heads(actions=2)
    told = model(seen(torch.tensor([0, 0])), torch.tensor([0, 1]))
    told.ending.sum().backward()
    assert model.head.weight.grad is not None
    world = judged(WalkWorld(slips=0.0), model)
    world.step(world.reset(world.prompts[:2]), 1, torch.Generator().manual_seed(0))
