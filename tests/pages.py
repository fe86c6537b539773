"""Commands and snippets of the README and of docs/, taken out and run as a reader would, in one folder, in their order.

Commands are in-process calls, apart from `play`, a process that serves the page until the test has read it, and scripts.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from dreamloom import cli

ROOT = Path(__file__).parent.parent
# What is added to a command, by its verb, so that it takes seconds; a page may say otherwise.
EXTRA = {
    "fit": "--trainer.max_steps 2 --trainer.limit_val_batches 1 --trainer.num_sanity_val_steps 0 --data.batch_size 2 "
    "--trainer.accelerator cpu --trainer.precision 32-true --trainer.enable_progress_bar false",
    "play": "--no-open --port 0 --device cpu",
    "eval world": "--clips 4 --steps 1 --steady-rollouts 2 --steady-frames 16",
    "eval replay": "--rows 500",
    "collect procgen": "--num-envs 12 --segment 250",
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """The lines of all `sh` blocks, without comments."""
    lines = [line.partition(" #")[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [line.removeprefix("pip install -q uv && uv run ") for line in lines if line]


def strays(text: str) -> list[str]:
    """Commands that stand outside of the blocks that are run."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^(?: {4}|\t)\s*(?:uv run )?(?:dreamloom|python) .*", prose, re.MULTILINE)


def run(command: str, shorter: dict[str, str], extra: dict[str, str]) -> None:
    """Runs a command, shortened, and asserts that it succeeds.

    Args:
        command: as the page has it.
        shorter: patterns -> what to put in their place.
        extra: verb -> words to add; goes before `EXTRA`.
    """
    for long, short in shorter.items():
        command = re.sub(long, short, command)
    added = next((words for verb, words in {**extra, **EXTRA}.items() if command.startswith(f"dreamloom {verb}")), "")
    program, *words = shlex.split(f"{command} {added}")
    if program == "python":
        subprocess.run([sys.executable, ROOT / words[0], *words[1:]], check=True, timeout=900)
    elif words[0] == "play":
        _serve_and_read(words)
    else:
        assert program == "dreamloom", command
        assert cli.main(words) == 0, command


def run_snippets(text: str, name: str) -> dict[str, object]:
    """Runs the Python blocks one after the other; returns their variables."""
    variables: dict[str, object] = {}
    for snippet in blocks(text, "python"):
        exec(compile(snippet, name, "exec"), variables)
    return variables


def write_clips(folder: Path) -> None:
    """Two short videos of a moving square."""
    import imageio.v3 as iio

    frames = np.zeros((40, 48, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[16:32, i : i + 16] = 200
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        iio.imwrite(folder / name, frames, plugin="pyav", codec="libx264", fps=20)


def _serve_and_read(words: list[str]) -> None:
    """Starts `play`, reads the page at the address that it prints, and stops it as Ctrl-C does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "dreamloom", *words], stdout=subprocess.PIPE, text=True, env=environment
    ) as play:
        assert play.stdout is not None
        try:
            address = re.search(r"http://\S+", play.stdout.readline())
            assert address, "play prints where it plays"
            with urlopen(address[0], timeout=300) as page:
                assert b"dreamloom" in page.read()
        finally:
            play.terminate()
