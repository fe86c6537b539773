"""Encoders of frames: published shapes and sizes, weights by seed, gradients, and how they are built from a file."""

import pytest
import torch

from dreamloom.nn.build import build
from dreamloom.nn.encoders import ENCODERS, DrQ, Encoder, Impala, Nature, Timm

SMALL = [
    Impala((3, 19, 16), latent_size=5, channels=(2, 3, 4)),
    DrQ((6, 20, 17), latent_size=5, channels=3),
    Nature((6, 37, 41), latent_size=5, channels=(3, 4, 5)),
    Timm((6, 32, 32), backbone="resnet10t", latent_size=5),
]


def latents(encoder: Encoder, frames: torch.Tensor) -> torch.Tensor:
    """Through the convolutions and a new trunk."""
    return encoder.trunk()(encoder(frames))


@pytest.mark.parametrize("encoder", SMALL, ids=lambda e: type(e).__name__)
class TestEveryEncoder:
    def test_gives_latents_of_the_size_it_says_and_learns(self, encoder):
        frames = torch.rand(4, *encoder.shape)
        features = encoder(frames)
        assert features.shape == (4, encoder.features)
        assert latents(encoder, frames).shape == (4, 5)
        loss = features.square().sum()
        used = [p for p in encoder.parameters() if p.requires_grad]
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, used)[-4:])

    def test_draws_the_same_weights_from_the_same_seed(self, encoder):
        states = []
        for seed in (1, 1, 2):
            encoder.reset(torch.Generator().manual_seed(seed))
            states.append({k: v.clone() for k, v in encoder.named_parameters() if v.ndim == 4})
        assert all(states[0][k].equal(states[1][k]) for k in states[0])
        assert not any(states[0][k].equal(states[2][k]) for k in states[0])

    def test_is_built_again_from_its_config(self, encoder):
        again = build(encoder.config, ENCODERS)
        again.load_state_dict(encoder.state_dict())
        frames = torch.rand(2, *encoder.shape)
        torch.testing.assert_close(again.eval()(frames), encoder.eval()(frames))


def test_published_sizes():
    """Procgen's network has 626,256 parameters, of which 16 outputs; DrQ's features are 32 x 35 x 35."""
    impala = Impala()
    assert impala.features == 32 * 8 * 8
    assert sum(p.numel() for module in (impala, impala.trunk()) for p in module.parameters()) == 626_256 - 16 * 257
    assert DrQ().features == 39_200
    assert [type(layer).__name__ for layer in DrQ().trunk()] == ["Linear", "LayerNorm", "Tanh"]


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="shape must be"):
        Impala((3, 64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 9"):
        DrQ((3, 8, 8))
    with pytest.raises(ValueError, match="at least 36 pixels"):
        Nature((3, 32, 64))
    with pytest.raises(ValueError, match="no_such"):
        Timm(backbone="no_such")
