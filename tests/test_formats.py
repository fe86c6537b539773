"""Formats of transitions: folders of shards, archives of SynthER, D4RL's HDF5, and the way from one to another."""

import os
import pickle
import shlex
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from some_rows import recordings, rows, same

from dreamloom import cli
from dreamloom.datasets import atomic, convert
from dreamloom.datasets.convert import save_dataset
from dreamloom.datasets.runs import iter_runs
from dreamloom.datasets.shards import shard_path, write_index, write_shard
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import count_transitions, iter_transitions, load_transitions
from dreamloom.datasets.types import Transitions


@pytest.fixture(autouse=True, scope="module")
def no_wait_for_the_disk():
    """Hundreds of small files would wait for a busy disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "fsync", lambda path: None)
        yield


def folder_of(path, parts, **attrs):
    path.mkdir()
    manifests = []
    for number, part in enumerate(parts):
        write_shard(path, number, part, {})
        manifests.append({"file": shard_path(path, number).name, "rows": len(part), "sha256": ""})
        manifests[-1]["bytes"] = shard_path(path, number).stat().st_size
    write_index(path, manifests, attrs)
    return path


def test_a_folder_of_shards_reads_as_one_dataset(tmp_path):
    parts = [rows(5), rows(0), rows(300, 1), rows(1, 2)]
    with open_dataset(folder_of(tmp_path / "shards", parts, synthetic=True)) as data:
        assert data.attrs == {"synthetic": True}
        whole = Transitions.concatenate(parts)
        same(load_transitions(data), whole)
        same(Transitions.concatenate(list(iter_transitions(data, 7))), whole)
        assert count_transitions(data) == 306
        np.testing.assert_array_equal(data.observations[[304, 2, 305]], whole.observations[[304, 2, 305]])
        same(load_transitions(pickle.loads(pickle.dumps(data))), whole)


def test_more_shards_than_a_process_may_open(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = folder_of(tmp_path / "shards", [rows(1, i) for i in range(11)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 11, hard))
    try:
        assert len(load_transitions(folder)) == 11
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_shards_that_do_not_fit_together_or_are_not_all_there(tmp_path):
    folder = folder_of(tmp_path / "shards", [rows(5), rows(5, o=4)])
    with pytest.raises(DatasetError, match=r"shard-00001.hdf5: holds .*\(N, 4\).* expected as in shard-00000.hdf5"):
        open_dataset(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DatasetError, match="no index"):
        open_dataset(folder)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("terminals", [np.bool_, np.float32])
def test_an_archive_as_synther_writes_it(tmp_path, save, terminals):
    expected = rows(1000)
    columns = {name: value for name, value in vars(expected).items() if name not in ("timeouts", "next_known")}
    save(tmp_path / "a.npz", **{**columns, "terminals": expected.terminals.astype(terminals)})
    data = open_dataset(tmp_path / "a.npz")
    same(load_transitions(data), expected)
    same(Transitions.concatenate(list(iter_transitions(data, 300))), expected)
    same(load_transitions(pickle.loads(pickle.dumps(data))), expected)


def test_archives_that_cannot_be_read(tmp_path):
    good = vars(rows(50)).copy()
    del good["next_known"]
    np.savez(tmp_path / "pickled.npz", **{**good, "actions": np.array([{}] * 50, object)})
    np.savez(tmp_path / "other.npz", **{**good, "infos": np.array([{}], object)})
    np.savez(tmp_path / "lacking.npz", a=1)
    np.savez(tmp_path / "long.npz", **{**good, "rewards": np.zeros(51)})
    np.savez_compressed(tmp_path / "whole.npz", **good)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-700])
    (tmp_path / "text.npz").write_text("hello")
    for name, word in {
        "pickled.npz": "`actions` holds pickled objects, which are never loaded",
        "lacking.npz": "no array `observations`; .* It holds `a`",
        "long.npz": "`rewards` has 51 rows, `observations` has 50",
        "cut.npz": "not a whole .npz archive",
        "text.npz": "not a whole .npz archive",
    }.items():
        with pytest.raises(DatasetError, match=word):
            open_dataset(tmp_path / name)
    assert len(load_transitions(tmp_path / "other.npz")) == 50


def by_d4rls_rule(path):
    """What `d4rl.qlearning_dataset` makes of a file, restated row by row; a terminal row keeps what D4RL shows after it."""
    with h5py.File(path) as file:
        columns = {name: file[name][:] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    kept = [row for row in range(len(columns["rewards"]) - 1) if not columns["timeouts"][row]]
    found = {name: column[kept] for name, column in columns.items() if name != "timeouts"}
    return found | {"next_observations": columns["observations"][[row + 1 for row in kept]]}


@settings(max_examples=40)
@given(recordings())
def test_d4rls_rule_and_ours_read_the_same_transitions_from_what_we_write(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("d4rl") / "a.hdf5"
    assert save_dataset(data, path) == len(data)
    with open_dataset(path) as again:
        same(load_transitions(again), data)
        assert "closing" not in again.infos
    for name, column in by_d4rls_rule(path).items():
        np.testing.assert_array_equal(column, getattr(data, name), err_msg=name)


@settings(max_examples=20)
@given(recordings(), st.integers(1, 12))
def test_runs_are_the_same_however_the_rows_come(data, size):
    whole = list(iter_runs([data]))
    pieces = list(iter_runs([data[i : i + size] for i in range(0, len(data), size)]))
    assert [len(run) for run in whole] == [len(run) for run in pieces]
    if whole:
        same(Transitions.concatenate(whole), data, "next_known")
        same(Transitions.concatenate(pieces), data, "next_known")
    for run in whole:
        np.testing.assert_array_equal(run.next_observations[:-1], run.observations[1:])
        assert not run.terminals[:-1].any()


@pytest.mark.parametrize("name", ["a.hdf5", "a.h5", "a.npz", "a"])
def test_every_format_keeps_every_row(tmp_path, name):
    data = rows(500)
    data = Transitions(**{**vars(data), "timeouts": data.rewards > 1, "next_known": data.rewards > -1})
    assert save_dataset(data, tmp_path / name, attrs={"synthetic": True, "source": {"seed": 3}, "fps": None}) == 500
    with open_dataset(tmp_path / name) as found:
        assert found.attrs["synthetic"] is True
        assert found.attrs["source"] == {"seed": 3}
        same(load_transitions(found), data)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_discrete_actions_and_pixels_are_kept(tmp_path):
    random = np.random.default_rng(0)
    plain, pixels = rows(9), random.integers(0, 256, (10, 8, 8, 3), np.uint8)
    changes = {"observations": pixels[:-1], "next_observations": pixels[1:], "actions": random.integers(5, size=9)}
    data = Transitions(**{**vars(plain), **changes})
    for name in ("a.hdf5", "a.npz", "a"):
        save_dataset(data, tmp_path / name)
        same(load_transitions(tmp_path / name), data)


def test_one_format_turns_into_another_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "_PIECE", 1000)
    monkeypatch.setattr(convert, "_SHARD", 5000)
    data = rows(300)
    save_dataset(data, tmp_path / "a.hdf5", attrs={"env": "Hopper-v5"})
    for source, target in [("a.hdf5", "b"), ("b", "c.npz"), ("c.npz", "d.hdf5"), ("d.hdf5", "e.npz"), ("e.npz", "f")]:
        assert cli.main(["data", "convert", str(tmp_path / source), "--to", str(tmp_path / target)]) == 0
    assert len(list((tmp_path / "f").glob("*.hdf5"))) > 3
    with open_dataset(tmp_path / "f") as found:
        assert found.attrs == {"env": "Hopper-v5"}
        same(load_transitions(found), data)


def test_a_published_file_without_timeouts_is_converted_by_the_rule(tmp_path):
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        file["observations"] = np.arange(10.0)[:, None]
        file["actions"] = np.ones((10, 1))
        file["rewards"] = np.arange(10.0)[:, None]
        file["terminals"] = np.arange(10) == 3
    words = ["data", "convert", str(tmp_path / "mine.hdf5"), "--to", str(tmp_path / "b.hdf5"), "--max-episode-steps", "3"]
    assert cli.main(words) == 0
    found = load_transitions(tmp_path / "b.hdf5")
    assert found.rewards.tolist() == [0, 1, 3, 4, 5, 7, 8]
    assert found.next_known.tolist() == [True, True, False, True, True, True, True]


def test_targets_that_are_refused(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    save_dataset(rows(3), tmp_path / "a.npz")
    for target, word in {"there": "exists already", "b.csv": "no known format", "a.npz": "exists already"}.items():
        assert cli.main(["data", "convert", str(tmp_path / "a.npz"), "--to", str(tmp_path / target)]) == 2
        assert word in capsys.readouterr().err


def test_a_failure_leaves_nothing_behind(tmp_path):
    class Breaks(Transitions):
        def __getitem__(self, rows):
            if rows.start:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    data = Breaks(**vars(rows(2**20 + 1, o=1, a=1)))
    for name in ("a.hdf5", "a.npz", "a"):
        with pytest.raises(OSError, match="the disk is gone"):
            save_dataset(data, tmp_path / name)
        assert list(tmp_path.iterdir()) == []


CONVERT = """
import sys
from dreamloom import cli
source, *targets = sys.argv[1:]
for target in targets:
    print(cli.main(["data", "convert", source, "--to", target]), flush=True)
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs name spaces")
def test_a_disk_that_is_full_is_told_in_one_line_and_holds_nothing_of_the_target(tmp_path):
    """A real, small file system, which only the superuser may mount, in a name space of mounts that ends with the process."""
    small = tmp_path / "small"
    small.mkdir()
    save_dataset(rows(3000, o=20), tmp_path / "source.npz")
    targets = [small / "a.hdf5", small / "b.npz", small / "c", "minari:full/a-v0"]
    run = shlex.join(map(str, [sys.executable, "-c", CONVERT, tmp_path / "source.npz", *targets]))
    found = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f"mount -t tmpfs -o size=400k tmpfs {small} && {{ {run}; echo code $?; find {small} -type f; }}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "MINARI_DATASETS_PATH": str(small / "minari")},
    )
    if "code" not in found.stdout:
        pytest.skip("no file system of a test's own can be mounted here")
    assert found.stdout.splitlines() == ["2", "2", "2", "2", "code 0"]
    told = [line for line in found.stderr.splitlines() if "dreamloom:" in line]
    assert len(told) == 4
    assert all("No space left on device" in line or "the disk has" in line for line in told)
    assert "Traceback" not in found.stderr
