"""Formats of transitions: folders of shards, archives of SynthER, D4RL's HDF5, and the way from one to another."""

import os
import pickle

import numpy as np
import pytest

from dreamloom.datasets.shards import shard_path, write_index, write_shard
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import count_transitions, iter_transitions, load_transitions
from dreamloom.datasets.types import Transitions


def rows(n, seed=0, o=3, a=2):
    """Transitions that have nothing to do with one another, as a generative model makes them."""
    random = np.random.default_rng(seed)
    return Transitions(
        observations=random.normal(size=(n, o)).astype(np.float32),
        actions=random.normal(size=(n, a)).astype(np.float32),
        rewards=random.normal(size=n).astype(np.float32),
        next_observations=random.normal(size=(n, o)).astype(np.float32),
        terminals=random.random(n) < 0.3,
        timeouts=np.zeros(n, bool),
    )


def same(found, expected, *but):
    for name, column in vars(expected).items():
        if name in but:
            continue
        other = getattr(found, name)
        np.testing.assert_array_equal(other, column, err_msg=name)
        if column is not None:
            assert other.dtype == column.dtype, name


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
    folder = folder_of(tmp_path / "shards", [rows(1, i) for i in range(16)])
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 12, hard))
    try:
        assert len(load_transitions(folder)) == 16
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
