"""Bulk generation: the same bytes whoever makes them, however often killed; errors leave finished shards whole."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamloom import load_upsampler, open_dataset
from dreamloom.cli import main
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.curation import DynamicsRule, _targets
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.train.synthesize import synthesize

SMALL = {"n": 700, "shard_rows": 200, "batch_size": 70, "steps": 3, "accelerator": "cpu"}
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def save(model: Upsampler, path: Path, **more: object) -> Path:
    """A checkpoint as `dreamloom fit` writes it."""
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_config": model.config, "state_dict": state, **more}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(hopper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny upsampler of Hopper, which has seen a few batches."""
    model = Upsampler(width=32, depth=1).fit(load_transitions(hopper_file), steps=30, batch_size=64, progress=False)
    real = {"path": hopper_file.name, "rows": 2000, "attrs": {"env": "Hopper-v5", "source": {"policy": "random"}}}
    return save(model, tmp_path_factory.mktemp("model") / "last.ckpt", TransitionData=real)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one uninterrupted process makes of SMALL."""
    folder = tmp_path_factory.mktemp("data") / "whole"
    synthesize(checkpoint, out=folder, **SMALL)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def same(one: Transitions, other: Transitions, **tolerance: float) -> None:
    for name in COLUMNS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), **{"rtol": 0, "atol": 0, **tolerance})


def test_folder_is_the_stream_of_the_upsampler(checkpoint: Path, whole: Path) -> None:
    files = {f"shard-0000{i}.{kind}" for i in range(4) for kind in ("hdf5", "json")}
    assert set(content(whole)) == {"index.json", *files}
    data = load_transitions(whole)
    assert len(data) == 700
    model = load_upsampler(checkpoint)
    solver = type(model.solver)(3)
    # In other batches, so equal to float tolerance only.
    same(data, model.sample(700, solver=solver), atol=1e-4)


def test_every_file_says_where_it_comes_from(checkpoint: Path, whole: Path) -> None:
    index = json.loads((whole / "index.json").read_text())
    manifest = json.loads((whole / "shard-00003.json").read_text())
    assert (index["rows"], index["generated"], index["dropped"]) == (700, 700, {})
    assert (manifest["rows"], manifest["generated"]) == (100, 100)
    assert manifest["settings"]["seed"] == 0
    assert len(manifest["sha256"]) == len(manifest["settings"]["model"]) == 64
    for path in (whole, whole / "shard-00003.hdf5"):
        with open_dataset(path) as data:
            assert data.attrs["synthetic"]
            assert data.attrs["env"] == "Hopper-v5"
            source = data.attrs["source"]
            assert source["checkpoint"] == str(checkpoint)
            assert source["model"] == manifest["settings"]["model"]
            assert source["solver"]["init_args"]["steps"] == 3
            assert source["real"] == {"path": "hopper.hdf5", "rows": 2000, "source": {"policy": "random"}}
            assert source["dreamloom"]


def test_two_ranks_make_the_same_bytes(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    """Two processes of `torch.distributed`, as a user starts them."""
    words = ["synthesize", str(checkpoint), "--out", "two", *WORDS, "--devices=2"]
    run = subprocess.run([sys.executable, "-m", "dreamloom", *words], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    assert "saved two: 700 rows in 4 shards" in run.stderr
    assert "rank 0 of 2" in run.stderr
    assert content(tmp_path / "two") == content(whole)


KILLED = """
import os, signal, sys, torch
import dreamloom.train.synthesize  # once for all children
from dreamloom.cli import main
torch.set_num_threads(1)
replace = os.replace
def kill_at(rename):
    left = [rename]
    def replacing(*names):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        replace(*names)
    os.replace = replacing
for rename in range(4):
    child = os.fork()
    if not child:
        kill_at(rename)
        main(sys.argv[1:])
        os._exit(9)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""


