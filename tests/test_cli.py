"""The command line: every verb explains itself, a user's mistake is one line and exit code 2, a bug keeps its traceback."""

import inspect
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import docstring_parser
import pytest

from dreamloom import cli

calls: list[tuple[Any, ...]] = []


def toy(
    path: Path, size: int = 3, *, mode: Literal["easy", "hard"] = "easy", restrict_themes: bool = False, sound: bool = True
) -> None:
    """Do a thing.

    Args:
        path: a file.
        size: of the thing.
        mode: how hard.
        restrict_themes: fewer looks.
        sound: noise.
    """
    calls.append((path, size, mode, restrict_themes, sound))


def broken() -> None:
    """Fail as a bug does."""
    raise RuntimeError("our bug")


def interrupted() -> None:
    """Stop as Ctrl-C does."""
    raise KeyboardInterrupt


def unfinished() -> None:
    """Need a library that is not there."""
    import av  # noqa: F401


@pytest.fixture(autouse=True)
def toy_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (toy, broken, interrupted, unfinished):
        monkeypatch.setitem(cli.VERBS, function.__name__, f"{__name__}:{function.__name__}")
    calls.clear()


def complaint(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What the command says of a mistake, after checking that it is one line on stderr and exit code 2."""
    capsys.readouterr()
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dreamloom: ")
    assert err.count("\n") == 1
    return err


REAL_VERBS = sorted(cli.VERBS)


@pytest.mark.parametrize("verb", REAL_VERBS)
def test_help_explains_every_parameter(verb: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    function = cli._load(cli.VERBS[verb])
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    assert doc.short_description
    assert doc.short_description.split("\n")[0] in shown
    assert f"dreamloom {verb} " in shown.partition("xample")[2], "help ends with an example"
    described = {parameter.arg_name for parameter in doc.params if parameter.description}
    expected = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    assert {p.name for p in expected} == described
    for parameter in expected:
        assert (
            f"--{parameter.name.replace('_', '-')}" if parameter.kind is parameter.KEYWORD_ONLY else parameter.name
        ) in shown


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_overview_has_a_line_for_every_verb(
    words: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "VERBS", {verb: cli.VERBS[verb] for verb in REAL_VERBS})
    assert cli.main(words) == 0
    shown = capsys.readouterr().out.splitlines()
    for verb in REAL_VERBS:
        line = next(line for line in shown if line.startswith(f"  {verb} "))
        assert len(line.split()) > 3


def test_group_lists_its_verbs(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["collect", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "collect video" in shown
    assert "\n  play" not in shown
    assert "collect procgen, collect video, collect gymnasium" in complaint(capsys, "collect")


def test_version(capsys: pytest.CaptureFixture) -> None:
    import dreamloom

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == dreamloom.__version__


@pytest.mark.parametrize(
    ("words", "called"),
    [
        (["a.hdf5"], (Path("a.hdf5"), 3, "easy", False, True)),
        (["a.hdf5", "5", "--mode", "hard"], (Path("a.hdf5"), 5, "hard", False, True)),
        (["a_b.hdf5", "--restrict_themes"], (Path("a_b.hdf5"), 3, "easy", True, True)),
        (["--restrict-themes", "--no-sound", "--mode=hard", "a"], (Path("a"), 3, "hard", True, False)),
    ],
)
def test_signature_is_the_command_line(words: list[str], called: tuple[Any, ...]) -> None:
    assert cli.main(["toy", *words]) == 0
    assert calls == [called]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "unknown command 'nonsense'"),
        ("toy", "required: path"),
        ("toy a b", "size: Expected int. Got value: b"),
        ("toy a --mode odd", "mode: Expected one of ['easy', 'hard']"),
        ("toy a --speed 3", "unrecognized arguments: --speed 3"),
        ("collect procgen --game pong --steps 4 --out x.hdf5", "coinrun"),
        ("collect procgen --game coinrun --out x.hdf5", "steps"),
        ("collect procgen --game coinrun --steps 4 --out x.hdf5 --levels 9:3", "--levels"),
        ("collect procgen --game coinrun --steps 4 --out x.hdf5 --policy nope:nope", "nope"),
        ("collect video nowhere --out x.hdf5", "nowhere"),
        ("collect gymnasium --env Nope-v0 --steps 4 --out x.hdf5", "Nope"),
        ("data nowhere.hdf5", "nowhere.hdf5"),
        ("fit", "fit needs a recipe"),
        ("fit -c nowhere.yaml", "nowhere.yaml"),
        ("fit -c recipe.yaml --data.path x --model.widht 3", "widht"),
        ("fit -c recipe.yaml --data.path x --data.batch_size many", "batch_size"),
        ("fit -c recipe.yaml --data.path x --trainer.max_stps 3", "max_stps"),
        ("fit -c recipe.yaml", "path"),
        ("fit -c recipe.yaml --data.path nowhere.hdf5", "nowhere.hdf5"),
        ("fit -c recipe.yaml --data.path x --ckpt_path last", "--ckpt_path last: no checkpoint at runs/recipe"),
        ("bundle", "required"),
        ("eval world nowhere --data x.hdf5 --out report", "nowhere"),
        ("play nowhere --no-open", "nowhere"),
        ("play --port many", "port"),
    ],
)
def test_mistake_is_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(TINY_RECIPE)
    assert said in complaint(capsys, *words.split())
    assert not Path("x.hdf5").exists()


TINY_RECIPE = """
trainer: {accelerator: cpu, max_steps: 4, limit_val_batches: 0, enable_progress_bar: false, enable_model_summary: false}
checkpoint: {every_n_train_steps: 2}
model:
  class_path: dreamloom.train.tasks.TokenizerTask
  init_args:
    model:
      class_path: dreamloom.tokenizers.st_vivit.Tokenizer
      init_args:
        quantizer: {class_path: dreamloom.tokenizers.quantizers.VQ, init_args: {width: 16, codes: 16}}
        patch: 16
        width: 16
        heads: 2
        encoder_depth: 1
        decoder_depth: 1
data:
  class_path: dreamloom.train.data.ClipData
  init_args: {path: null, length: 4, batch_size: 2}
"""


def test_fit_keeps_its_files_and_goes_on(
    coinrun_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    recipe = Path("recipes/small/tokenizer.yaml")
    recipe.parent.mkdir(parents=True)
    recipe.write_text(TINY_RECIPE)
    words = ["fit", "-c", str(recipe), "--data.path", str(coinrun_file)]
    run = Path("runs/small/tokenizer/version_0")

    def steps() -> int:
        return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]

    assert cli.main([*words, "--trainer.max_steps", "3"]) == 0
    assert f"saved {run}" in capsys.readouterr().err
    assert steps() == 3
    assert cli.main(["fit", "-c", str(run / "config.yaml"), "--trainer.fast_dev_run", "true"]) == 0, "the config is whole"
    capsys.readouterr()
    assert cli.main([*words, "--ckpt_path", "last"]) == 0
    assert steps() == 4
    assert [path.name for path in run.parent.iterdir()] == ["version_0"], "a resumed run goes on in its folder"
    assert list(run.glob("events.out.tfevents.*"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert cli.main([*words, "--trainer.max_steps", "1"]) == 0
    assert sorted(path.name for path in run.parent.iterdir()) == ["version_0", "version_1"]


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="our bug"):
        cli.main(["broken"])


def test_ctrl_c_is_quiet(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["interrupted"]) == 130
    assert capsys.readouterr() == ("", "")


def test_missing_library_names_its_extra(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'dreamloom[video]'" in complaint(capsys, "unfinished")


def test_unwritable_path_is_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = complaint(capsys, "collect", "procgen", "--game", "coinrun", "--steps", "4", "--out", str(tmp_path / "file/x.hdf5"))
    assert str(tmp_path / "file") in said


def test_console_says_nothing_else(tmp_path: Path) -> None:
    """In a process of its own, so that warnings at start-up would show."""
    command = [sys.executable, "-m", "dreamloom", "data", str(tmp_path / "no.hdf5")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert "no.hdf5" in run.stderr


SLOW_POLICY = """
import time
import numpy

def make(lanes, space, rng):
    def act(frames, first):
        time.sleep(0.05)
        return numpy.zeros(lanes, numpy.int64)
    return act
"""


@pytest.mark.skipif(find_spec("procgen") is None, reason="Procgen is not installed")
def test_console_stops_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_POLICY)
    words = ["collect", "procgen", "--game", "coinrun", "--steps", "4000", "--num-envs", "1", "--policy", "slow:make"]
    command = [sys.executable, "-m", "dreamloom", *words, "--out", "a.hdf5"]
    # A shell that runs the tests in the background lets its children ignore Ctrl-C.
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True, **heeding) as process:  # type: ignore[call-overload]
        assert process.stderr is not None
        shown = b""
        while b"steps/s" not in shown:
            shown += os.read(process.stderr.fileno(), 4096) or pytest.fail(shown.decode())
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert b"Traceback" not in rest
