import shutil
import tracemalloc

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from some_rows import rows

from dreamloom import cli
from dreamloom.datasets.contact_sheet import contact_sheet
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.describe import describe
from dreamloom.datasets.lazy import LazyArray, as_lazy
from dreamloom.datasets.recorder import Column
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.summary import summarize
from dreamloom.datasets.types import Transitions
from dreamloom.datasets.writer import EpisodeWriter


def test_a_recording_is_told_in_full(coinrun_file, tmp_path, capsys):
    path = tmp_path / "a.hdf5"
    shutil.copy(coinrun_file, path)
    describe(path)
    told = " ".join(capsys.readouterr().out.split())
    data = open_dataset(path)
    starts, ends = data.episodes
    for fact in [
        "400 rows",
        "15 frames/s",
        "observations uint8 (400, 64, 64, 3)",
        "infos/level_seed int32 (400,)",
        f"{len(starts)} episodes: {data.terminals[:].sum()} terminal, {data.timeouts[:].sum()} timed out or cut",
        f"max {(ends - starts).max()}",
        f"7 right {(data.actions[:] == 7).mean():.2%}",
        f"{len(np.unique(data.infos['level_seed'][:]))} levels",
        "game: coinrun",
        "source.levels: 0:10",
    ]:
        assert fact in told
    with Image.open(tmp_path / "a.png") as sheet:
        sheet.load()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.hdf5", "a.png"]


def write(path, lengths, **columns):
    columns = {"observations": Column(np.uint8, (8, 8, 3)), **columns}
    with EpisodeWriter(path, columns, {"fps": 5.0}) as writer:
        for episode, length in enumerate(lengths):
            for row in range(length):
                actions = {"actions": np.array([episode, row], np.float32)} if "actions" in columns else {}
                writer.append(observations=np.full((8, 8, 3), 20 * episode + row), **actions)
            writer.end_episode()
    return path


def test_the_sheet_shows_episodes_in_time_order(tmp_path):
    sheet = np.asarray(contact_sheet(open_dataset(write(tmp_path / "a.hdf5", [12, 3, 12]))))
    # 96-pixel tiles with gaps of 2, under captions of 16
    shown = [[sheet[line * 114 + 60, 2 + column * 98 + 48].tolist() for column in range(12)] for line in range(3)]
    assert shown[0] == [[i] * 3 for i in range(12)]
    assert shown[1][:3] == [[20 + i] * 3 for i in range(3)]
    assert shown[2] == [[40 + i] * 3 for i in range(12)]


@pytest.mark.parametrize("lengths", [[], [1], [2] * 50])
def test_files_of_any_size_can_be_described(tmp_path, lengths, capsys):
    describe(write(tmp_path / "a.hdf5", lengths), out=tmp_path / "sheets" / "b.png")
    told = capsys.readouterr().out
    assert f"{sum(lengths)} rows" in told
    assert "unlabelled video" in told
    assert (tmp_path / "sheets" / "b.png").exists() == bool(lengths)


def test_continuous_actions_are_told_by_dimension(tmp_path, capsys):
    describe(write(tmp_path / "a.hdf5", [3, 3], actions=Column(np.float32, (2,))))
    assert "dimension 1: min 0, quarter 0.25, half 1, three quarters 1.75, max 2" in capsys.readouterr().out


def recording(lengths, seed=0):
    """Episodes that end in turn by a terminal and by a timeout; every reward is 1."""
    parts = []
    for number, length in enumerate(lengths):
        walk = np.random.default_rng(seed + number).normal(size=(length + 1, 3)).cumsum(axis=0).astype(np.float32)
        last = np.arange(length) == length - 1
        parts.append(
            Transitions(
                walk[:-1],
                walk[:-1, :2],
                np.ones(length, np.float32),
                walk[1:],
                last & (number % 2 == 0),
                last & (number % 2 == 1),
            )
        )
    return Transitions.concatenate(parts)


@pytest.mark.parametrize("name", ["a.hdf5", "a.npz", "a"])
def test_a_recording_of_vectors_is_told_with_returns_and_scores(tmp_path, capsys, name):
    save_dataset(recording([40, 20, 60]), tmp_path / name, attrs={"env": "HalfCheetah-v5"})
    assert cli.main(["data", str(tmp_path / name)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for fact in [
        "120 rows",
        "observations float32 (120, 3)",
        "3 episodes: 2 terminal, 1 timed out or cut",
        "rows an episode: min 20, quarter 30, half 40, three quarters 50, max 60",
        "120 transitions",
        "100.00% of the rows have a reward",
        "return of an episode: min 20, quarter 30, half 40, three quarters 50, max 60, mean 40",
        "normalised score (HalfCheetah-v5: 0 is a return of -280.179, 100 of 12135): mean 2.6, max 2.7",
        "observations dimension 0: min",
        "env: HalfCheetah-v5",
    ]:
        assert fact in told
    with Image.open(tmp_path / "a.png") as shown:
        assert shown.width > 1000


def test_scores_with_constants_of_ones_own(tmp_path, capsys):
    save_dataset(recording([40, 20]), tmp_path / "a.hdf5", attrs={"env": "Mine-v0"})
    describe(tmp_path / "a.hdf5")
    assert "normalised" not in capsys.readouterr().out
    assert cli.main(["data", str(tmp_path / "a.hdf5"), "--constants", "[20, 120]"]) == 0
    assert "normalised score (Mine-v0: 0 is a return of 20, 100 of 120): mean 10.0, max 20.0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.hdf5", "a"])
