"""Latent action model (Bruce et al. 2024, section 2.1): what changed between two frames, as one of a few codes, without labels.

The encoder sees x_1..t and x_{t+1} and gives the action a_t that turned one into the other; the decoder sees x_1..t and a_t
and predicts x_{t+1}. A code too few to carry the frame must carry what the past does not tell: the action. It differs from the
paper in a cosine codebook with dead-code resets and a diversity term (a plain one collapses), and in pooling the tokens of a
frame into one action.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from dreamloom.nn.attention import Backend
from dreamloom.nn.build import Buildable
from dreamloom.nn.frame_shape import require_frames
from dreamloom.nn.transformer import SpaceTimeTransformer
from dreamloom.tokenizers.quantizers import Quantizer, code_use


class LatentActions(nn.Module, Buildable):
    """Encoder, quantizer of a few codes, decoder.

    Args:
        quantizer: codebook over `width` features; its size is the number of latent actions.
        size: height and width of a frame, pixels.
        channels: colour channels.
        patch: side of a patch (16 in the paper).
        width: d.
        heads: attention heads.
        encoder_depth: blocks of the encoder.
        decoder_depth: blocks of the decoder.
        window: frames that time attention spans.
        time_every: time attention in every k-th block, see `SpaceTimeTransformer`.
        pairs: whether encoder and decoder see two frames and one, not the whole past. Then the past does not tell the speed,
            so the action must: holding "right" moves at once, which suits a player; False is the paper's.
        backend: attention backend.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        size: int = 64,
        channels: int = 3,
        patch: int = 16,
        width: int = 512,
        heads: int = 8,
        encoder_depth: int = 8,
        decoder_depth: int = 8,
        window: int = 16,
        time_every: int = 1,
        pairs: bool = False,
        backend: Backend = "sdpa",
    ):
        super().__init__()
        if size % patch:
            raise ValueError(f"patch must divide size, got patch {patch} and size {size}")
        self.pairs = pairs
        self.size, self.patch, self.channels = size, patch, channels
        self.grid = size // patch
        pixels = channels * patch * patch
        place = self.grid * self.grid, width
        self.encoder_in = nn.Linear(pixels, width)
        self.encoder_place = nn.Parameter(0.02 * torch.randn(place))
        self.encoder = SpaceTimeTransformer(width, encoder_depth, heads, window=window, time_every=time_every, backend=backend)
        self.quantizer = quantizer
        self.decoder_in = nn.Linear(pixels, width)
        self.decoder_place = nn.Parameter(0.02 * torch.randn(place))
        self.decoder_action = nn.Linear(width, width)
        self.decoder = SpaceTimeTransformer(width, decoder_depth, heads, window=window, time_every=time_every, backend=backend)
        self.decoder_out = nn.Linear(width, pixels)

    @property
    def actions(self) -> int:
        """Number of latent actions."""
        return self.quantizer.codes

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(c, h, w) of a frame."""
        return self.channels, self.size, self.size

    def _patches(self, frames: Tensor) -> Float[Tensor, "b t n p"]:
        require_frames(frames, self)
        return rearrange(frames * 2 - 1, "b t c (h p) (w q) -> b t (h w) (c p q)", p=self.patch, q=self.patch)

    def _quantize(self, patches: Float[Tensor, "b t n p"]) -> tuple[Tensor, Int[Tensor, "b s"], Tensor]:
        """Actions of every frame but the first: a_t stands with frame t+1, the last that it may see."""
        b = len(patches)
        if self.pairs:
            patches = rearrange([patches[:, :-1], patches[:, 1:]], "two b s n p -> (b s) two n p")
        features = self.encoder(self.encoder_in(patches) + self.encoder_place)
        pooled = reduce(features[:, 1:], "b t n d -> b t d", "mean")
        if self.pairs:
            pooled = rearrange(pooled, "(b s) 1 d -> b s d", b=b)
        return self.quantizer(pooled)

    def _predict(self, patches: Float[Tensor, "b t n p"], action: Float[Tensor, "b t d"]) -> Float[Tensor, "b t c h w"]:
        h = self.decoder_in(patches) + self.decoder_place + self.decoder_action(action)[:, :, None]
        h = self.decoder(h, mask=torch.eye(h.shape[1], dtype=torch.bool, device=h.device) if self.pairs else None)
        pixels = self.decoder_out(h).sigmoid()
        return rearrange(pixels, "b t (h w) (c p q) -> b t c (h p) (w q)", h=self.grid, c=self.channels, p=self.patch)

    def infer(self, frames: Float[Tensor, "b t c h w"]) -> Int[Tensor, "b s"]:
        """The t - 1 latent actions between t frames in [0, 1]; entry i turned frame i into frame i + 1."""
        return self._quantize(self._patches(frames))[1]

    def predict(self, frames: Float[Tensor, "b t c h w"], actions: Int[Tensor, "b t"]) -> Float[Tensor, "b t c h w"]:
        """The frame after each frame, given the action taken there."""
        return self._predict(self._patches(frames), self.quantizer.decode(actions))

    def forward(
        self, frames: Float[Tensor, "b t c h w"]
    ) -> tuple[Float[Tensor, "b s c h w"], Int[Tensor, "b s"], Float[Tensor, ""]]:
        """Predictions of frames 2..t, the t - 1 actions, and the quantizer's auxiliary loss."""
        patches = self._patches(frames)
        action, indices, auxiliary = self._quantize(patches)
        return self._predict(patches[:, :-1], action), indices, auxiliary

    def loss(self, frames: Float[Tensor, "b t c h w"]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error of the next frame plus the quantizer's own loss.

        Returns:
            The loss, and metrics: `psnr` of the next frame (dB), `copy_psnr` of repeating the last one, `code_usage`,
            `code_perplexity`, `usage_entropy` (0 for one code, 1 for equal use of all).
        """
        prediction, actions, auxiliary = self(frames)
        error = F.mse_loss(prediction, frames[:, 1:])
        use = code_use(actions, self.actions)
        metrics = {
            "mse": error.detach(),
            "psnr": -10 * error.detach().log10(),
            "copy_psnr": -10 * F.mse_loss(frames[:, :-1], frames[:, 1:]).log10(),
            "usage_entropy": use["code_perplexity"].log() / math.log(self.actions),
            **use,
        }
        return error + auxiliary, metrics
