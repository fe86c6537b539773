"""DGRL's episodes: files laid out as its collector writes them, read and written exactly; and parts of a dataset."""

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamloom import cli
from dreamloom.datasets import atomic, dgrl
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.dgrl import SPLITS
from dreamloom.datasets.episodes import iter_episodes
from dreamloom.datasets.procgen import ACTION_NAMES
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.subset import subset
from dreamloom.datasets.transitions import load_transitions


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "fsync", lambda path: None)


def episode(steps, seed=0, terminal=True, size=8, dtype=np.uint8):
    """The arrays of an episode file."""
    random = np.random.default_rng(seed)
    return {
        "observations": random.integers(0, 256, (steps + 1, 3, size, size)).astype(dtype),
        "actions": random.integers(0, 15, (steps, 1)),
        "rewards": random.integers(0, 3, (steps, 1)).astype(np.float32),
        "dones": np.arange(steps) == (steps - 1 if terminal else -1),
    }


def write(folder, episodes, levels=None, suffix=".npz"):
    """As DGRL's collector does: an archive in memory, put into a file of any suffix."""
    folder.mkdir(parents=True)
    for number, arrays in enumerate(episodes):
        level = levels[number] if levels else number
        name = f"20230101T000000_{number:03d}_{np.size(arrays['actions'])}_{level}_{arrays['rewards'].sum():.2f}{suffix}"
        with io.BytesIO() as archive:
            np.savez_compressed(archive, **arrays)
            (folder / name).write_bytes(archive.getvalue())
    return folder


@pytest.mark.parametrize(("suffix", "dtype"), [(".npz", np.uint8), (".npy", np.uint8), (".npy", np.float32)])
def test_an_episode_is_its_steps_and_no_transition_crosses_it(tmp_path, suffix, dtype):
    parts = [episode(5, 1, dtype=dtype), episode(1, 2, dtype=dtype), episode(4, 3, dtype=dtype)]
    folder = write(tmp_path / "expert" / "coinrun", parts, levels=[7, 199, 250], suffix=suffix)
    with open_dataset(folder) as data:
        assert data.observations.shape == (10, 8, 8, 3)
        assert data.terminals[:].nonzero()[0].tolist() == [4, 5, 9]
        assert not data.timeouts[:].any()
        assert data.infos["level_seed"][:].tolist() == [7] * 5 + [199] + [250] * 4
        assert (data.attrs["game"], data.action_names) == ("coinrun", ACTION_NAMES)
        row = 0
        for part in parts:
            for step in range(len(part["actions"])):  # action i is taken at frame i
                np.testing.assert_array_equal(data.observations[row], part["observations"][step].transpose(1, 2, 0))
                assert (data.actions[row], data.rewards[row]) == (part["actions"][step, 0], part["rewards"][step, 0])
                assert data.infos["episode_return"][row] == part["rewards"].sum()
                row += 1
        found = load_transitions(data)
    # What followed a terminal row is not in the file: its last frame belongs to the next episode (Procgen resets itself).
    assert found.next_known.tolist() == [True] * 4 + [False, False] + [True] * 3 + [False]
    np.testing.assert_array_equal(found.next_observations[:4], found.observations[1:5])


def test_a_cut_episode_keeps_all_its_transitions(tmp_path):
    parts = [episode(3, 1, terminal=False), episode(2, 2)]
    data = open_dataset(write(tmp_path / "a", parts))
    assert data.infos["last_frame"][:].tolist() == [0, 0, 0, 1, 0, 0]
    assert data.timeouts[:].tolist() == [False] * 3 + [True] + [False] * 2
    found = load_transitions(data)
    np.testing.assert_array_equal(found.actions[:3], parts[0]["actions"][:, 0])
    np.testing.assert_array_equal(found.next_observations[2], parts[0]["observations"][3].transpose(1, 2, 0))


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 400)), min_size=1, max_size=5))
def test_written_and_read_again_is_the_same(tmp_path_factory, lengths):
    folder = tmp_path_factory.mktemp("dgrl")
    parts = [episode(steps, number, terminal) for number, (steps, terminal, _) in enumerate(lengths)]
    source = open_dataset(write(folder / "a", parts, levels=[level for *_, level in lengths]))
    assert save_dataset(source, f"dgrl:{folder / 'b'}") == sum(steps for steps, *_ in lengths)
    files = sorted((folder / "b").iterdir())
    for file, part, (steps, terminal, level) in zip(files, parts, lengths, strict=True):
        assert file.name.endswith(f"_{steps}_{level}_{part['rewards'].sum():.2f}.npz")
        with np.load(file, allow_pickle=False) as found:
            for name, array in part.items():
                if name == "observations" and terminal:  # the frame that is not known
                    np.testing.assert_array_equal(found[name], array[[*range(steps), steps - 1]])
                else:
                    np.testing.assert_array_equal(found[name], array)
                assert found[name].dtype == array.dtype
    again = open_dataset(folder / "b")
    for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
        np.testing.assert_array_equal(getattr(again, name)[:], getattr(source, name)[:])


