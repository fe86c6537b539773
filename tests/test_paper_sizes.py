"""The models of the Genie paper's CoinRun study (appendix F), and DIAMOND's, can be said in a recipe, and have their sizes."""

from typing import Any

import pytest
import torch
import yaml

from dreamloom.nn.build import build
from dreamloom.recipes import recipe_paths
from dreamloom.worldmodels.parts import ALLOWED


def model(part: str) -> Any:
    """The recipe's model, without memory for its weights."""
    recipe = yaml.safe_load(recipe_paths()[f"recipes/coinrun/paper_{part}.yaml"].read_text())
    with torch.device("meta"):
        return build(recipe["model"]["init_args"]["model"], ALLOWED)


def weights(transformer: Any, d: int) -> int:
    """Checks that a transformer has blocks of two attentions and one feed-forward of 4 d, and counts their matrices."""
    matrices = sum(p.numel() for name, p in transformer.named_parameters() if p.ndim == 2)
    assert matrices == len(transformer.blocks) * (2 * 4 + 2 * 4) * d * d
    return matrices


def test_tokenizer() -> None:
    m = model("tokenizer")
    assert (len(m.encoder.blocks), len(m.decoder.blocks), m.encoder.width, m.decoder.width) == (8, 8, 512, 512)
    assert (m.encoder.heads, m.patch, m.tokens, m.codes, m.encoder.window) == (8, 4, 256, 1024, 16)
    assert m.quantizer.inner.project_in.out_features == 32
    assert weights(m.encoder, 512) + weights(m.decoder, 512) == 67_108_864


def test_latent_actions() -> None:
    m = model("latent_actions")
    assert (len(m.encoder.blocks), len(m.decoder.blocks), m.encoder.width, m.encoder.heads) == (8, 8, 512, 8)
    assert (m.patch, m.actions, m.pairs, m.encoder.window) == (16, 6, False, 16)
    assert m.quantizer.inner.project_in.out_features == 32
    assert weights(m.encoder, 512) + weights(m.decoder, 512) == 67_108_864


def test_dynamics() -> None:
    m = model("dynamics")
    assert (len(m.transformer.blocks), m.transformer.width, m.transformer.heads, m.transformer.window) == (12, 512, 8, 16)
    assert (m.codes, m.tokens, m.actions, m.injection, m.past, m.mask_low) == (1024, 256, 6, "add", "masked", 0.5)
    assert weights(m.transformer, 512) == 50_331_648


def test_diffusion_world() -> None:
    """DIAMOND's denoiser has 4.4 M weights with its embedding of noise and actions (Alonso et al. 2024, appendix D)."""
    m = model("diffusion_world")
    assert (m.context, m.network.fold, len(m.network.down), len(m.network.up)) == (4, 1, 4, 4)
    assert (m.sigma_data, m.offset_noise, m.P_mean, m.P_std) == (0.5, 0.3, -0.4, 1.2)
    assert sum(p.numel() for p in m.parameters()) == pytest.approx(4.4e6, rel=0.02)


@pytest.mark.parametrize(
    ("part", "batch", "steps"), [("tokenizer", 48, 300_000), ("latent_actions", 36, 200_000), ("dynamics", 36, 200_000)]
)
def test_training(part: str, batch: int, steps: int) -> None:
    recipe = yaml.safe_load(recipe_paths()[f"recipes/coinrun/paper_{part}.yaml"].read_text())
    assert (recipe["data"]["init_args"]["length"], recipe["data"]["init_args"]["batch_size"]) == (16, batch)
    assert recipe["trainer"]["max_steps"] == steps
    optimizer = recipe["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.AdamW"
    assert (optimizer["init_args"]["betas"], optimizer["init_args"]["weight_decay"]) == ([0.9, 0.9], 1e-4)
