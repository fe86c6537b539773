"""Tokenizer and quantizers: causal, equal frame by frame, no dead codes, and able to learn one clip by heart."""

import math

import pytest
import torch
from exact import float64
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamloom.tokenizers.quantizers import FSQ, VQ, Quantizer, code_use
from dreamloom.tokenizers.st_vivit import Tokenizer

few = settings(max_examples=12, derandomize=True)


def quantizer(kind: str, width: int = 16) -> Quantizer:
    return VQ(width, 32, latent=4) if kind == "vq" else FSQ(width, [5, 5])


def tokenizer(kind: str = "fsq", seed: int = 0, **settings: object) -> Tokenizer:
    """8 x 8 frames, 4 tokens each, in eval mode; weights large enough that the past matters."""
    torch.manual_seed(seed)
    defaults = {"size": 8, "patch": 4, "width": 16, "heads": 2, "encoder_depth": 2, "decoder_depth": 2, "window": 3}
    model = Tokenizer(quantizer(kind), **(defaults | settings)).eval()
    for parameter in [*model.encoder.parameters(), *model.decoder.parameters()]:
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@few
@given(st.sampled_from(["vq", "fsq"]), st.integers(1, 2), st.integers(0, 5), st.integers(0, 99))
@float64()
def test_a_changed_frame_changes_no_token_and_no_picture_before_it(kind: str, every: int, changed: int, seed: int) -> None:
    model = tokenizer(kind, seed, time_every=every)
    frames, tokens = torch.rand(1, 6, 3, 8, 8), torch.randint(25, (1, 6, 4))
    other_frames, other_tokens = frames.clone(), tokens.clone()
    other_frames[:, changed] = torch.rand(1, 3, 8, 8)
    other_tokens[:, changed] = (tokens[:, changed] + 1) % 25
    with torch.no_grad():
        assert torch.equal(model.encode(frames)[:, :changed], model.encode(other_frames)[:, :changed])
        before, after = model.decode(tokens), model.decode(other_tokens)
    torch.testing.assert_close(before[:, :changed], after[:, :changed])
    assert not torch.allclose(before[:, changed], after[:, changed], atol=1e-4)


def test_the_past_is_seen_by_encoder_and_decoder() -> None:
    model, frames = tokenizer(), torch.rand(8, 2, 3, 8, 8)
    other = frames.clone()
    other[:, 0] = 1 - frames[:, 0]
    tokens, other_tokens = model.encode(frames), model.encode(other)
    assert not torch.equal(tokens[:, 1], other_tokens[:, 1])
    mixed = torch.stack([other_tokens[:, 0], tokens[:, 1]], 1)
    with torch.no_grad():
        assert not torch.allclose(model.decode(tokens)[:, 1], model.decode(mixed)[:, 1], atol=1e-4)


