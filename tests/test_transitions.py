"""D4RL's rule: which rows of a file are transitions, and what followed them."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import count_transitions, iter_transitions, left_out, load_transitions
from dreamloom.datasets.types import Transitions


def write(path, terminals, timeouts=None, **changes):
    """A D4RL file whose observations are their own row numbers."""
    n = len(terminals)
    columns = {
        "observations": np.arange(n, dtype=np.float64)[:, None] * [1.0, -1.0],
        "actions": np.arange(n, dtype=np.float64)[:, None],
        "rewards": np.arange(n, dtype=np.float64),
        "terminals": terminals,
        "timeouts": timeouts,
        **changes,
    }
    attrs = columns.pop("attrs", {})
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        for name, array in columns.items():
            if array is not None:
                file[name] = array
    return path


def kept_by_d4rl(terminals, timeouts, limit=None):
    """The rows that D4RL's rule keeps, and all terminal ones, restated step by step: (row, row of the next observation)."""
    kept, step = [], 0
    for row in range(len(terminals)):
        last = timeouts[row] if timeouts is not None else limit is not None and step == limit - 1
        if terminals[row] or not (last or row == len(terminals) - 1):
            kept.append((row, row + 1))
        step = 0 if last or terminals[row] else step + 1
    return kept


flags = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


@settings(max_examples=40)
@given(flags, st.integers(1, 50), st.integers(0, 45))
def test_the_rows_are_those_of_d4rls_rule(tmp_path_factory, pairs, rows, limit):
    terminals, timeouts = (np.array([pair[i] for pair in pairs], bool) for i in (0, 1))
    data = open_dataset(write(tmp_path_factory.mktemp("rule") / "a.hdf5", terminals, timeouts))
    expected = kept_by_d4rl(terminals, timeouts)
    found = Transitions.concatenate(list(iter_transitions(data, rows)))
    assert count_transitions(data) == len(found) == len(expected)
    assert found.observations[:, 0].tolist() == found.actions[:, 0].tolist() == found.rewards.tolist()
    assert found.observations[:, 0].tolist() == [row for row, _ in expected]
    known = np.ones(len(found), bool) if found.next_known is None else found.next_known
    for i, (row, following) in enumerate(expected):
        # Of a terminal row D4RL shows the next episode.
        assert known[i] == (not terminals[row])
        assert found.next_observations[i, 0] == (row if terminals[row] else following)
    whole = load_transitions(data, limit=limit)
    assert len(whole) == min(limit, len(found))
    for name, column in vars(found).items():
        shown = getattr(whole, name)
        if column is not None and shown is not None:
            np.testing.assert_array_equal(shown, column[:limit])


@settings(max_examples=40)
@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
def test_without_timeouts_the_step_limit_ends_episodes(tmp_path_factory, ended, limit):
    path = write(tmp_path_factory.mktemp("limit") / "a.hdf5", np.array(ended, bool))
    found = load_transitions(open_dataset(path, max_episode_steps=limit))
    assert found.rewards.tolist() == [row for row, _ in kept_by_d4rl(ended, None, limit)]


def test_the_step_limit_is_the_callers_or_the_files_or_d4rls_own(tmp_path):
    terminals = np.zeros(2501, bool)
    timed_out = {
        name: np.flatnonzero(open_dataset(write(tmp_path / name, terminals, attrs=attrs), max_episode_steps=limit).timeouts[:])
        for name, attrs, limit in [
            ("a.hdf5", {}, None),
            ("b.hdf5", {}, 700),
            ("c.hdf5", {"max_episode_steps": 700}, None),
            ("d.hdf5", {"env": np.bytes_(b"Hopper-v5")}, None),
            ("hopper-medium-v0.hdf5", {}, None),
            ("hopper-medium-v1.hdf5", {"max_episode_steps": 700}, 2000),
        ]
    }
    assert {name: rows.tolist() for name, rows in timed_out.items()} == {
        "a.hdf5": [],
        "b.hdf5": [699, 1399, 2099],
        "c.hdf5": [699, 1399, 2099],
        "d.hdf5": [999, 1999],
        "hopper-medium-v0.hdf5": [999, 1999],
        "hopper-medium-v1.hdf5": [1999],
    }


@pytest.mark.parametrize("name", ["float terminals", "columns of one", "integers", "float32"])
def test_every_spelling_of_the_columns_reads_alike(tmp_path, name):
    terminals, timeouts = np.array([0, 0, 1, 0, 0, 0]), np.array([0, 0, 0, 0, 1, 0])
    spelled = {
        "float terminals": {"terminals": terminals * 1.0, "timeouts": timeouts * 1.0},
        "columns of one": {"terminals": terminals[:, None], "rewards": np.arange(6.0)[:, None]},
        "integers": {"terminals": terminals.astype(np.uint8), "rewards": np.arange(6)},
        "float32": {"actions": np.arange(6, dtype=np.float32)[:, None]},
    }[name]
    plain = load_transitions(write(tmp_path / "a.hdf5", terminals.astype(bool), timeouts.astype(bool)))
    found = load_transitions(write(tmp_path / "b.hdf5", **{"terminals": terminals, "timeouts": timeouts, **spelled}))
    for column, array in vars(plain).items():
        np.testing.assert_array_equal(getattr(found, column), array)
        assert getattr(found, column).dtype == array.dtype
    assert plain.observations.dtype == plain.actions.dtype == plain.rewards.dtype == np.float32
    assert plain.rewards.shape == (4,)
    assert plain.next_known.tolist() == [True, True, False, True]


