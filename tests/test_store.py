import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dreamloom.datasets.clips import ClipSource
from dreamloom.datasets.lazy import as_lazy, joined, picked
from dreamloom.datasets.store import DatasetError, episode_bounds, open_dataset, write_attrs

ROWS = 5


def write(path, **changes):
    """A small right file, with arrays replaced, or left out where None is given."""
    columns = {
        "observations": np.zeros((ROWS, 8, 8, 3), np.uint8),
        "actions": np.arange(ROWS),
        "rewards": np.zeros(ROWS, np.float32),
        "terminals": np.array([0, 0, 1, 0, 0], bool),
        "timeouts": np.zeros(ROWS, bool),
        "infos/level_seed": np.arange(ROWS, dtype=np.int32),
        **changes,
    }
    with h5py.File(path, "w") as file:
        write_attrs(file, {"fps": 10.0, "action_names": ["left", "right"], "source": {"seed": 3}})
        for name, array in columns.items():
            if array is not None:
                file[name] = array
    return path


def test_a_whole_file_reads_back(tmp_path):
    with open_dataset(write(tmp_path / "a.hdf5")) as data:
        assert len(data) == ROWS
        assert (data.fps, data.action_names, data.attrs["source"]) == (10.0, ["left", "right"], {"seed": 3})
        assert data.infos["level_seed"][2] == 2
        starts, ends = data.episodes
        assert starts.tolist() == [0, 3]
        assert ends.tolist() == [3, 5]
        assert starts.dtype == ends.dtype == np.int64


def test_unlabelled_video_has_no_actions_and_no_rewards(tmp_path):
    data = open_dataset(write(tmp_path / "a.hdf5", actions=None, rewards=None))
    assert data.actions is None
    assert data.rewards is None