def test_a_recording_becomes_episodes_and_a_recording_again(coinrun_file, tmp_path, capsys):
    folder, file = tmp_path / "episodes", tmp_path / "again.hdf5"
    assert cli.main(["data", "convert", str(coinrun_file), "--to", f"dgrl:{folder}"]) == 0
    assert cli.main(["data", "convert", str(folder), "--to", str(file)]) == 0
    expected, found = load_transitions(coinrun_file), load_transitions(file)
    for name, column in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), column)
    with open_dataset(coinrun_file) as before, open_dataset(file) as after:
        assert after.next_observations is None  # each frame once
        assert after.attrs["game"] == "coinrun"
        levels = {episode.level for episode in iter_episodes(before)}
        assert set(after.infos["level_seed"][:].tolist()) == levels
    assert cli.main(["data", str(folder)]) == 0
    assert "normalised score (coinrun: 0 is a return of 5, 100 of 10)" in capsys.readouterr().out
    assert (tmp_path / "episodes.png").is_file()


def test_frames_are_read_where_they_are_asked_for(tmp_path, monkeypatch):
    read = []
    original = dgrl.load
    monkeypatch.setattr(dgrl, "load", lambda path, *names: read.extend(names) or original(path, *names))
    data = open_dataset(write(tmp_path / "a", [episode(3, seed) for seed in range(20)]))
    assert read.count("observations") == 1  # whose shape holds for all
    _ = data.observations[[7, 8]]
    assert read.count("observations") == 2
    same = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(same.observations[[59, 3]], data.observations[[59, 3]])


def spoiled(arrays, **changes):
    return {**arrays, **changes}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (spoiled(episode(3), actions=np.array([{}] * 3, object)), "`actions` holds pickled objects, which are never loaded"),
        (
            spoiled(episode(3), rewards=np.zeros((4, 1))),
            "`rewards` is float64 (4, 1), expected one number for each of 3 actions",
        ),
        (spoiled(episode(3), dones=np.array([True, False, True])), "`dones` is set in step 0 of 3"),
        (
            spoiled(episode(3), observations=np.zeros((3, 3, 8, 8), np.uint8)),
            "`observations` is (3, 3, 8, 8), expected 4 frames",
        ),
        (spoiled(episode(3), observations=np.full((4, 3, 8, 8), 0.5)), "not all are whole numbers 0 to 255"),
        (spoiled(episode(3), observations=np.zeros((4, 9), np.uint8)), "`observations` is (4, 9), expected 4 frames"),
        (spoiled(episode(3), observations=np.zeros((4, 2, 9, 9), np.uint8)), "expected uint8 (T + 1, 3, h, w)"),
        (spoiled(episode(3), observations=np.full((4, 3, 8, 8), np.nan)), "not all are whole numbers 0 to 255"),
        (spoiled(episode(3), actions=np.int64(3)), "`actions` is a single int64"),
        ({k: v for k, v in episode(3).items() if k != "dones"}, "expected actions, rewards, dones"),
    ],
)
def test_a_malformed_episode_is_named(tmp_path, arrays, words):
    folder = write(tmp_path / "a", [arrays])
    pattern = ".*".join(re.escape(word) for word in words.split(".*"))
    with pytest.raises(DatasetError, match=pattern):
        _ = open_dataset(f"dgrl:{folder}").observations[:]


