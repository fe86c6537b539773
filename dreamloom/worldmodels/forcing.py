"""Dynamics of a world in continuous latents by shortcut forcing (Dreamer 4: Hafner, Yan and Lillicrap 2025, arXiv 2509.24527).

Each frame of a training clip has a noise level of its own (diffusion forcing, Chen et al. 2024) and a step size (shortcut
models, Frans et al. 2024), so that one causal transformer predicts clean latents in a few large steps as well as in many small
ones. At play finished frames lie in a cache, a little noised, so that the model forgives its own mistakes; a step computes one
frame.

Level tau goes from 0, noise, to 1, data: z = (1 - tau) noise + tau x. It differs from the paper in conditioning by adaLN rather
than by tokens, in asking for shortcuts in some clips only (as Frans et al. do), and in hiding the oldest actions of some clips:
a prompt does not tell its own.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dreamloom.diffusion.denoisers import NoiseEmbedding
from dreamloom.nn.attention import Backend
from dreamloom.nn.build import Buildable
from dreamloom.nn.transformer import FrameCache, SpaceTimeTransformer
from dreamloom.worldmodels.maskgit import draw
from dreamloom.worldmodels.world import Generators

Latents = Float[Tensor, "b t n l"]


class ForcingDynamics(nn.Module, Buildable):
    """Transformer over noisy latents of frames; predicts the clean ones.

    Args:
        actions: number of actions.
        tokens: latents n of a frame.
        latent: numbers l of each.
        width: d.
        depth: blocks.
        heads: attention heads.
        window: frames that time attention spans.
        time_every: time attention in every k-th block, see `SpaceTimeTransformer`.
        finest: K_max, steps from noise to data of the smallest size, a power of two.
        shortcut: share of training clips whose frames learn larger steps from smaller ones.
        context_noise: noise in finished frames at play, 1 - tau.
        forget: share of training clips whose oldest actions are hidden.
        backend: attention backend.
    """

    def __init__(
        self,
        actions: int = 15,
        *,
        tokens: int = 64,
        latent: int = 16,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        window: int = 16,
        time_every: int = 4,
        finest: int = 64,
        shortcut: float = 0.25,
        context_noise: float = 0.1,
        forget: float = 0.1,
        backend: Backend = "sdpa",
    ):
        super().__init__()
        if finest < 2 or finest & (finest - 1):
            raise ValueError(f"finest must be a power of two from 2 on, got {finest}")
        self.actions, self.tokens, self.latent, self.finest = actions, tokens, latent, finest
        self.shortcut, self.context_noise, self.forget = shortcut, context_noise, forget
        self.halvings = finest.bit_length() - 1  # step size d = 2^-halvings of the finest, 2^0 of a single step
        self.latent_in = nn.Linear(latent, width)
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.action_in = nn.Embedding(actions + 1, width)  # the last one stands for "no action"
        self.level_in = NoiseEmbedding(width)
        self.size_in = nn.Embedding(self.halvings + 1, width)
        self.transformer = SpaceTimeTransformer(
            width, depth, heads, window=window, time_every=time_every, modulated=True, backend=backend
        )
        self.head = nn.Linear(width, latent)

    @property
    def no_action(self) -> int:
        """Index that stands for an action that nobody knows, as before the first frame."""
        return self.actions

    def _embed(
        self, z: Latents, level: Float[Tensor, "b t"], halvings: Int[Tensor, "b t"], led: Int[Tensor, "b t"]
    ) -> tuple[Tensor, Tensor]:
        """Features, and what modulates the blocks."""
        condition = self.level_in(level) + self.size_in(halvings) + self.action_in(led)
        return self.latent_in(z) + self.place, condition

    def predict(
        self, z: Latents, level: Float[Tensor, "b t"], halvings: Int[Tensor, "b t"], led: Int[Tensor, "b t"]
    ) -> Latents:
        """Clean latents, those of frame t from frames <= t alone.

        Args:
            z: noisy latents.
            level: tau of each frame.
            halvings: e of each frame's step size d = 2^-e.
            led: the action that led to each frame.
        """
        x, condition = self._embed(z, level, halvings, led)
        return self.head(self.transformer(x, condition=condition)).float()

    def loss(
        self, latents: Latents, actions: Int[Tensor, "b s"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Shortcut forcing: the squared error of x at the finest steps, and of where two half steps get at larger ones.

        In x that is the paper's loss of velocities at larger steps, whose (1 - tau)^2 cancels; a ramp weighs the levels.

        Args:
            latents: clean, of t frames.
            actions: the t - 1 actions between them.
            generator: randomness.

        Returns:
            The loss, and metrics: `error` of x at the finest steps, `shortcut_error` of the larger ones.
        """
        level, halvings, noise, led = self._draw(latents, actions, generator)
        z = torch.lerp(noise, latents, level[..., None, None])
        coarse = halvings < self.halvings
        goal = self._goal(latents, z, level, halvings, led)
        error = (self.predict(z, level, halvings, led) - goal).square().mean((2, 3))
        loss = ((0.9 * level + 0.1) * error).mean()  # low levels tell little
        finest, far = (error.detach() * which for which in (~coarse, coarse))
        metrics = {
            "error": finest.sum() / (~coarse).sum().clamp_min(1),
            "shortcut_error": far.sum() / coarse.sum().clamp_min(1),
        }
        return loss, metrics

    def _goal(self, latents: Latents, z: Latents, level: Tensor, halvings: Tensor, led: Tensor) -> Latents:
        """What is to be predicted: the clean latents, where two half steps get for frames of larger steps."""
        coarse = halvings < self.halvings
        if z.is_cuda:  # of all clips: to pick some out would wait for the GPU
            return torch.where(coarse[..., None, None], self.two_half_steps(z, level, halvings, led), latents)
        goal, clips = latents.clone(), coarse.any(1)
        if clips.any():
            some = z[clips], level[clips], halvings[clips], led[clips]
            goal[clips] = torch.where(coarse[clips][..., None, None], self.two_half_steps(*some), latents[clips])
        return goal

    def _draw(
        self, latents: Latents, actions: Int[Tensor, "b s"], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Levels, step sizes and noise of a batch's frames, and the actions that led to them, some hidden."""
        (b, t), device = latents.shape[:2], latents.device
        chance, size, place, hides, until = torch.rand(5, b, t, generator=generator, device=device)
        larger = chance[:, :1] < self.shortcut
        halvings = torch.where(larger, (size * (self.halvings + 1)).long(), self.halvings)
        steps = 2.0**halvings
        level = (place * steps).floor() / steps
        hidden = torch.where(hides[:, :1] < self.forget, until[:, :1] * t, 0) > torch.arange(t, device=device)
        led = F.pad(actions, (1, 0), value=self.no_action).masked_fill(hidden, self.no_action)
        return level, halvings, torch.randn(latents.shape, generator=generator, device=device), led

    @torch.no_grad()
    def two_half_steps(
        self, z: Latents, level: Float[Tensor, "b t"], halvings: Int[Tensor, "b t"], led: Int[Tensor, "b t"]
    ) -> Latents:
        """Where z would get by the mean velocity of two steps of half the size: what a step of the whole size is to predict.

        Frames of the finest size stay where they are. Arguments as of `predict`.
        """
        coarse = halvings < self.halvings
        half = torch.where(coarse, halvings + 1, halvings)
        stride = torch.where(coarse, 0.5**half, 0.0)  # d / 2
        first = self._velocity(z, level, half, led)
        second = self._velocity(z + stride[..., None, None] * first, level + stride, half, led)
        return z + (1 - level)[..., None, None] * (first + second) / 2

    def _velocity(self, z: Latents, level: Tensor, halvings: Tensor, led: Tensor) -> Latents:
        return (self.predict(z, level, halvings, led) - z) / (1 - level)[..., None, None]

    def empty_cache(self, b: int) -> FrameCache:
        """The cache before the first frame of b worlds."""
        return self.transformer.empty_cache(b, self.tokens)

    def _one(self, z: Float[Tensor, "b n l"], level: float, halvings: int, led: Int[Tensor, "b"]) -> tuple[Tensor, Tensor]:
        """Features and condition of one frame of each world."""
        levels = torch.full_like(led, level, dtype=z.dtype)
        return self._embed(z[:, None], levels[:, None], torch.full_like(led, halvings)[:, None], led[:, None])

    def observe(
        self, x: Float[Tensor, "b n l"], led: Int[Tensor, "b"], cache: FrameCache, noise: Float[Tensor, "b n l"] | None = None
    ) -> FrameCache:
        """Takes a finished frame, and the action that led to it, into the cache.

        Args:
            x: its latents.
            led: the action.
            cache: past frames; not changed.
            noise: what blurs a dreamed frame; a real one goes in nearly as it is where None.
        """
        level = 1 - (1 / self.finest if noise is None else self.context_noise)
        z = level * x if noise is None else torch.lerp(noise, x, level)
        features, condition = self._one(z, level, self.halvings, led)
        opened = cache.opened()
        self.transformer.remember(features, opened, condition=condition)
        return opened.closed()

    def imagine(
        self,
        led: Int[Tensor, "b"],
        cache: FrameCache,
        *,
        steps: int = 4,
        temperature: float = 1.0,
        generator: Generators = None,
    ) -> tuple[Float[Tensor, "b n l"], FrameCache]:
        """Draws the next frame and takes it into the cache; each step computes that one frame only.

        Args:
            led: action that leads to the new frame.
            cache: past frames; not changed.
            steps: from noise to data; more than `finest` makes no difference.
            temperature: scales the noise that the frame begins with.
            generator: randomness.
        """
        steps = min(steps, self.finest)
        z, blur = draw((len(led), 2, self.tokens, self.latent), generator, led.device, torch.randn).unbind(1)
        z, opened = temperature * z, cache.opened()
        for i in range(steps):
            features, condition = self._one(z, i / steps, math.ceil(math.log2(steps)), led)
            x = self.head(self.transformer.stream(features, opened, condition=condition))[:, 0].float().clamp(-1, 1)
            z = z + (x - z) / (steps - i)  # velocity (x - z) / (1 - tau) for 1 / steps
        return z, self.observe(z, led, cache, blur)