def test_rows_that_do_not_follow_one_another_have_no_episodes(tmp_path, capsys, name):
    data = rows(200)
    save_dataset(data, tmp_path / name, attrs={"synthetic": True})
    describe(tmp_path / name, out=tmp_path / "b.png")
    told = capsys.readouterr().out
    terminals = int(data.terminals.sum())
    assert f"none: rows do not follow one another; {terminals} are terminal ({terminals / 200:.2%})" in told
    assert "return of an episode" not in told
    assert (tmp_path / "b.png").exists()


def test_transitions_without_what_followed_are_counted(tmp_path, capsys):
    data = recording([5, 5, 5])
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = getattr(data, name)
    describe(tmp_path / "a.hdf5")
    # Rows 4 and 14 are terminal, row 9 timed out; row 14 is the last.
    told = capsys.readouterr().out
    assert "14 transitions, 2 of them (terminal) without what followed" in told
    assert "left out 1 of 15 rows: 1 timed out and the file does not hold what followed" in told
    assert cli.main(["data", "convert", str(tmp_path / "a.hdf5"), "--to", str(tmp_path / "b.npz")]) == 0
    assert "left out 1 of 15 rows: 1 timed out and the file does not hold what followed" in capsys.readouterr().out


def test_discrete_actions_and_values_that_are_not_finite(tmp_path, capsys):
    data = recording([30, 30])
    data.observations[7, 1] = np.nan
    save_dataset(Transitions(**{**vars(data), "actions": np.arange(60) % 3}), tmp_path / "a.npz")
    describe(tmp_path / "a.npz")
    told = capsys.readouterr().out
    assert "1 values are not finite" in told
    assert "33.33%  ####" in told


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 9), st.sampled_from([0.0, 1e6]))
def test_the_summary_is_that_of_the_whole_array(n, block, seed, offset):
    values = np.random.default_rng(seed).normal(size=(n, 2)) + offset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamloom.datasets.summary._ROWS", block)
        patch.setattr("dreamloom.datasets.summary._SAMPLE", 20)
        found = summarize(as_lazy(values))
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, values.std(axis=0), rtol=1e-6, atol=1e-6)
    assert (found.low == values.min(axis=0)).all()
    assert (found.high == values.max(axis=0)).all()
    np.testing.assert_array_equal(found.sample, values[:: max(1, n // 20)])


def broken_rows():
    data = recording([30, 30])
    data.observations[7, 1], data.observations[8, 1], data.observations[9, 0] = np.nan, np.inf, -np.inf
    data.next_observations[7, 1] = np.nan
    data.observations[:, 2] = np.nan
    data.rewards[3] = np.nan
    return data


@pytest.mark.filterwarnings("error")
def test_numbers_that_are_not_finite_are_counted_by_column_without_warnings(tmp_path, capsys):
    save_dataset(broken_rows(), tmp_path / "a.hdf5")
    assert cli.main(["data", str(tmp_path / "a.hdf5"), "--out", str(tmp_path / "b.png")]) == 0
    told = capsys.readouterr()
    assert "not finite\n  observations 61 NaN and 2 infinite, rewards 1 NaN, next_observations 1 NaN\n" in told.out
    assert "dimension 2: 60 values are not finite\n" in told.out
    assert "return of an episode" not in told.out
    with Image.open(tmp_path / "b.png") as shown:
        assert shown.width > 1000


def test_a_file_that_cannot_be_read_whole_gets_no_picture(tmp_path, capsys):
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
        file.create_dataset("observations", data=pixels, chunks=(1, 8, 8, 3), fletcher32=True)
        file["terminals"] = np.zeros(40, bool)
        place = file["observations"].id.get_chunk_info(39).byte_offset
    whole = bytearray(path.read_bytes())
    whole[place + 3] ^= 255
    path.write_bytes(whole)
    assert cli.main(["data", str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{path}: `observations` cannot be read" in told.err
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]


def test_a_read_only_folder_gets_no_picture_unless_it_goes_elsewhere(tmp_path, capsys):
    folder = tmp_path / "there"
    folder.mkdir()
    write(folder / "a.hdf5", [3])
    folder.chmod(0o555)
    try:
        describe(folder / "a.hdf5")
        assert f"none: {folder} is read-only; --out FILE.png draws it elsewhere" in capsys.readouterr().out
        assert [p.name for p in folder.iterdir()] == ["a.hdf5"]
        describe(folder / "a.hdf5", out=tmp_path / "a.png")
        assert (tmp_path / "a.png").exists()
    finally:
        folder.chmod(0o755)


def test_what_is_passed_over_is_listed(tmp_path, capsys):
    with h5py.File(write(tmp_path / "a.hdf5", [21]), "a") as file:
        file["infos/goal"], file["infos/seed"], file["infos/deep/er"] = np.zeros((7, 2)), np.int64(3), np.zeros(21)
        file["infos/qpos"] = np.arange(21)
        file["metadata/policy/weight"], file["metadata/algorithm"] = np.zeros((4, 4)), "SAC\x1b[31m"
    describe(tmp_path / "a.hdf5")
    told = capsys.readouterr().out
    for line in [
        "infos/goal: is float64 (7, 2), expected an array of 21 rows",
        "infos/seed: is int64 (), expected an array of 21 rows",
        "infos/deep: is a group, expected an array of 21 rows",
        "metadata.algorithm: SAC?[31m",
        "infos/qpos",
    ]:
        assert line in told
    assert open_dataset(tmp_path / "a.hdf5").infos["qpos"][:].tolist() == list(range(21))


def test_statistics_hold_little_in_memory_however_much_there_is():
    made = LazyArray((2**11, 2**14), np.float32, lambda start, stop: np.ones((stop - start, 2**14), np.float32))
    tracemalloc.start()
    try:
        found = summarize(made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (found.mean == 1).all()
    assert made.nbytes == 2**27
    assert found.sample.nbytes == 2**26
    assert peak < 2**28  # a sample of 64 MB, twice while it is put together, and a block of 16 MB with its squares
