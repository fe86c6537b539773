"""Several worlds in one table: figures stand where they belong, and only those of the same clips stand together."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_eval import tiny_genie

from dreamloom.cli import main
from dreamloom.eval.beside import read_reports, require_alike, table_of_worlds
from dreamloom.worldmodels.bundle import save_bundle

GENIE: dict[str, Any] = {
    "world": {"name": "genie", "actions": "latent", "parameters": 6_930_000, "train_cpu_s": 5100.0},
    "settings": {
        "data": "held.hdf5", "clips": 8, "context": 4, "stride": 2, "seed": 0, "inverse_data": "other", "level_range": [5, 9],
        "sampling": {"steps": 3, "temperature": 0.6, "order": "random"},
    },
    "rollout": {"psnr": {"1": 26.123, "4": 22.0, "16": 17.0, "64": None}},
    "tokenizer": {"psnr": 36.5},
    "effnet_fd": {"both": 31.04},
    "delta4_psnr": {"mean": 11.9, "low": 10.4, "high": 13.6},
    "action_swap": {"accuracy": 0.5},
    "latency_ms": {"p50": 61.7},
}  # fmt: skip


def pixels() -> dict[str, Any]:
    world = copy.deepcopy(GENIE)
    del world["tokenizer"]
    world["world"] |= {"name": "pixels", "actions": "true", "train_cpu_s": None}
    return world


def test_a_column_a_world_and_a_row_a_figure() -> None:
    rows = {
        line.split(" | ")[0].lstrip("| "): line.rstrip(" |").split(" | ")[1:]
        for line in table_of_worlds([GENIE, pixels()]).splitlines()
    }
    assert rows["actions"] == ["latent", "true"]
    assert rows["weights, M"] == ["6.93", "6.93"]
    assert rows["training, CPU minutes"] == ["85.0", "-"]
    assert rows["ceiling of codes or latents, dB"] == ["36.50", "-"]
    assert rows["rollout PSNR, 1 ahead, dB"] == ["26.12", "26.12"]
    assert rows["action-swap accuracy"] == ["50.0%", "50.0%"]
    assert "rollout PSNR, 64 ahead, dB" not in rows, "nobody has it"


@pytest.mark.parametrize(("key", "value"), [("clips", 9), ("data", "another.hdf5"), ("seed", 1), ("stride", 1)])
def test_figures_of_other_clips_do_not_stand_beside(key: str, value: object) -> None:
    other = pixels()
    other["settings"][key] = value
    with pytest.raises(ValueError, match=f"--beside: the report of pixels has {key} {value}"):
        require_alike([other, GENIE])
    require_alike([pixels(), GENIE])


def test_long_rollouts_of_other_lengths_do_not_stand_beside() -> None:
    short, long = ({**pixels(), "steady": {"rollouts": 64, "length": length}} for length in (64, 256))
    with pytest.raises(ValueError, match="the report of pixels has steady length 64, this one 256"):
        require_alike([short, long])
    require_alike([long, long])
    require_alike([GENIE, long])


def test_reports_are_read_and_a_missing_one_is_told_at_once(
    tmp_path: Path, heldout_file: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(GENIE))
    assert read_reports([tmp_path]) == [GENIE]
    save_bundle(tiny_genie(), tmp_path / "world")
    words = ["eval", "world", str(tmp_path / "world"), "--data", str(heldout_file), "--out", str(tmp_path / "report")]
    assert main([*words, "--beside", f"[{tmp_path}, {tmp_path / 'none'}]"]) == 2
    assert "none holds no metrics.json" in capsys.readouterr().err


def test_the_cost_of_a_training_goes_on_when_it_is_resumed() -> None:
    from dreamloom.tokenizers.autoencoder import Autoencoder
    from dreamloom.train.tasks import AutoencoderTask

    tasks = [AutoencoderTask(Autoencoder(size=8, width=16, heads=2, encoder_depth=1, decoder_depth=1)) for _ in "12"]
    first: dict[str, Any] = {}
    sum(float(torch.rand(64, 64).matmul(torch.rand(64, 64)).sum()) for _ in range(200))
    tasks[0].on_save_checkpoint(first)
    tasks[1].on_load_checkpoint({"train_cpu_s": 100.0})
    assert 0 < first["train_cpu_s"] < 100
    assert tasks[1].train_cpu_s > 100