@few
@given(st.sampled_from(["vq", "fsq"]), st.integers(1, 2), st.integers(1, 9), st.integers(0, 99))
@float64()
def test_streaming_equals_the_whole_clip_also_past_the_window(kind: str, every: int, t: int, seed: int) -> None:
    model = tokenizer(kind, seed, time_every=every)
    frames = torch.rand(2, t, 3, 8, 8)
    seen, drawn = model.encoder.empty_cache(2, 4), model.decoder.empty_cache(2, 4)
    tokens, pictures = [], []
    with torch.no_grad():
        for i in range(t):
            new, seen = model.encode_frame(frames[:, i : i + 1], seen)
            picture, drawn = model.decode_frame(new, drawn)
            tokens.append(new)
            pictures.append(picture)
        assert torch.equal(torch.cat(tokens, 1), model.encode(frames))
        torch.testing.assert_close(torch.cat(pictures, 1), model.decode(torch.cat(tokens, 1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_decoding_indices_gives_the_quantized_features(kind: str) -> None:
    torch.manual_seed(0)
    inner = quantizer(kind).eval()
    x = torch.randn(2, 3, 4, 16, requires_grad=True)
    quantized, indices, auxiliary = inner(x)
    assert (quantized.shape, indices.shape, auxiliary.shape) == (x.shape, x.shape[:-1], ())
    assert 0 <= int(indices.min()) <= int(indices.max()) < inner.codes
    torch.testing.assert_close(inner.decode(indices), quantized, atol=1e-5, rtol=1e-5)
    inner.train()(x)[0].square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0, "gradients pass straight through"


@pytest.mark.parametrize("levels", [[2, 2, 2], [3, 3], [8, 5]])
def test_fsq_reaches_every_code_about_equally(levels: list[int]) -> None:
    torch.manual_seed(0)
    inner = FSQ(len(levels), levels).eval()
    inner.inner.project_in = torch.nn.Identity()
    indices = inner(torch.randn(8000, len(levels)))[1]
    assert inner.codes == math.prod(levels)
    use = code_use(indices, inner.codes)
    assert use["code_usage"] == 1
    assert use["code_perplexity"] > 0.6 * inner.codes


def features_in_clusters(seed: int = 0) -> Tensor:
    """256 features around 8 directions."""
    torch.manual_seed(seed)
    return torch.randn(8, 16).repeat(32, 1) * 3 + 0.1 * torch.randn(256, 16)


def collapsed(dead_below: float) -> VQ:
    """A codebook with one code near the data and seven on its far side, where nothing will choose them."""
    x = features_in_clusters()
    inner = VQ(16, 8, latent=4, dead_below=dead_below).train()
    centre = torch.nn.functional.normalize(inner.inner.project_in(x).mean(0), dim=-1)
    inner.inner.project_in.bias.data += 20 * centre
    codebook = inner.inner._codebook
    codebook.embed.data[0] = -centre
    codebook.embed.data[0, 0] = centre
    codebook.embed_avg.data.copy_(codebook.embed)
    return inner


@pytest.mark.parametrize(("dead_below", "alive"), [(0.0, False), (1.0, True)])
def test_dead_codes_are_reset(dead_below: float, alive: bool) -> None:
    inner, x = collapsed(dead_below), features_in_clusters()
    for _ in range(60):
        indices = inner(x)[1]
    assert bool(code_use(indices, 8)["code_usage"] > 0.6) == alive
    if not alive:
        assert indices.unique().numel() == 1


def test_warmup_lets_features_pass_then_starts_from_their_clusters() -> None:
    x = features_in_clusters()
    inner = VQ(16, 8, latent=4, warmup=3).train()
    passed = [inner(x) for _ in range(3)]
    assert all(int(indices.max()) == 0 and loss == 0 for _, indices, loss in passed)
    assert passed[0][0].unique(dim=0).shape[0] == 256, "nothing is quantized yet"
    for _ in range(3):
        quantized, indices, loss = inner(x)
    assert quantized.unique(dim=0).shape[0] <= 8
    assert loss > 0
    assert code_use(indices, 8)["code_usage"] > 0.7


def test_only_training_counts_as_warmup() -> None:
    inner = VQ(16, 8, latent=4, warmup=2).eval()
    for _ in range(5):
        inner(torch.randn(4, 16))
    assert int(inner.batches) == 0
    inner.train()(torch.randn(4, 16))
    assert int(inner.state_dict()["batches"]) == 1, "a resumed run goes on with its warm-up"


def test_eval_leaves_the_codebook_alone() -> None:
    inner = VQ(16, 8, latent=4).eval()
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    inner(torch.randn(64, 16))
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())


def test_code_use_is_its_definition() -> None:
    use = code_use(torch.tensor([[0, 0], [1, 1], [2, 2], [2, 2]]), 6)
    assert float(use["code_usage"]) == pytest.approx(0.5)
    assert float(use["code_perplexity"]) == pytest.approx(math.exp(0.5 * math.log(4) + 0.5 * math.log(2)))


def test_loss_is_the_error_and_the_quantizers_own() -> None:
    model, frames = tokenizer("vq").train(), torch.rand(2, 3, 3, 8, 8)
    torch.manual_seed(0)
    loss, metrics = model.loss(frames)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in metrics.values())
    assert loss > metrics["mse"], "the commitment loss comes on top"
    model.eval()
    reconstruction, _, _ = model(frames)
    shown = (reconstruction.clamp(0, 1) - frames).square().mean()
    torch.testing.assert_close(model.loss(frames)[1]["psnr"], -10 * shown.log10())


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_one_clip_is_learned_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    model = Tokenizer(quantizer(kind, 32), size=8, patch=4, width=32, heads=2, encoder_depth=1, decoder_depth=1, window=4)
    frames = torch.rand(1, 4, 3, 8, 8).round()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(250):
        optimizer.zero_grad()
        loss, _ = model.loss(frames)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert (model.decode(model.encode(frames)) - frames).square().mean() < 2e-3


def test_settings_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match="patch 3 and size 8"):
        Tokenizer(FSQ(16), size=8, patch=3)
    for levels in ([], [1, 5]):
        with pytest.raises(ValueError, match="at least one dimension and 2 levels"):
            FSQ(16, levels)
