import shutil

import numpy as np
import pytest
from PIL import Image

from dreamloom.datasets.describe import contact_sheet, describe
from dreamloom.datasets.recorder import Column
from dreamloom.datasets.store import open_dataset
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
