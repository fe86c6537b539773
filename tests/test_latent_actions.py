"""Latent actions: no leak from the frame that is predicted, right alignment, and codes that are the true directions."""

import pytest
import torch
from exact import float64
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_world import square_clips

from dreamloom.tokenizers.quantizers import FSQ, VQ, Quantizer
from dreamloom.train.optimizers import MuonAdamW
from dreamloom.worldmodels.latent_actions import LatentActions

few = settings(max_examples=12, derandomize=True)


def latent_actions(
    quantizer: Quantizer | None = None, *, seed: int = 0, strong: bool = True, **settings: object
) -> LatentActions:
    torch.manual_seed(seed)
    size = {"size": 8, "patch": 2, "width": 32, "heads": 2, "encoder_depth": 2, "decoder_depth": 2, "window": 3}
    model = LatentActions(quantizer or FSQ(32, [4, 4]), **(size | settings)).eval()
    for parameter in [*model.encoder.parameters(), *model.decoder.parameters()] if strong else []:
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@few
@given(st.booleans(), st.integers(1, 5), st.integers(0, 99))
@float64()
def test_an_action_sees_the_frame_it_leads_to_and_none_after(pairs: bool, changed: int, seed: int) -> None:
    """Frame i changes: actions 0..i-2 stay, in 16 worlds some action i-1 does not."""
    model, frames = latent_actions(FSQ(32, [8, 8, 8]), seed=seed, pairs=pairs), torch.rand(16, 6, 3, 8, 8)
    other = frames.clone()
    other[:, changed] = torch.rand(16, 3, 8, 8)
    before, after = model.infer(frames), model.infer(other)
    assert before.shape == (16, 5)
    assert torch.equal(before[:, : changed - 1], after[:, : changed - 1])
    assert not torch.equal(before[:, changed - 1], after[:, changed - 1])


@few
@given(st.booleans(), st.integers(1, 4), st.integers(0, 99))
def test_a_prediction_sees_neither_its_frame_nor_later_actions(pairs: bool, changed: int, seed: int) -> None:
    """Frames and actions from `changed` on are others: predictions of frames 1..changed stay."""
    model, frames, actions = latent_actions(seed=seed, pairs=pairs), torch.rand(1, 5, 3, 8, 8), torch.randint(16, (1, 5))
    other_frames, other_actions = frames.clone(), actions.clone()
    other_frames[:, changed:] = torch.rand_like(frames[:, changed:])
    other_actions[:, changed:] = (actions[:, changed:] + 1) % 16
    with torch.no_grad():
        before, after = model.predict(frames, actions), model.predict(other_frames, other_actions)
        swayed = model.predict(frames, other_actions)
    torch.testing.assert_close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], swayed[:, changed], atol=1e-4), "an action shows in the very next frame"


@pytest.mark.parametrize("pairs", [False, True])
@float64()
def test_training_predicts_from_past_frames_and_codes_alone(pairs: bool) -> None:
    """So what holds for `predict` holds for the loss: nothing but the code comes from the frame to predict."""
    model, frames = latent_actions(pairs=pairs), torch.rand(2, 5, 3, 8, 8)
    with torch.no_grad():
        prediction, actions, _ = model(frames)
        torch.testing.assert_close(prediction, model.predict(frames[:, :-1], actions), atol=1e-5, rtol=1e-5)
    assert torch.equal(actions, model.infer(frames))


@float64()
def test_pairs_forget_all_but_the_last_frame() -> None:
    model, frames = latent_actions(pairs=True), torch.rand(4, 5, 3, 8, 8)
    actions = torch.randint(16, (4, 4))
    with torch.no_grad():
        assert torch.equal(model.infer(frames)[:, 2:], model.infer(frames[:, 2:]))
        whole, cut = model.predict(frames[:, :-1], actions)[:, 2:], model.predict(frames[:, 2:-1], actions[:, 2:])
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=1e-5)


def test_a_moving_square_keeps_the_codes_in_use_and_is_told_by_them() -> None:
    """Without its warm-up this codebook collapses to one code, and the error stays where copying leaves it."""
    model = latent_actions(VQ(32, 8, latent=8, warmup=100), strong=False, pairs=True).train()
    optimizer = MuonAdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        model.loss(square_clips(64, 2, generator)[0])[0].backward()
        optimizer.step()
    frames, _ = square_clips(200, 3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        actions = model.eval().infer(frames)
        error = (model.predict(frames[:, :-1], actions) - frames[:, 1:]).square().mean()
        swapped = actions[torch.randperm(200, generator=torch.Generator().manual_seed(2))]
        swapped_error = (model.predict(frames[:, :-1], swapped) - frames[:, 1:]).square().mean()
        copied_error = (frames[:, :-1] - frames[:, 1:]).square().mean()
    assert len(actions.unique()) >= 4
    assert error < 0.35 * copied_error
    assert swapped_error > 2 * error, "what moves is told by the actions alone"


def test_metrics_are_their_definitions() -> None:
    model, frames = latent_actions(), torch.rand(2, 4, 3, 8, 8)
    with torch.no_grad():
        prediction, actions, _ = model(frames)
        loss, metrics = model.loss(frames)
    error = (prediction - frames[:, 1:]).square().mean()
    torch.testing.assert_close(loss, error)
    torch.testing.assert_close(metrics["psnr"], -10 * error.log10())
    torch.testing.assert_close(metrics["copy_psnr"], -10 * (frames[:, 1:] - frames[:, :-1]).square().mean().log10())
    p = actions.flatten().bincount(minlength=16) / actions.numel()
    torch.testing.assert_close(metrics["usage_entropy"], torch.special.entr(p).sum() / torch.tensor(16.0).log())
    assert 0 <= float(prediction.min()) <= float(prediction.max()) <= 1


def test_a_patch_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="patch 3 and size 8"):
        latent_actions(patch=3)
