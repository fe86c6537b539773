"""ST-ViViT tokenizer (Bruce et al. 2024, section 2.1): frames to discrete codes and back, causal in time, streaming.

It differs from the paper in rotary time positions, QK-norm and a cosine codebook or FSQ; sizes are free, and appendix F's are
in `recipes/coinrun/paper_tokenizer.yaml`.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dreamloom.nn.attention import Backend
from dreamloom.nn.build import Buildable
from dreamloom.nn.transformer import FrameCache
from dreamloom.tokenizers.patches import PatchTransformers
from dreamloom.tokenizers.quantizers import Quantizer, code_use


class Tokenizer(PatchTransformers, Buildable):
    """Encoder, quantizer, decoder.

    Args:
        quantizer: codebook over `width` features.
        size: height and width of a frame, pixels.
        channels: colour channels.
        patch: side of a patch; a frame has (size / patch)^2 tokens.
        width: d of encoder and decoder.
        heads: attention heads.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder (scaling it pays more than the encoder, the paper's table).
        window: frames that time attention spans.
        time_every: time attention in every k-th block, see `SpaceTimeTransformer`.
        backend: attention backend.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        size: int = 64,
        channels: int = 3,
        patch: int = 4,
        width: int = 512,
        heads: int = 8,
        encoder_depth: int = 8,
        decoder_depth: int = 8,
        window: int = 16,
        time_every: int = 1,
        backend: Backend = "sdpa",
    ):
        super().__init__(
            width,
            size=size,
            channels=channels,
            patch=patch,
            width=width,
            heads=heads,
            encoder_depth=encoder_depth,
            decoder_depth=decoder_depth,
            window=window,
            time_every=time_every,
            backend=backend,
        )
        self.quantizer = quantizer

    @property
    def codes(self) -> int:
        """Codebook size k."""
        return self.quantizer.codes

    def forward(
        self, frames: Float[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b t c h w"], Int[Tensor, "b t n"], Float[Tensor, ""]]:
        """Reconstruction (not clamped), tokens, and the quantizer's auxiliary loss; frames in [0, 1]."""
        quantized, tokens, auxiliary = self.quantizer(self.encoder(self._encode_in(frames)))
        return self._frames(self.decoder(self._decode_in(quantized))), tokens, auxiliary

    def encode(self, frames: Float[Tensor, "b t c h w"]) -> Int[Tensor, "b t n"]:
        """Tokens of frames in [0, 1]; frame t's depend on frames <= t alone."""
        return self.quantizer(self.encoder(self._encode_in(frames)))[1]

    def decode(self, tokens: Int[Tensor, "b t n"]) -> Float[Tensor, "b t c h w"]:
        """Frames in [0, 1]; frame t depends on tokens <= t alone."""
        return self._frames(self.decoder(self._decode_in(self.quantizer.decode(tokens)))).clamp(0, 1)

    def encode_frame(self, frame: Float[Tensor, "b 1 c h w"], cache: FrameCache) -> tuple[Int[Tensor, "b 1 n"], FrameCache]:
        """`encode` one frame at a time; start from `encoder.empty_cache(b, tokens)`."""
        opened = cache.opened()
        return self.quantizer(self.encoder.stream(self._encode_in(frame), opened))[1], opened.closed()

    def decode_frame(self, tokens: Int[Tensor, "b 1 n"], cache: FrameCache) -> tuple[Float[Tensor, "b 1 c h w"], FrameCache]:
        """`decode` one frame at a time; start from `decoder.empty_cache(b, tokens)`."""
        opened = cache.opened()
        features = self.decoder.stream(self._decode_in(self.quantizer.decode(tokens)), opened)
        return self._frames(features).clamp(0, 1), opened.closed()

    def loss(self, frames: Float[Tensor, "b t c h w"]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error of pixels in [0, 1] plus the quantizer's own loss.

        Returns:
            The loss, and metrics: `psnr` (dB, of the clamped reconstruction), `code_usage`, `code_perplexity`.
        """
        reconstruction, tokens, auxiliary = self(frames)
        error = F.mse_loss(reconstruction, frames)
        shown = F.mse_loss(reconstruction.detach().clamp(0, 1), frames)
        metrics = {"mse": error.detach(), "psnr": -10 * shown.log10(), **code_use(tokens, self.codes)}
        return error + auxiliary, metrics
