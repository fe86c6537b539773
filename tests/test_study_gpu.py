"""A study of agents from pixels on a GPU: encoders, augmentations, upsamplers and heads there, games as elsewhere."""

import json
from pathlib import Path

import pytest
from conftest import record
from test_study_pixels import RECIPE

from dreamloom import cli
from dreamloom.eval import study_report

ARMS = "{baseline: {real: 0.5}, augmented + upsampled: {real: 0.5, augmented: true, synthetic: 200}}"


@pytest.mark.gpu
def test_a_study_is_measured_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_report, "REPETITIONS", 20)
    data = record(tmp_path / "fruitbot.hdf5", game="fruitbot", levels="0:10")
    (tmp_path / "study.yaml").write_text(RECIPE.format(data=data))
    words = ["--arms", ARMS, "--updates", "20", "--pixels.head_updates", "8", "--upsampler_steps", "8", "--episodes", "1"]
    assert cli.main(["eval", "study", "-c", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), *words]) == 0
    found = json.loads((tmp_path / "out" / "study.json").read_text())
    assert found["machine"]["device"] != "cpu"
    for arms in found["results"]["procgen:fruitbot"].values():
        assert all(len(cell["returns"]) == 2 for cell in arms.values())
        assert 0 < arms["augmented + upsampled"]["latents"]["js"][0] < 1