def test_kill_9_between_any_two_files_and_run_again_gives_the_same_bytes(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    """Run k dies at its k-th rename: before the first file, between a shard and its manifest, after a shard, ..."""
    out = tmp_path / "killed"
    words = ["synthesize", str(checkpoint), "--out", str(out), *WORDS]
    run = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr
    left = content(out)
    finished = [name for name in left if name.startswith("shard-") and name.endswith(".json")]
    assert finished == ["shard-00000.json", "shard-00001.json"]
    assert "shard-00002.hdf5" in left
    assert any(name.startswith(".shard-00002.") for name in left), "the last one died between a shard and its manifest"
    with pytest.raises(ValueError, match=r"no index\.json"):
        open_dataset(out)
    before = {name: (out / name).stat().st_mtime_ns for name in finished}
    synthesize(checkpoint, out=out, **SMALL)
    assert content(out) == content(whole)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == before, "finished shards are not made again"


TERMINATED = """
import os, signal, sys, torch
from dreamloom.cli import main
torch.set_num_threads(1)
replace, renamed = os.replace, []
def replacing(*names):
    renamed.append(names)
    if len(renamed) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    replace(*names)
os.replace = replacing
main(sys.argv[1:])
"""


def test_sigterm_ends_it_and_leaves_what_is_finished(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "terminated"
    words = ["synthesize", str(checkpoint), "--out", str(out), *WORDS]
    run = subprocess.run([sys.executable, "-c", TERMINATED, *words], capture_output=True, text=True, timeout=500)
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert {name for name in content(out) if not name.startswith(".")} == {"shard-00000.json", "shard-00000.hdf5"}
    synthesize(checkpoint, out=out, **SMALL)
    assert content(out) == content(whole)


def test_another_batch_size_is_the_same_data_to_float_tolerance(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    synthesize(checkpoint, out=tmp_path / "b", **SMALL | {"batch_size": 33})
    same(load_transitions(tmp_path / "b"), load_transitions(whole), atol=1e-4)


def test_changed_shards_are_made_again_with_a_warning(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, out := tmp_path / "c")
    damaged = bytearray((out / "shard-00001.hdf5").read_bytes())
    damaged[5000] ^= 1
    (out / "shard-00001.hdf5").write_bytes(damaged)
    (out / "shard-00002.hdf5").unlink()
    with pytest.warns(UserWarning, match=r"shard-0000[12]\.hdf5 is not what its manifest says"):
        synthesize(checkpoint, out=out, **SMALL)
    assert content(out) == content(whole)


def test_more_rows_extend_a_folder(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, out := tmp_path / "d")
    kept = [f"shard-0000{i}.hdf5" for i in range(3)]
    before = [(out / name).stat().st_mtime_ns for name in kept]
    synthesize(checkpoint, out=out, **SMALL | {"n": 900})
    assert [(out / name).stat().st_mtime_ns for name in kept] == before
    data = load_transitions(out)
    assert len(data) == 900
    same(data[:600], load_transitions(whole)[:600])
    synthesize(checkpoint, out=tmp_path / "once", **SMALL | {"n": 900})
    assert content(out) == content(tmp_path / "once")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"other settings: seed=0 \(now 1\)"),
        ({"shard_rows": 100, "n": 300}, r"other settings: shard_rows=200 \(now 100\)"),
        ({"steps": 2}, "other settings: solver="),
        ({"n": 200}, "holds 4 shards, --n 200 asks for 1"),
    ],
)
def test_other_settings_are_refused(checkpoint: Path, whole: Path, changed: dict, said: str) -> None:
    before = content(whole)
    with pytest.raises(ValueError, match=said) as error:
        synthesize(checkpoint, out=whole, **SMALL | changed)
    assert "choose another --out" in str(error.value)
    assert content(whole) == before


