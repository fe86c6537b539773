"""The buffer of frames against a slow, plain reading of the same file: stacks, what followed, n steps, ends of all kinds."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamloom.agents.frames import FrameBuffer

GAMMA = 0.9


def write(
    path: Path, lengths: list[int], terminal: list[bool], *, discrete: bool = True, seed: int = 0, following: bool = False
):
    """Episodes of random frames; those that are not terminal time out. Level of episode i is 10 + i."""
    random, n = np.random.default_rng(seed), sum(lengths)
    last = np.cumsum(lengths) - 1
    ends = np.zeros(n, bool)
    ends[last] = terminal
    cut = np.zeros(n, bool)
    cut[last] = ~np.array(terminal)
    frames = random.integers(0, 256, (n, 4, 5, 3), np.uint8)
    with h5py.File(path, "w") as file:
        file["observations"] = frames
        file["actions"] = random.integers(0, 4, n) if discrete else random.uniform(-1, 1, (n, 2)).astype(np.float32)
        file["rewards"] = random.normal(size=n).astype(np.float32)
        file["terminals"], file["timeouts"] = ends, cut
        file["infos/level_seed"] = np.repeat(10 + np.arange(len(lengths)), lengths)
        if following:
            after = np.concatenate([frames[1:], frames[:1]])
            after[last] = random.integers(0, 256, (len(last), 4, 5, 3), np.uint8)
            file["next_observations"] = after
    return path


def plainly(path: Path, stack: int, n_step: int) -> list[tuple]:
    """All transitions, one by one: stack, action, reward, next stack, how much of the bootstrap is cut."""
    with h5py.File(path) as file:
        data = {name: file[name][:] for name in file if name != "infos"}
    found, start = [], 0
    for end in np.flatnonzero(data["terminals"] | data["timeouts"]) + 1:
        frames = list(data["observations"][start:end])
        over = bool(data["terminals"][end - 1])
        if "next_observations" in data and not over:
            frames.append(data["next_observations"][end - 1])
        steps = end - start if over or "next_observations" in data else end - start - 1
        for t in range(steps):
            k = min(n_step, steps - t)
            reward = sum(GAMMA**i * data["rewards"][start + t + i] for i in range(k))
            done = over and t + k == steps

            def seen(at: int, frames: list = frames) -> np.ndarray:
                rows = [frames[max(0, at - i)] for i in reversed(range(stack))]
                return np.concatenate(rows, -1).transpose(2, 0, 1)

            cut = 1.0 if done else 1 - GAMMA ** (k - 1)
            found.append((seen(t), data["actions"][start + t], reward, seen(t if done else t + k), cut))
        start = end
    return found


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    flags=st.lists(st.booleans(), min_size=5, max_size=5),
    stack=st.integers(1, 4),
    n_step=st.integers(1, 4),
    discrete=st.booleans(),
    following=st.booleans(),
)
def test_transitions_are_those_of_a_plain_reading(tmp_path_factory, lengths, flags, stack, n_step, discrete, following):
    path = tmp_path_factory.mktemp("frames") / "data.hdf5"
    write(path, lengths, flags[: len(lengths)], discrete=discrete, following=following)
    expected = plainly(path, stack, n_step)
    if not expected:
        with pytest.raises(ValueError, match="no transition"):
            FrameBuffer(path, stack=stack, n_step=n_step, gamma=GAMMA)
        return
    buffer = FrameBuffer(path, stack=stack, n_step=n_step, gamma=GAMMA)
    assert (len(buffer), buffer.discrete, buffer.shape) == (len(expected), discrete, (3 * stack, 4, 5))
    batch = buffer.take(buffer.rows[None])
    for row, values in enumerate(expected):
        for column, value in zip(batch[:5], values, strict=True):
            np.testing.assert_allclose(column[0, row].numpy(), value, rtol=1e-5, atol=1e-6)


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_batches_are_each_seeds_own(tmp_path):
    buffer = FrameBuffer(write(tmp_path / "data.hdf5", [9, 8], [True, False]), stack=2)
    both, alone = buffer.sample(7, streams(1, 2)), buffer.sample(7, streams(2))
    assert all(a[1].equal(b[0]) for a, b in zip(both[:5], alone[:5], strict=True))
    assert not both.observations[0].equal(both.observations[1])
    assert both.observations.dtype == torch.uint8
    assert both.plain is None


def test_levels_limits_and_several_files(tmp_path):
    one = write(tmp_path / "one.hdf5", [4, 5, 6], [True, True, False])
    two = write(tmp_path / "two.hdf5", [3, 3], [True, True], seed=1)
    assert len(FrameBuffer(one, choose={"levels": "11:13"})) == 5 + 5
    assert len(FrameBuffer(one, choose={"rows": 1, "seed": 3})) in (4, 5)
    both = FrameBuffer([one, two], choose={"levels": "10:11"}, stack=3)
    assert len(both) == 4 + 3
    expected = [row for file, n in ((one, 4), (two, 3)) for row in plainly(file, 3, 1)[:n]]
    seen = both.take(both.rows[None]).observations[0]
    assert all(np.array_equal(frames.numpy(), row[0]) for frames, row in zip(seen, expected, strict=True))
    with pytest.raises(ValueError, match="no episode is left"):
        FrameBuffer(one, choose={"levels": "5:6"})
    with pytest.raises(ValueError, match="expected LO:HI"):
        FrameBuffer(one, choose={"levels": "all"})
    with pytest.raises(ValueError, match="of one shape"):
        FrameBuffer([one, write(tmp_path / "three.hdf5", [3], [True], discrete=False)])


def test_a_frame_is_kept_once(tmp_path):
    buffer = FrameBuffer(write(tmp_path / "data.hdf5", [50, 50], [True, True]), stack=4)
    assert buffer.bytes_per_transition < 4 * 5 * 3 + 40


def test_rows_without_order_are_refused(tmp_path):
    path = write(tmp_path / "data.hdf5", [9], [True], following=True)
    with h5py.File(path, "a") as file:
        file["next_observations"][:] = file["next_observations"][:][::-1]
    with pytest.raises(ValueError, match="order of time"):
        FrameBuffer(path)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    flags=st.lists(st.booleans(), min_size=4, max_size=4),
    length=st.integers(1, 5),
)
def test_windows_are_those_of_a_plain_reading(tmp_path_factory, lengths, flags, length):
    path = tmp_path_factory.mktemp("frames") / "data.hdf5"
    write(path, lengths, [*flags[: len(lengths) - 1], True])
    buffer = FrameBuffer(path, stack=2)
    with h5py.File(path) as file:
        frames, actions, rewards = (file[name][:] for name in ("observations", "actions", "rewards"))
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    windows = buffer.ending(buffer.rows[None], length)
    for place, row in enumerate(buffer.rows.tolist()):
        for t in range(length):
            at = row - (length - 1 - t)
            assert bool(windows.real[0, place, t]) == (at >= starts[row])
            at = max(at, starts[row])
            assert windows.actions[0, place, t] == actions[at]
            assert windows.returns[0, place, t] == pytest.approx(rewards[at : ends[row]].sum(), abs=1e-4)
            stack = np.concatenate([frames[max(at - 1, starts[row])], frames[at]], -1).transpose(2, 0, 1)
            assert np.array_equal(windows.observations[0, place, t].numpy(), stack)
