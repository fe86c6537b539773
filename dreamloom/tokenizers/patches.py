"""Frames as patches between two spatiotemporal transformers: what the tokenizer and the continuous autoencoder share."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn, randn

from dreamloom.nn.attention import Backend
from dreamloom.nn.frame_shape import require_frames
from dreamloom.nn.transformer import SpaceTimeTransformer


class PatchTransformers(nn.Module):
    """Encoder and decoder; what passes between them is a subclass's.

    Args:
        latent: numbers a patch that the decoder takes.
        size: height and width of a frame, pixels.
        channels: colour channels.
        patch: side of a patch; a frame has (size / patch)^2 tokens.
        width: d of encoder and decoder.
        heads: attention heads.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        window: frames that time attention spans.
        time_every: time attention in every k-th block, see `SpaceTimeTransformer`.
        backend: attention backend.
    """

    def __init__(
        self,
        latent: int,
        *,
        size: int,
        channels: int,
        patch: int,
        width: int,
        heads: int,
        encoder_depth: int,
        decoder_depth: int,
        window: int,
        time_every: int,
        backend: Backend,
    ):
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide size, got patch {patch} and size {size}")
        self.size, self.patch, self.channels = size, patch, channels
        self.grid = size // patch
        pixels = channels * patch * patch
        self.encoder_in = nn.Linear(pixels, width)
        self.encoder_place = nn.Parameter(0.02 * randn(self.tokens, width))
        self.encoder = SpaceTimeTransformer(width, encoder_depth, heads, window=window, time_every=time_every, backend=backend)
        self.decoder_in = nn.Linear(latent, width)
        self.decoder_place = nn.Parameter(0.02 * randn(self.tokens, width))
        self.decoder = SpaceTimeTransformer(width, decoder_depth, heads, window=window, time_every=time_every, backend=backend)
        self.decoder_out = nn.Linear(width, pixels)

    @property
    def tokens(self) -> int:
        """Tokens n of a frame."""
        return self.grid * self.grid

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a frame."""
        return self.channels, self.size, self.size

    def _patches(self, frames: Tensor) -> Float[Tensor, "b t n p"]:
        require_frames(frames, self)
        return rearrange(frames * 2 - 1, "b t c (h p) (w q) -> b t (h w) (c p q)", p=self.patch, q=self.patch)

    def _frames(self, features: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t c h w"]:
        pixels = self.decoder_out(features)
        return rearrange(
            pixels, "b t (h w) (c p q) -> b t c (h p) (w q)", h=self.grid, c=self.channels, p=self.patch
        ) / 2 + 0.5  # fmt: skip

    def _encode_in(self, frames: Tensor) -> Tensor:
        return self.encoder_in(self._patches(frames)) + self.encoder_place

    def _decode_in(self, latents: Tensor) -> Tensor:
        return self.decoder_in(latents) + self.decoder_place