def test_a_pickled_dataset_opens_the_file_again(tmp_path):
    again = pickle.loads(pickle.dumps(open_dataset(write(tmp_path / "a.hdf5"))))
    assert again.actions[:].tolist() == list(range(ROWS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observations": None}, ["no array `observations`", "numbers (N, o)", "uint8 (N, h, w, 3)", "`rewards`"]),
        ({"observations": np.zeros((ROWS, 2, 2), np.float32)}, ["`observations` is float32 (5, 2, 2)", "uint8 (N, h, w, 3)"]),
        ({"observations": np.zeros((ROWS, 3, 8, 8), np.uint8)}, ["`observations` is uint8 (5, 3, 8, 8)"]),
        ({"observations": np.uint8(1)}, ["`observations` is uint8 ()"]),
        ({"observations": np.array([b"a"] * ROWS)}, ["`observations` is |S1 (5,)"]),
        ({"actions": np.zeros(ROWS, np.float32)}, ["`actions` is float32 (5,)", "integers (N,) or floats (N, a)"]),
        ({"actions": np.zeros((ROWS, 2), np.int64)}, ["`actions` is int64 (5, 2)"]),
        ({"actions": np.zeros(ROWS + 1, np.int64)}, ["`actions` has 6 rows, `observations` has 5"]),
        ({"rewards": None, "rewards/deep": np.zeros(ROWS)}, ["`rewards` is no array", "numbers (N,) or (N, 1)"]),
        ({"rewards": np.dtype("f4")}, ["`rewards` is no array"]),
        ({"actions": h5py.Empty("f4")}, ["`actions` holds no values (a null dataspace)"]),
        ({"actions": h5py.SoftLink("/nowhere")}, ["`actions` cannot be read"]),
        ({"observations": np.zeros((ROWS, 0))}, ["`observations` is float64 (5, 0), expected numbers (N, o)"]),
        ({"observations": np.zeros((ROWS, 0, 8, 3), np.uint8)}, ["`observations` is uint8 (5, 0, 8, 3)"]),
        ({"actions": np.zeros((ROWS, 0))}, ["`actions` is float64 (5, 0), expected integers (N,) or floats (N, a)"]),
        ({"infos/closing": np.zeros(ROWS)}, ["`infos/closing` is float64 (5,), expected uint8 (N,)"]),
        ({"rewards": np.zeros((ROWS, 2), np.float32)}, ["`rewards` is float32 (5, 2)", "numbers (N,) or (N, 1)"]),
        ({"terminals": None}, ["no array `terminals`", "bool (N,)"]),
        ({"timeouts": np.zeros((ROWS, 2), bool)}, ["`timeouts` is bool (5, 2)", "bool (N,)"]),
        (
            {"next_observations": np.zeros((ROWS, 4))},
            ["`next_observations` is float32 (5, 4)", "`observations` is uint8 (5, 8"],
        ),
        ({"infos/level_seed": np.zeros(2)}, ["`infos/level_seed` is float64 (2,), expected an array of 5 rows"]),
        ({"infos/level_seed": None, "infos": np.zeros(ROWS)}, ["`infos` is float64 (5,), expected a group"]),
    ],
)
def test_a_malformed_file_is_named_with_key_and_both_shapes(tmp_path, changes, words):
    path = write(tmp_path / "bad.hdf5", **changes)
    with pytest.raises(DatasetError) as error:
        open_dataset(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_flag_that_is_neither_0_nor_1_is_named_when_it_is_read(tmp_path):
    data = open_dataset(write(tmp_path / "bad.hdf5", terminals=np.array([0, 1, 0, 0.5, 1])))
    assert data.terminals[:3].tolist() == [False, True, False]
    with pytest.raises(DatasetError, match=r"bad.hdf5: `terminals` is 0.5 in row 3, expected 0 or 1"):
        data.terminals[:]


def test_frames_are_asked_for_by_name(tmp_path):
    path = write(tmp_path / "vectors.hdf5", observations=np.zeros((ROWS, 17)))
    with pytest.raises(DatasetError, match=r"vectors.hdf5: `observations` is float32 \(5, 17\), expected pixels uint8"):
        _ = open_dataset(path).frames
    with pytest.raises(DatasetError, match="expected pixels"):
        ClipSource(path, length=2)


@pytest.mark.parametrize("chunks", [None, 2])
@settings(max_examples=40)
@given(st.data())
def test_rows_are_picked_as_numpy_picks_them(tmp_path_factory, chunks, choice):
    values = np.arange(10 * 3, dtype=np.float32).reshape(10, 3)
    path = tmp_path_factory.mktemp("lazy") / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, chunks=None if chunks is None else (chunks, 3))
        parts = [as_lazy(file["a"]), as_lazy(values[4:]), as_lazy(values[:0])]
        lazy, whole = joined(parts), np.concatenate([values, values[4:]])
        number = st.integers(-16, 15)
        bounds = st.none() | st.integers(-20, 20)
        step = st.sampled_from([None, 1, 3, -1, -2])
        rows = choice.draw(
            number
            | st.builds(slice, bounds, bounds, step)
            | st.lists(number).map(lambda r: np.array(r, int))
            | arrays(bool, 16)
        )
        np.testing.assert_array_equal(lazy[rows], whole[rows])
        np.testing.assert_array_equal(lazy[rows, ..., 1], whole[rows, ..., 1])
        some = np.flatnonzero(choice.draw(arrays(bool, 16)))
        inner = choice.draw(st.builds(slice, bounds, bounds))
        np.testing.assert_array_equal(picked(lazy, some)[inner], whole[some][inner])


def test_files_that_are_no_hdf5_at_all(tmp_path):
    whole = write(tmp_path / "whole.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.hdf5").write_text("hello")
    (tmp_path / "empty.hdf5").touch()
    for name, word in {
        "cut.hdf5": "not a whole HDF5 file",
        "text.hdf5": "not a whole HDF5 file",
        "empty.hdf5": "not a whole HDF5 file",
        "absent.hdf5": "no such file",
        "": "is a folder",
    }.items():
        with pytest.raises(DatasetError, match=word):
            open_dataset(tmp_path / name)


def test_a_newer_format_is_refused(tmp_path):
    path = write(tmp_path / "new.hdf5")
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 2
    with pytest.raises(DatasetError, match="format_version 2; this version reads 1"):
        open_dataset(path)


@given(arrays(bool, st.integers(0, 60)))
def test_episodes_partition_the_rows_and_end_where_the_flags_say(flags):
    starts, ends = episode_bounds(flags)
    covered = [row for start, end in zip(starts, ends, strict=True) for row in range(start, end)]
    assert covered == list(range(len(flags)))
    assert (ends > starts).all()
    inside = np.ones(len(flags), bool)
    inside[ends - 1] = False
    assert not flags[inside].any()
    assert set(np.flatnonzero(flags) + 1) <= set(ends.tolist())
    assert len(ends) == flags[:-1].sum() + (len(flags) > 0)
