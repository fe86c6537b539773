"""NaN and infinite numbers: counted by column and refused by whoever trains, or left out where that is asked for."""

import dataclasses

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from some_rows import rows

from dreamloom.agents.bc import BC
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.iql import IQL
from dreamloom.agents.td3_bc import TD3BC
from dreamloom.agents.training import train
from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.finite import broken_columns, finite_episodes
from dreamloom.datasets.transitions import load_transitions
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.nn.finite import LossGuard, NonFiniteLoss
from dreamloom.train.outcomes import Labels


def broken(**at):
    """Twenty rows, some of whose numbers are not finite: column -> {(row, place): value}."""
    data = rows(20)
    for name, values in at.items():
        for place, value in values.items():
            getattr(data, name)[place] = value
    return data


def test_counts_are_of_rows_by_column():
    data = broken(observations={(3, 1): np.nan, (4, 1): np.inf, (4, 0): -np.inf}, rewards={7: np.inf})
    found, counts = broken_columns({"observations": data.observations, "rewards": data.rewards, "none": None})
    assert np.flatnonzero(found).tolist() == [3, 4, 7]
    assert counts == {"observations[0]": 1, "observations[1]": 2, "rewards": 1}


@pytest.mark.parametrize("kind", [BC, TD3BC, IQL])
@pytest.mark.parametrize(
    ("at", "told"),
    [
        ({"rewards": {2: np.nan, 9: np.inf}}, r"2 of 20 rows hold NaN or infinite numbers \(rewards 2\)"),
        ({"observations": {(2, 1): np.nan}}, r"1 of 20 rows hold NaN or infinite numbers \(observations\[1\] 1\)"),
        ({"actions": {(2, 0): -np.inf}}, r"1 of 20 rows hold NaN or infinite numbers \(actions\[0\] 1\)"),
        ({"next_observations": {(2, 0): np.nan}}, r"1 of 20 rows .* \(next_observations\[0\] 1\)"),
    ],
)
def test_learners_and_upsamplers_refuse_rows_that_are_not_finite(kind, at, told):
    data = broken(**at)
    for refuses in (kind(width=8).prepare, lambda part: Buffer([part]), lambda part: Upsampler(width=8).fit(part, steps=1)):
        with pytest.raises(ValueError, match=told):
            refuses(data)


def test_rows_are_dropped_aloud_where_that_is_asked_for(tmp_path):
    data, path, said = broken(rewards={2: np.nan}, next_observations={(5, 0): np.inf}), tmp_path / "a.npz", []
    np.savez(path, **{name: column for name, column in vars(data).items() if column is not None})
    with pytest.raises(ValueError, match=r"a\.npz: 2 of 20 rows .*rewards 1, .*\); mend them, or .*--data.nonfinite drop"):
        load_transitions(path, nonfinite="refuse")
    found = load_transitions(path, nonfinite="drop", tell=said.append)
    np.testing.assert_array_equal(found.rewards, np.delete(data.rewards, [2, 5]))
    (line,) = said
    assert "2 of 20 rows hold NaN or infinite numbers (rewards 1, next_observations[0] 1)" in line


@given(st.lists(st.sampled_from("rrrrbe"), min_size=1, max_size=40))
def test_episodes_are_cut_at_rows_that_are_not_finite(kinds):
    """r: a row, b: a broken one, e: the last row of an episode."""
    ends = np.unique([*(i + 1 for i, kind in enumerate(kinds) if kind == "e"), len(kinds)])
    bounds = np.append(0, ends[:-1]), ends
    rewards = np.where(np.array(kinds) == "b", np.nan, 1.0)
    expected = [list(range(a, b)) for a, b in zip(*bounds, strict=True)]
    expected = [run for whole in expected for run in runs_without(whole, rewards)]
    if not expected:
        with pytest.raises(ValueError, match="none is left"):
            finite_episodes(bounds, {"rewards": rewards}, "a", "drop")
        return
    (starts, stops), said = finite_episodes(bounds, {"rewards": rewards}, "a", "drop")
    assert [list(range(a, b)) for a, b in zip(starts, stops, strict=True)] == expected
    assert (said is not None) == ("b" in kinds)


def runs_without(whole, rewards):
    runs = [[]]
    for row in whole:
        runs = [*runs, []] if np.isnan(rewards[row]) else [*runs[:-1], [*runs[-1], row]]
    return [run for run in runs if run]


@pytest.fixture
def pictures(tmp_path):
    """Two episodes of six rows; the reward of row 2 is NaN, that of every other is its number. Row 5 is terminal."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"] = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
        file["actions"] = np.arange(12) % 3
        file["rewards"] = np.where(np.arange(12) == 2, np.nan, np.arange(12))
        file["terminals"], file["timeouts"] = np.arange(12) == 5, np.arange(12) == 11
    return tmp_path / "a.hdf5"


def test_frames_and_clips_refuse_or_leave_out(pictures):
    for refuses in (FrameBuffer, lambda path: ClipSource(path, length=2)):
        with pytest.raises(ValueError, match=r"1 of 12 rows hold NaN or infinite numbers \(rewards 1\); mend"):
            refuses(pictures)
    said = []
    buffer = FrameBuffer(pictures, nonfinite="drop", tell=said.append)
    batch = buffer.take(buffer.rows[None])
    assert batch.rewards.tolist() == [[0, 3, 4, 5, 6, 7, 8, 9, 10]]
    assert batch.next_observations[0, :, 0, 0, 0].tolist()[:3] == [1, 4, 5]
    assert any("left out rows, and cut episodes there" in line for line in said)
    source = ClipSource(pictures, length=2, nonfinite="drop")
    starts = {int(source.rows(0, step, 1)[0, 0]) for step in range(200)}
    assert starts == {0, 3, 4, 6, 7, 8, 9, 10}
    labels = Labels(pictures, 2, source.episodes[1])
    assert labels.rewards[[0, 1, 3, 4, 5, 10, 11]].tolist() == [1, 1, 7, 9, 5, 21, 11]


def test_a_loss_that_is_not_finite_stops_training_at_its_step():
    guard = LossGuard("update")
    guard.see(1, [torch.ones(2)])
    with pytest.raises(NonFiniteLoss, match="the loss of update 2 is not finite"):
        guard.see(2, [torch.zeros(()), torch.tensor([1.0, torch.inf])])
    data = rows(20)
    agent = BC(width=8)
    agent.prepare(data)
    buffer = Buffer([dataclasses.replace(data, actions=np.zeros_like(data.actions))])
    with torch.no_grad():
        next(agent.actor.parameters()).fill_(torch.nan)
    agent.updates = 4  # so that its weights are not drawn again
    with pytest.raises(NonFiniteLoss, match="the loss of update 5 is not finite"):
        train(agent, buffer, updates=3, batch_size=4, progress=False)