def test_groups_and_attributes_of_d4rls_files(tmp_path):
    path = write(
        tmp_path / "a.hdf5",
        np.zeros(4, bool),
        np.zeros(4, bool),
        attrs={"note": np.bytes_(b"as bytes"), "shape": np.arange(3)},
        **{
            "infos/qpos": np.ones((4, 9)),
            "infos/action_log_probs": np.ones(4),
            "metadata/algorithm": np.bytes_(b"SAC"),
            "metadata/iteration": np.int64(7),
            "metadata/policy/fc0/weight": np.ones((3, 3)),
        },
    )
    with open_dataset(path) as data:
        assert data.attrs == {
            "note": "as bytes",
            "shape": [0, 1, 2],
            "metadata": {"algorithm": "SAC", "iteration": 7},
        }
        assert data.infos["qpos"].shape == (4, 9)
        assert len(load_transitions(data)) == 3


@pytest.mark.parametrize("timed_out", [False, True])
def test_a_terminal_row_stays_with_its_reward_also_where_it_timed_out_at_once_and_at_the_files_end(tmp_path, timed_out):
    ends = np.array([0, 0, 1, 0, 1], bool)
    path = write(tmp_path / "a.hdf5", ends, ends & timed_out, rewards=ends * 1.0)
    found = load_transitions(path)
    assert found.rewards.tolist() == [0, 0, 1, 0, 1]
    assert found.terminals.tolist() == ends.tolist()
    assert found.next_known.tolist() == (~ends).tolist()
    np.testing.assert_array_equal(found.next_observations[ends], found.observations[ends])


def test_rows_that_are_left_out_are_counted_with_the_reason(tmp_path):
    ends = np.zeros(7, bool)
    ends[3] = True
    timeouts = np.array([0, 1, 0, 1, 0, 1, 0], bool)
    said = []
    path = write(tmp_path / "a.hdf5", ends, timeouts)
    assert len(load_transitions(path, tell=said.append)) == 4
    reasons = "2 timed out and the file does not hold what followed, 1 is the last row, after which nothing follows"
    assert said == [f"{path}: left out 3 of 7 rows: {reasons}"]
    assert left_out(open_dataset(write(tmp_path / "b.hdf5", ends, timeouts, next_observations=np.zeros((7, 2))))) is None
    assert left_out(open_dataset(write(tmp_path / "c.hdf5", np.ones(3, bool), np.ones(3, bool)))) is None


def test_explicit_next_observations_keep_every_row(tmp_path):
    following = np.full((3, 2), 9.0)
    found = load_transitions(
        write(tmp_path / "a.hdf5", np.array([0, 1, 0], bool), np.array([1, 0, 0], bool), next_observations=following)
    )
    assert len(found) == 3
    assert found.next_known is None
    np.testing.assert_array_equal(found.next_observations, following)
    partly = load_transitions(
        write(tmp_path / "b.hdf5", np.zeros(3), next_observations=following, next_known=np.array([1.0, 0, 1]))
    )
    assert partly.next_known.tolist() == [True, False, True]


def test_unlabelled_video_holds_no_transitions(tmp_path):
    path = write(tmp_path / "a.hdf5", np.zeros(3, bool), np.zeros(3, bool), actions=None)
    with pytest.raises(DatasetError, match="no array `actions`"):
        load_transitions(path)


def test_discrete_actions_and_pixels_stay_what_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    changes = {"observations": pixels, "actions": np.arange(5, dtype=np.uint8)}
    found = load_transitions(write(tmp_path / "a.hdf5", np.zeros(5), np.zeros(5), **changes))
    assert (found.observations.dtype, found.actions.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(found.next_observations, pixels[1:])


def test_some_rows_and_several_parts():
    rows = np.arange(4)
    plain = Transitions(rows[:, None], rows, rows, rows[:, None] + 1, rows > 5, rows > 5)
    marked = Transitions(**{**vars(plain), "next_known": rows > 0})
    assert plain[rows > 1].actions.tolist() == plain[2:].actions.tolist() == plain[[2, 3]].actions.tolist() == [2, 3]
    assert marked[:2].next_known.tolist() == [False, True]
    assert Transitions.concatenate([plain, plain]).next_known is None
    assert Transitions.concatenate([plain[:1], marked]).next_known.tolist() == [True, False, True, True, True]
    with pytest.raises(ValueError, match="no transitions"):
        Transitions.concatenate([])
    with pytest.raises(ValueError, match="equal length"):
        Transitions(**{**vars(plain), "next_known": rows[:1]})
