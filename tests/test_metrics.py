"""Metrics against references of others, and against cases whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from dreamloom.eval import frechet, latent, psnr
from dreamloom.eval.protocols.genie import teacher_forced
from dreamloom.worldmodels.dynamics import Dynamics


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_is_the_mean_over_frames_and_equal_frames_have_the_cap() -> None:
    a, b = random_frames(2, 3, 3, 16, 16), random_frames(2, 3, 3, 16, 16, seed=1)
    b[0, 0] = a[0, 0]
    found = psnr.psnr(a, b)
    assert found[0, 0] == psnr.MAX_PSNR
    for i, t in [(0, 1), (1, 2)]:
        reference = peak_signal_noise_ratio(a[i, t].float(), b[i, t].float(), data_range=255.0)
        assert found[i, t].item() == pytest.approx(reference.item(), abs=1e-4)


def test_ssim_agrees_with_torchmetrics() -> None:
    a = random_frames(2, 3, 3, 16, 16)
    b = (a.float() * 0.7 + 20).to(torch.uint8)
    flat = (x.flatten(0, 1).float() for x in (a, b))
    reference = structural_similarity_index_measure(*flat, data_range=255.0)
    assert psnr.ssim(a, b).mean().item() == pytest.approx(reference.item(), abs=1e-5)


def test_delta_psnr_is_the_papers_difference() -> None:
    truth = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    found = psnr.delta_psnr(truth, truth + 1, truth + 10)  # errors 1 and 10: 20 dB apart
    assert found.tolist() == pytest.approx([20.0], abs=1e-4)


def test_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = psnr.bootstrap(values.tolist(), seed=0)
    assert found["mean"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert found == psnr.bootstrap(values.tolist(), seed=0)


@pytest.mark.parametrize("count", [6, 200])
def test_frechet_distance_agrees_with_the_matrix_square_root(count: int) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(count, 12)), random.normal(0.5, 2, size=(count + 3, 12))
    sa, sb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(sa @ sb + (1e-12 if count < 12 else 0) * np.eye(12)).real
    reference = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * root)
    found = frechet.frechet_distance(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert found == pytest.approx(reference, rel=1e-3)


def test_effnet_sees_what_is_in_a_photograph() -> None:
    """Weights in their right layers and the right normalisation: the sample photograph of a flower is a daisy's to ImageNet."""
    from sklearn.datasets import load_sample_image
    from timm.data import ImageNetInfo

    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    network = frechet.EffNet()
    best = network.net(network.prepare(photo, side=224)).argmax().item()
    assert ImageNetInfo().index_to_description(best).startswith("daisy")
    assert network(random_frames(2, 3, 64, 64)).shape == (2, 1280)


class FakeI3D(torch.nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.mean((3, 4)).flatten(1)


def test_i3d_of_the_user_is_called_as_the_published_export_is(tmp_path: Path) -> None:
    torch.jit.script(FakeI3D()).save(tmp_path / "i3d.pt")
    clips = random_frames(5, 16, 3, 8, 8)
    found = frechet.features(frechet.I3D(tmp_path / "i3d.pt"), clips, device=torch.device("cpu"), batch=2)
    assert found.shape == (5, 48)
    assert found[1, 16].item() == pytest.approx(clips[1, 0, 1].float().mean().item(), rel=1e-5)  # channel 1, frame 0
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ValueError, match="not a TorchScript file"):
        frechet.I3D(tmp_path / "text.pt")


def test_latent_scores_of_a_renaming_are_perfect_and_of_noise_are_the_baseline() -> None:
    true = torch.randint(4, (3000,), generator=torch.Generator().manual_seed(0))
    renamed, noise = torch.tensor([2, 0, 3, 1])[true], true[torch.randperm(3000, generator=torch.Generator().manual_seed(1))]
    assert latent.mutual_information(renamed, true) == pytest.approx(1)
    assert latent.mutual_information(noise, true) < 0.02
    perfect = latent.map_accuracy(renamed, true, labels=[50, 5000], seed=0)
    assert list(perfect) == ["50"]
    assert perfect["50"]["accuracy"] > 0.99
    assert perfect["50"]["majority_accuracy"] == pytest.approx(0.25, abs=0.03)


def test_usage_counts_the_actions_that_are_really_used() -> None:
    even = latent.usage(torch.arange(600) % 6, 6)
    assert (even["usage_entropy"], even["in_use"]) == (pytest.approx(1), 6)
    one = latent.usage(torch.cat([torch.zeros(999), torch.ones(1)]).long(), 6)
    assert one["usage_entropy"] < 0.01
    assert one["in_use"] == 1


class CopyingDynamics(Dynamics):
    """Sure that nothing changes."""

    def logits_on_clean(self, tokens: Tensor, masked: Tensor, actions: Tensor) -> Tensor:
        assert (masked == self.codes).all()
        return 50.0 * torch.nn.functional.one_hot(tokens[:, :-1], self.codes).float()


def test_teacher_forced_scores_changed_tokens_apart() -> None:
    tokens = torch.zeros(5, 4, 16, dtype=torch.long)
    tokens[:, 2:, :4] = 3  # a quarter of the tokens changes, in one of three steps
    found = teacher_forced(CopyingDynamics(8, 16, 2, width=16, depth=1, heads=2), tokens, torch.zeros(5, 3, dtype=torch.long))
    assert found["changed_share"] == pytest.approx(1 / 12)
    assert found["accuracy"] == pytest.approx(11 / 12)
    assert found["changed_accuracy"] == 0
    assert found["chance"] == pytest.approx(np.log(8))
