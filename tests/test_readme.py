"""Every command and snippet of the README runs, in the README's order, in one folder, on real data.

What is shortened, and only that: SHORTER replaces numbers, and `pages.EXTRA` adds options to a verb (fewer training steps,
fewer clips, no browser). `pytest` is not run from within itself.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pages
import pytest

from dreamloom import cli

README = (pages.ROOT / "README.md").read_text()
SHORTER = {
    "--steps 250000": "--steps 3000",
    "--steps 96000": "--steps 1500",
    "--steps 8000": "--steps 3000",
    "--steps 200000": "--steps 2000 --policy random",
    "--steps 20000 ": "--steps 3000 ",
    "--n 1000000": "--n 1000",
    "--episodes 20": "--episodes 1",
}
# One environment, two arms with few rows, and one learner, in place of the recipe's.
SMALL_STUDY = (
    """--environments '{"HalfCheetah-v5": "data/cheetah.hdf5"}' """
    """--arms '{"all real": {}, "all synthetic": {"keep": false, "synthetic": 300}}' """
    """--learners '{"bc": {"class_path": "dreamloom.agents.bc.BC", "init_args": {"seeds": 2}}}' """
    "--updates 2 --upsampler_steps 2 --batch_size 8 --episodes 1"
)


def test_every_verb_is_shown() -> None:
    text = README + "".join(page.read_text() for page in pages.ROOT.joinpath("docs").glob("*.md"))
    assert [verb for verb in cli.VERBS if f"dreamloom {verb}" not in text] == []
    assert "pytest" in pages.commands(README)


def test_rooms_of_the_table_exist() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert [path for path in paths if not (pages.ROOT / path).exists()] == []
    rooms = {f"dreamloom/{path.parent.name}/" for path in (pages.ROOT / "dreamloom").glob("*/__init__.py")}
    assert rooms <= set(paths)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_spec("procgen") is None, reason="Procgen is not installed")
def test_readme_runs_from_recording_to_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    pages.write_clips(Path("my_clips"))
    for command in pages.commands(README):
        if command != "pytest":
            pages.run(command, SHORTER, {"eval study": SMALL_STUDY})
    variables = pages.run_snippets(README, "README.md")
    assert variables["outcome"].frame.shape == (1, 3, 128, 128)  # type: ignore[attr-defined]
    assert np.shape(variables["frames"]) == (16, 128, 128, 3)
    assert Path("reports/coinrun/metrics.json").is_file()
