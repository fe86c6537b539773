"""Every command and snippet of the README runs, in the README's order, in one folder, on real data.

What is shortened, and only that: SHORTER replaces numbers of steps, and EXTRA adds options to a verb (fewer training
steps, fewer clips, no browser). Commands are in-process calls, apart from `play`: a process that serves the page until
the test has read it. `pytest` is not run from within itself.
"""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from dreamloom import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHORTER = {
    "--steps 250000": "--steps 3000",
    "--steps 200000": "--steps 2000 --policy random",
    "--steps 20000 ": "--steps 3000 ",
    "--n 1000000": "--n 1000",
    "--episodes 20": "--episodes 1",
}
SHORT_FIT = (
    "--trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0 --data.batch_size 2 "
    "--trainer.accelerator cpu --trainer.precision 32-true --trainer.enable_progress_bar false"
)
# Two arms with few rows, and one learner, in place of the recipe's.
SMALL_STUDY = (
    """--arms '{"all real": {}, "all synthetic": {"keep": false, "synthetic": 300}}' """
    """--learners '{"bc": {"class_path": "dreamloom.agents.bc.BC", "init_args": {"seeds": 2}}}' """
    "--updates 2 --upsampler_steps 2 --batch_size 8 --episodes 1"
)
EXTRA = {
    "eval study": SMALL_STUDY,
    "eval replay": "--rows 500",
    "fit": SHORT_FIT,
    "play": "--no-open --port 0 --device cpu",
    "eval world": "--clips 4 --steps 1",
    "collect procgen": "--num-envs 12 --segment 250",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line.removeprefix("pip install -q uv && uv run ") for line in lines if line]


def shortened(command: str) -> list[str]:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    extra = next((words for verb, words in EXTRA.items() if command.startswith(f"dreamloom {verb}")), "")
    return shlex.split(f"{command} {extra}")[1:]


def write_clips(folder: Path) -> None:
    """Two short videos of a moving square."""
    import imageio.v3 as iio

    frames = np.zeros((40, 48, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[16:32, i : i + 16] = 200
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        iio.imwrite(folder / name, frames, plugin="pyav", codec="libx264", fps=20)


def serve_and_read(words: list[str]) -> None:
    """Starts `play`, reads the page at the address that it prints, and stops it as Ctrl-C does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "dreamloom", *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as play:
        assert play.stdout is not None
        try:
            address = re.search(r"http://\S+", play.stdout.readline())
            assert address, "play prints where it plays"
            with urlopen(address[0], timeout=30) as page:
                assert b"dreamloom" in page.read()
        finally:
            play.terminate()


def test_commands_of_the_issue_are_there() -> None:
    text = "\n".join(commands())
    for verb in cli.VERBS:
        if verb != "collect gymnasium":
            assert f"dreamloom {verb}" in text
    assert "pytest" in commands()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_rooms_of_the_table_exist() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README, re.MULTILINE)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    rooms = {f"dreamloom/{path.parent.name}/" for path in (ROOT / "dreamloom").glob("*/__init__.py")}
    assert rooms <= set(paths)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(find_spec("procgen") is None, reason="Procgen is not installed")
def test_readme_runs_from_recording_to_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clips(Path("my_clips"))
    for command in commands():
        if command == "pytest":
            continue
        words = shortened(command)
        if words[0] == "play":
            serve_and_read(words)
        else:
            assert cli.main(words) == 0, command
    for snippet in blocks("python"):
        namespace: dict[str, object] = {}
        exec(compile(snippet, "README.md", "exec"), namespace)
        assert namespace["outcome"].frame.shape == (1, 3, 64, 64)  # type: ignore[attr-defined]
        assert np.shape(namespace["frames"]) == (16, 64, 64, 3)
    assert Path("reports/coinrun/metrics.json").is_file()
