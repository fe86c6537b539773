"""A continuous tokenizer: a masked autoencoder with a tanh bottleneck, after Dreamer 4 (Hafner, Yan and Lillicrap 2025).

Frames to a few numbers a patch in [-1, 1] and back, causal in time, streaming. Hiding patches from the encoder in training
makes latents that a diffusion model learns more easily. It differs from the paper in keeping one latent a patch, where the
paper's encoder reads latents out with tokens of their own, and in its loss, which is of pixels alone: no LPIPS.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dreamloom.nn.attention import Backend
from dreamloom.nn.build import Buildable
from dreamloom.nn.transformer import FrameCache
from dreamloom.tokenizers.patches import PatchTransformers


class Autoencoder(PatchTransformers, Buildable):
    """Encoder, bottleneck, decoder.

    Args:
        latent: numbers l a patch.
        hide: largest share of a frame's patches that is hidden from the encoder in training; drawn for each frame.
        size: height and width of a frame, pixels.
        channels: colour channels.
        patch: side of a patch; a frame has (size / patch)^2 latents.
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
        latent: int = 16,
        *,
        hide: float = 0.9,
        size: int = 64,
        channels: int = 3,
        patch: int = 8,
        width: int = 512,
        heads: int = 8,
        encoder_depth: int = 8,
        decoder_depth: int = 8,
        window: int = 16,
        time_every: int = 1,
        backend: Backend = "sdpa",
    ):
        super().__init__(
            latent,
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
        self.latent, self.hide = latent, hide
        self.hidden = nn.Parameter(0.02 * torch.randn(width))
        self.bottleneck = nn.Linear(width, latent)

    def _squeeze(self, features: Float[Tensor, "b t n d"]) -> Float[Tensor, "b t n l"]:
        return self.bottleneck(features).tanh()

    def encode(self, frames: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t n l"]:
        """Latents of frames in [0, 1]; frame t's depend on frames <= t alone."""
        return self._squeeze(self.encoder(self._encode_in(frames)))

    def decode(self, latents: Float[Tensor, "b t n l"]) -> Float[Tensor, "b t c h w"]:
        """Frames in [0, 1]; frame t depends on latents <= t alone."""
        return self._frames(self.decoder(self._decode_in(latents))).clamp(0, 1)

    def decode_frame(
        self, latents: Float[Tensor, "b 1 n l"], cache: FrameCache
    ) -> tuple[Float[Tensor, "b 1 c h w"], FrameCache]:
        """`decode` one frame at a time; start from `decoder.empty_cache(b, tokens)`."""
        opened = cache.opened()
        return self._frames(self.decoder.stream(self._decode_in(latents), opened)).clamp(0, 1), opened.closed()

    def loss(
        self, frames: Float[Tensor, "b t c h w"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error of all pixels in [0, 1], with some patches hidden while training.

        Args:
            frames: clips.
            generator: randomness of what is hidden.

        Returns:
            The loss, and metrics: `mse`, `psnr` (dB, of the clamped reconstruction).
        """
        x = self.encoder_in(self._patches(frames))
        if self.training and self.hide:
            share = self.hide * torch.rand(*x.shape[:2], 1, 1, generator=generator, device=x.device)
            away = torch.rand(*x.shape[:3], 1, generator=generator, device=x.device) < share
            x = torch.where(away, self.hidden, x)
        reconstruction = self._frames(self.decoder(self._decode_in(self._squeeze(self.encoder(x + self.encoder_place)))))
        error = F.mse_loss(reconstruction, frames)
        shown = F.mse_loss(reconstruction.detach().clamp(0, 1), frames)
        return error, {"mse": error.detach(), "psnr": -10 * shown.log10()}
