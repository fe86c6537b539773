"""The verb `eval replay` on real recordings: copies, noise and other episodes of them as what is to be judged."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamloom.cli import main
from dreamloom.datasets.transitions import load_transitions
from dreamloom.datasets.types import Transitions
from dreamloom.eval.fidelity import scores
from dreamloom.eval.fidelity.baselines import noise_copies
from dreamloom.eval.fidelity.report import report
from dreamloom.eval.fidelity.scores import Real, compare
from dreamloom.eval.replay import evaluate

PLOTS = {f"{name}.png" for name in ("summary", "marginals_worst", "marginals", "correlation", "dynamics", "nearest")}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows where they cost: what is told apart here is far apart."""
    for name in ("DYNAMICS_ROWS", "C2ST_ROWS", "NEAREST_ROWS"):
        monkeypatch.setattr(scores, name, 300)


def write(path: Path, data: Transitions, **attrs: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, column in vars(data).items():
            if column is not None:
                file[name] = column
        file.attrs.update(attrs)
    return path


def metrics_of(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_whole_report(hopper_file: Path, tmp_path: Path) -> None:
    real = load_transitions(hopper_file)
    synth = write(tmp_path / "synth.hdf5", noise_copies(real, sd=0.03, generator=np.random.default_rng(0)))
    out = tmp_path / "report"
    assert main(["eval", "replay", str(synth), "--real", str(hopper_file), "--out", str(out)]) == 0
    found = metrics_of(out)
    for row in ("synthetic", "floor", "baseline", "copula"):
        for section, name in [("ks", "mean"), ("wasserstein", "mean"), ("correlation", "distance"), ("dynamics", "mse"),
                              ("nearest", "ratio"), ("c2st", "auc")]:  # fmt: skip
            assert np.isfinite(found[row][section][name]), (row, section)
    assert list(found["synthetic"]["ks"]["columns"])[:1] + list(found["synthetic"]["ks"]["columns"])[-1:] == ["s0", "s'10"]
    mse = {row: found[row]["dynamics"]["mse"] for row in ("floor", "synthetic", "baseline", "copula")}
    assert mse["floor"] < 1e-9 < mse["synthetic"] < mse["baseline"] < mse["copula"]
    assert found["floor"]["dynamics"]["terminal_precision"] == 1
    assert found["synthetic"]["nearest"]["ratio"] < 0.5 < found["copula"]["nearest"]["ratio"]
    assert found["synthetic"]["terminal"]["rate"] == pytest.approx(real.terminals.mean(), abs=1e-9)
    assert found["copula"]["terminal"]["rate"] == pytest.approx(real.terminals.mean(), abs=0.03)
    settings = found["settings"]
    assert (settings["env"], settings["seed"], settings["heldout"]) == ("Hopper-v5", 0, None)
    assert settings["training_rows"] + settings["heldout_rows"] == settings["real_rows"] == 2000
    assert found["notes"] == {}
    assert found["machine"]["threads"] >= 1
    assert {path.name for path in out.iterdir()} == PLOTS | {"metrics.json", "report.md"}
    report = (out / "report.md").read_text()
    assert "An upsampler that was trained on all of it has seen them" in report
    assert all(f"({name})" in report for name in PLOTS)


def test_copies_are_found_out_and_fresh_rows_are_as_good_as_real(hopper_file: Path) -> None:
    whole = load_transitions(hopper_file)
    training, unseen = whole[:900], whole[900:1400]
    fresh = whole[1400 + np.random.default_rng(0).permutation(600)]
    real = Real(training, unseen, training)
    copied = compare(training[::-1], real).scores
    assert copied["synthetic"]["nearest"]["ratio"] == pytest.approx(0, abs=1e-5)
    assert copied["synthetic"]["nearest"]["copies"] == 1
    assert copied["synthetic"]["ks"]["mean"] == pytest.approx(copied["floor"]["ks"]["mean"])
    assert copied["synthetic"]["c2st"]["auc"] == pytest.approx(0.5, abs=0.1), "copies look real: only their distance tells"
    assert copied["baseline"]["c2st"]["auc"] > 0.8
    new = compare(fresh, real).scores
    assert new["synthetic"]["nearest"]["ratio"] == pytest.approx(1, abs=0.15)
    assert new["synthetic"]["ks"]["mean"] == pytest.approx(new["floor"]["ks"]["mean"], rel=1)


def test_heldout_rows_may_come_from_another_file(hopper_file: Path, tmp_path: Path) -> None:
    data = load_transitions(hopper_file)
    first, second = (write(tmp_path / f"{i}.hdf5", data[1000 * i :][:1000]) for i in range(2))
    settings = {"real": str(first), "heldout": str(second), "rows": 200, "seed": 3}
    (found, _), (again, _) = (evaluate(str(hopper_file), **settings) for _ in range(2))
    assert found["settings"]["heldout"] == "1.hdf5"
    assert (found["settings"]["training_rows"], found["settings"]["heldout_rows"]) == (1000, 1000)
    assert found["synthetic"]["dynamics"] == {"mse": None}
    assert "--env can" in found["notes"]["dynamics"], "the copies do not name their environment"
    for row in ("synthetic", "floor", "baseline", "copula"):
        assert found[row] == again[row], "with a seed, all figures repeat"
    text = report(found, [])
    assert "What the upsampler was trained on is not recorded" in text
    assert "`dynamics` is not measured: the real file does not say" in text
    assert "dynamics MSE  " not in text


def test_a_d4rl_file_has_no_next_observation_of_terminals(hopper_file: Path, tmp_path: Path) -> None:
    data = load_transitions(hopper_file)
    plain = tmp_path / "d4rl.hdf5"
    with h5py.File(plain, "w") as file:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            file[name] = getattr(data, name)
    found, _ = evaluate(str(hopper_file), real=str(plain), env="Hopper-v5", rows=500)
    assert found["floor"]["dynamics"]["mse"] < 1e-9, "no row is held against another episode's first observation"
    assert found["floor"]["terminal"]["rate"] > 0.03
    assert found["floor"]["dynamics"]["terminal_recall"] == 1
    assert found["settings"]["real_episodes"] > 80


def test_the_report_says_what_the_upsampler_was_trained_on(hopper_file: Path, tmp_path: Path) -> None:
    source = {"model": "0123", "seed": 1, "real": {"path": f"data/{hopper_file.name}", "rows": 2000, "source": None}}
    synth = write(tmp_path / "synth.hdf5", load_transitions(hopper_file)[:500], source=json.dumps(source))
    found, _ = evaluate(str(synth), real=str(hopper_file), rows=100)
    assert found["settings"]["upsampler"]["trained_on"] == hopper_file.name
    assert "The upsampler was trained on 2000 rows of that file and may have seen them" in report(found, [])


def test_mistakes_are_one_line(
    cheetah_file: Path, hopper_file: Path, coinrun_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def complaint(synth: Path, real: Path, *words: str) -> str:
        assert main(["eval", "replay", str(synth), "--real", str(real), "--out", str(tmp_path / "out"), *words]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dreamloom:")]
        return line

    data = load_transitions(hopper_file)
    one = write(tmp_path / "one.hdf5", data[:5])
    broken = write(tmp_path / "nan.hdf5", data[:500])
    with h5py.File(broken, "r+") as file:
        file["actions"][7] = np.nan
    single = write(tmp_path / "single.hdf5", load_transitions(cheetah_file)[:600])
    assert "(11,) observations and (3,) actions a row are not those of the real data" in complaint(hopper_file, cheetah_file)
    assert "has 5 transitions, at least 100" in complaint(one, hopper_file)
    assert "nan.hdf5: a0 is nan in some row" in complaint(broken, hopper_file)
    assert "single.hdf5: its 600 rows are one episode" in complaint(cheetah_file, single)
    assert "pixels are not compared" in complaint(cheetah_file, coinrun_file)
    assert "those of Walker2d-v5 have (17,)" in complaint(hopper_file, hopper_file, "--env", "Walker2d-v5")
    assert "--rows 5: must be at least 100" in complaint(hopper_file, hopper_file, "--rows", "5")
    assert "no such file" in complaint(tmp_path / "none.hdf5", hopper_file)
    assert not (tmp_path / "out").exists()
