"""Every command and snippet of docs/data.md runs, in one folder; only the numbers of steps are shortened."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dreamloom import cli

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_snippet_runs_and_gives_what_its_comments_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks("python")
    names = {}
    exec(snippet, names)
    assert names["starts"].tolist() == [0, 3]
    assert names["ends"].tolist() == [3, 6]
    assert names["first_episode"].shape == (3, 64, 64, 3)


def test_the_commands_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("procgen")
    monkeypatch.chdir(tmp_path)
    clip = tmp_path / "my_clips" / "one"
    clip.mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (80, 60), (40 * i, 0, 0)).save(clip / f"{i}.png")
    for command in blocks("sh")[0].splitlines():
        shorter = re.sub(r"--steps \d+", "--steps 60", command)
        assert cli.main(shlex.split(shorter)[1:]) == 0, capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["coinrun.hdf5", "coinrun.png", "mine.hdf5", "pong.hdf5"]
    assert "60 rows" in capsys.readouterr().out