def test_another_model_is_refused(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    model = load_upsampler(checkpoint)
    next(model.average.parameters())[0] += 1e-3
    with pytest.raises(ValueError, match="other settings: model="):
        synthesize(save(model, tmp_path / "other.ckpt"), out=whole, **SMALL)


def test_a_run_or_its_recipe_names_its_checkpoint(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "version_3"
    (run / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint, run / "checkpoints" / "last.ckpt")
    for number, name in enumerate((run, run.parent)):
        synthesize(name, out=tmp_path / f"{number}", **SMALL | {"n": 100})
        same(load_transitions(tmp_path / f"{number}"), load_transitions(whole)[:100], atol=1e-4)
    with pytest.raises(ValueError, match="no checkpoint"):
        synthesize(tmp_path / "0", out=tmp_path / "out", **SMALL)


def test_a_disk_that_is_too_small_shows_at_once(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs 1,060\.0 TB, the disk has \S+ [MGT]B free: \S+ TB too little"):
        synthesize(checkpoint, out=tmp_path / "out", **SMALL | {"n": 10**13})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 kB: room for the rows of SMALL (about 80 kB), not for four files of them with manifests."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_fills_leaves_finished_shards(
    checkpoint: Path, whole: Path, small_disk: Path, capsys: pytest.CaptureFixture
) -> None:
    out = small_disk / "full"
    assert main(["synthesize", str(checkpoint), "--out", str(out), *WORDS]) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    left = content(out)
    finished = {name for name in left if name.endswith(".json")}
    assert finished
    assert all(content(whole)[name] == left[name] for name in [*finished, *(f"{name[:-4]}hdf5" for name in finished)])
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    synthesize(checkpoint, out=out, **SMALL)
    assert content(out) == content(whole)


def test_range_drops_rows_outside_the_real_data(
    checkpoint: Path, whole: Path, hopper_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    synthesize(checkpoint, out=tmp_path / "kept", **SMALL, curate="range", real=hopper_file)
    said = capsys.readouterr().err
    real, all_rows, kept = load_transitions(hopper_file), load_transitions(whole), load_transitions(tmp_path / "kept")
    inside = np.ones(700, bool)
    for name in COLUMNS[:4]:
        column, rows = getattr(real, name), getattr(all_rows, name)
        inside &= ((rows >= column.min(0)) & (rows <= column.max(0))).reshape(700, -1).all(1)
    assert 0 < inside.sum() < 700
    same(kept, all_rows[inside])
    index = json.loads((tmp_path / "kept" / "index.json").read_text())
    dropped = 700 - int(inside.sum())
    assert (index["rows"], index["generated"], index["dropped"]) == (700 - dropped, 700, {"range": dropped})
    assert f"{700 - dropped} rows in 4 shards; range dropped {dropped} ({dropped / 700:.2%})" in said


def linear(count: int, seed: int) -> Transitions:
    """Rows of a world whose next observation is a matrix times observation and action."""
    random = np.random.default_rng(seed)
    now, action = random.normal(size=(count, 3)).astype(np.float32), random.normal(size=(count, 2)).astype(np.float32)
    matrix = np.random.default_rng(9).normal(size=(5, 3)).astype(np.float32) / 2
    following = (now + np.concatenate([now, action], 1) @ matrix).astype(np.float32)
    flags = np.zeros(count, bool)
    return Transitions(now, action, following.sum(1), following, flags, flags)


def test_dynamics_rule_tells_false_transitions_from_true_ones() -> None:
    rule = DynamicsRule(linear(3000, seed=0), members=2, width=64, steps=400, quantile=0.95)
    fresh = linear(2000, seed=1)
    assert rule.breaks(fresh).mean() == pytest.approx(0.05, abs=0.04)
    false = replace(fresh, next_observations=fresh.next_observations[::-1].copy())
    assert rule.breaks(false).mean() > 0.95
    unknown = replace(false, next_known=np.zeros(2000, bool))
    assert not rule.breaks(unknown).any(), "what cannot be judged is kept"
    with pytest.raises(ValueError, match="at least 100 real rows"):
        DynamicsRule(fresh[:99])


def test_dynamics_rule_reads_discrete_actions() -> None:
    data = linear(2000, seed=0)
    moves = np.random.default_rng(2).integers(0, 3, 2000)
    discrete = Transitions(
        **vars(data) | {"actions": moves, "next_observations": data.observations + moves[:, None].astype(np.float32)}
    )
    rule = DynamicsRule(Transitions(**vars(discrete) | {"rewards": np.zeros(2000, np.float32)}), steps=300)
    other = Transitions(**vars(discrete) | {"rewards": np.zeros(2000, np.float32), "actions": (moves + 1) % 3})
    assert rule.breaks(other).mean() > 0.9
    assert not rule.breaks(other[:0]).any()


def test_both_rules_in_turn(checkpoint: Path, hopper_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_upsampler(checkpoint).sample(200)

    def lenient(real: Transitions, **settings: Any) -> DynamicsRule:
        """The model has seen so little that a rule trained on real rows would drop all of its rows; this one drops half."""
        rule = DynamicsRule(real, **settings, steps=1)
        rule.threshold.fill_(rule._errors(rule._inputs(made), _targets(made)).median())
        return rule

    monkeypatch.setattr("dreamloom.diffusion.curation.DynamicsRule", lenient)
    for name in ("one", "two"):
        synthesize(checkpoint, out=tmp_path / name, **SMALL, curate="dynamics,range", real=hopper_file)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    index = json.loads((tmp_path / "one" / "index.json").read_text())
    assert list(index["dropped"]) == ["range", "dynamics"]
    assert index["rows"] == len(load_transitions(tmp_path / "one")) == 700 - sum(index["dropped"].values())
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "one").glob("shard-*.json")]
    assert sum(manifest["dropped"]["range"] for manifest in manifests) == index["dropped"]["range"] > 0


def test_guided_rows(hopper_file: Path, tmp_path: Path) -> None:
    model = Upsampler(width=32, depth=1, condition="reward")
    path = save(model.fit(load_transitions(hopper_file), steps=30, batch_size=64, progress=False), tmp_path / "last.ckpt")
    words = ["synthesize", str(path), "--out", str(tmp_path / "high"), *WORDS, "--condition", "[0.9, 1.0]", "--guidance", "1"]
    assert main(words) == 0
    data = load_transitions(tmp_path / "high")
    same(data, load_upsampler(path).sample(700, solver=type(model.solver)(3), condition=(0.9, 1.0), guidance=1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n=0"], "--n 0: expected at least 1"),
        (["--curate=looks"], "--curate 'looks': expected range or dynamics"),
        (["--curate=range"], "--curate and --real need each other"),
        (["--real=real.hdf5"], "--curate and --real need each other"),
        (["--curate=range", "--real=nowhere.hdf5"], "nowhere.hdf5"),
        (["--solver=magic"], "solver"),
        (["--condition=0.5"], "without a condition"),
        (["--accelerator=abacus"], "abacus"),
    ],
)
def test_mistake_is_one_line(
    checkpoint: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["synthesize", str(checkpoint), "--out", str(out), *WORDS, *words]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("dreamloom: ")
    assert complaint.count("\n") == 1
    assert said in complaint
    assert not list(out.glob("*"))


def test_real_data_of_another_world_is_refused(checkpoint: Path, cheetah_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a row of `observations` is float32 \(17,\), the checkpoint's is float32 \(11,\)"):
        synthesize(checkpoint, out=tmp_path / "out", **SMALL, curate="range", real=cheetah_file)


def test_no_upsampler_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a checkpoint of dreamloom"):
        synthesize(tmp_path / "last.ckpt", out=tmp_path / "out", **SMALL)