def test_cut_files_and_other_names(tmp_path):
    folder = write(tmp_path / "a", [episode(30)])
    file = next(folder.iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-300])
    with pytest.raises(DatasetError, match=r"not a whole \.npz archive"):
        open_dataset(f"dgrl:{folder}")
    file.unlink()
    (folder / "mine.npz").write_bytes(whole)
    with pytest.raises(DatasetError, match="does not end in _<level>_<return>"):
        open_dataset(folder)
    (folder / "mine.npz").unlink()
    with pytest.raises(DatasetError, match="no episode is in it"):
        open_dataset(f"dgrl:{folder}")
    np.save(folder / "a_1_2.0.npy", np.zeros(3))
    with pytest.raises(DatasetError, match=r"not a whole \.npz archive"):
        open_dataset(f"dgrl:{folder}")


def levels_of(data):
    return data.infos["level_seed"][data.episodes[0]].tolist()


@pytest.fixture
def many(tmp_path) -> Path:
    levels = [0, 150, 199, 200, 249, 250, 10_000, 5, 6, 7]
    return write(tmp_path / "many", [episode(4, seed) for seed in range(10)], levels=levels)


def test_the_published_split(many):
    assert levels_of(subset(many, levels="train")) == [0, 150, 199, 5, 6, 7]
    assert levels_of(subset(many, levels="validation")) == [200, 249]
    assert levels_of(subset(many, levels="test")) == [250, 10_000]
    assert levels_of(subset(many, levels="5:7")) == [5, 6]
    assert SPLITS["train"] == (0, 200)


def test_rows_are_drawn_by_seed_and_not_by_return(many):
    first, again, other = (subset(many, rows=15, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 16  # whole episodes
    assert levels_of(first) == levels_of(again) != levels_of(other)
    whole = open_dataset(many)
    order = [levels_of(whole).index(level) for level in levels_of(first)]
    assert order == sorted(order)
    np.testing.assert_array_equal(first.observations[4:8], whole.observations[4 * order[1] : 4 * order[1] + 4])
    same = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(same.actions[:], first.actions[:])
    assert first.attrs["subset"] == {"rows": 15, "seed": 0}
    seen = {level for seed in range(40) for level in levels_of(subset(many, rows=4, seed=seed))}
    assert len(seen) == 10


def test_the_best_returns_only_where_they_are_asked_for(many):
    whole = open_dataset(many)
    returns = whole.infos["episode_return"][whole.episodes[0]]
    best = subset(many, top_return=0.3)
    chosen = best.infos["episode_return"][best.episodes[0]]
    assert sorted(chosen, reverse=True) == sorted(returns, reverse=True)[:3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": "400:500"}, "no episode is left"),
        ({"levels": "mine"}, "expected LO:HI, or one of train, validation, test"),
        ({"rows": 0}, "--rows 0: must be at least 1"),
        ({"top_return": 1.5}, "--top-return 1.5: expected a share"),
    ],
)
def test_a_part_that_is_none(many, options, words):
    with pytest.raises(ValueError, match=words):
        subset(many, **options)


def test_a_part_is_converted(many, tmp_path):
    words = ["data", "convert", str(many), "--levels", "train", "--rows", "8", "--seed", "3", "--to"]
    assert cli.main([*words, str(tmp_path / "a.hdf5")]) == 0
    assert cli.main([*words, f"dgrl:{tmp_path / 'a'}"]) == 0
    with open_dataset(tmp_path / "a.hdf5") as file, open_dataset(tmp_path / "a") as folder:
        np.testing.assert_array_equal(file.observations[:], folder.observations[:])
        assert levels_of(file) == levels_of(folder)
        assert file.attrs["subset"] == {"levels": "train", "rows": 8, "seed": 3}


def test_targets_and_sources_that_do_not_fit(cheetah_file, many, tmp_path, capsys):
    assert cli.main(["data", "convert", str(cheetah_file), "--to", f"dgrl:{tmp_path / 'a'}"]) == 2
    assert "expected pixels" in capsys.readouterr().err
    assert cli.main(["data", "convert", str(many), "--to", f"dgrl:{many}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["data", "convert", str(many), "--to", f"vd4rl:{tmp_path / 'a.hdf5'}"]) == 2
    assert "V-D4RL holds continuous actions" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["many"]
