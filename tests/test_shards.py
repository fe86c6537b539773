"""A folder of shards: what counts as finished, and how the whole reads as one dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamloom.datasets.shards import (
    INDEX,
    Plan,
    folder_attrs,
    is_shard_folder,
    missing_shards,
    read_manifest,
    shard_path,
    shard_paths,
    write_index,
    write_shard,
)
from dreamloom.datasets.store import DatasetError, open_dataset
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions

PLAN = Plan(seed=0, rows=25, shard_rows=10)


def rows(numbers: range) -> Transitions:
    """Rows whose values tell their numbers."""
    n = np.array(numbers, np.float32)
    flags = n % 7 == 3
    pair = np.stack([n, -n], 1)
    return Transitions(pair, n[:, None] / 100, n, pair + 1, flags, np.zeros(len(n), bool))


def write(folder: Path, shard: int, plan: Plan = PLAN) -> None:
    made = rows(plan.rows_of(shard))
    write_shard(folder, shard, made, {"synthetic": True}, generated=len(made))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 10, 10 and 5 rows, with their index."""
    folder = tmp_path / "synth"
    for shard in range(PLAN.shards):
        write(folder, shard)
    index(folder)
    return folder


def index(folder: Path) -> None:
    write_index(
        folder, [read_manifest(folder, shard) or {} for shard in range(PLAN.shards)], {"synthetic": True, "env": "E-v5"}
    )


@given(st.integers(1, 10_000), st.integers(1, 3_000), st.integers(0, 9))
def test_every_row_is_in_exactly_one_shard(count: int, shard_rows: int, seed: int) -> None:
    plan = Plan(seed, count, shard_rows)
    shards = [plan.rows_of(shard) for shard in range(plan.shards)]
    assert [row for shard in shards for row in shard] == list(range(count))
    assert all(len(shard) == shard_rows for shard in shards[:-1])
    assert 0 < len(shards[-1]) <= shard_rows


def test_folder_reads_as_one_dataset(folder: Path) -> None:
    assert is_shard_folder(folder)
    assert [path.name for path in shard_paths(folder)] == [f"shard-0000{i}.hdf5" for i in range(3)]
    assert folder_attrs(folder) == {"synthetic": True, "env": "E-v5"}
    with open_dataset(folder) as data:
        assert len(data) == 25
        assert data.attrs["synthetic"] is True
        whole = load_transitions(data)
    for name, column in vars(rows(range(25))).items():
        if column is not None:
            np.testing.assert_array_equal(getattr(whole, name), column)


def test_each_shard_is_a_dataset_of_its_own(folder: Path) -> None:
    with open_dataset(folder / "shard-00002.hdf5") as data:
        assert data.attrs["synthetic"]
        np.testing.assert_array_equal(load_transitions(data).rewards, np.arange(20, 25))


def test_only_what_is_missing_or_changed_is_made_again(folder: Path) -> None:
    assert missing_shards(folder, PLAN) == []
    assert missing_shards(folder, PLAN._replace(rows=41)) == [2, 3, 4], "a shorter last shard grows"
    assert missing_shards(folder, PLAN._replace(rows=20)) == []
    shard_path(folder, 0).unlink()
    (folder / "shard-00001.json").write_text('{"file": "shard-00')
    content = bytearray(shard_path(folder, 2).read_bytes())
    content[-1] ^= 1
    shard_path(folder, 2).write_bytes(content)
    with pytest.warns(UserWarning, match=r"shard-00002\.hdf5 is not what its manifest says"):
        assert missing_shards(folder, PLAN) == [0, 1, 2]


def test_same_rows_same_bytes(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for shard in range(3):
        write(folder, shard)
    index(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_remains_of_a_killed_run_are_swept_up(folder: Path) -> None:
    (folder / ".shard-00001.123.tmp.hdf5").write_bytes(b"half a file")
    write(folder, 1)
    assert not list(folder.glob(".*"))


def test_unfinished_folder_says_so(folder: Path) -> None:
    (folder / INDEX).unlink()
    assert is_shard_folder(folder)
    for read in (shard_paths, folder_attrs, open_dataset):
        with pytest.raises(DatasetError, match=r"no index\.json; it has 3 finished shards"):
            read(folder)


def test_no_shards_no_shard_folder(tmp_path: Path) -> None:
    assert not is_shard_folder(tmp_path)
    assert not is_shard_folder(tmp_path / "nowhere")
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(DatasetError, match="not an index of shards"):
        shard_paths(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": "dreamloom-shards"}', '{"format": "dreamloom-shards", "format_version": 1}']
)
def test_broken_index_is_named(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(DatasetError, match=r"index\.json: (is )?not "):
        folder_attrs(folder)


def test_missing_or_cut_shard_is_named(folder: Path) -> None:
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DatasetError, match=r"shard-00001\.hdf5: has \d+ bytes, index\.json says \d+"):
        shard_paths(folder)
    path.unlink()
    with pytest.raises(DatasetError, match=r"shard-00001\.hdf5: .* missing"):
        shard_paths(folder)


def test_index_cannot_lead_out_of_its_folder(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["shards"][0]["file"] = "../../etc/shard-00000.hdf5"
    (folder / INDEX).write_text(json.dumps(index))
    assert shard_paths(folder)[0].parent == folder
