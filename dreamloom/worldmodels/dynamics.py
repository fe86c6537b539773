"""Dynamics of a Genie (Bruce et al. 2024, section 2.1): predicts the next frame's tokens from past tokens and actions.

Two ways to see the past in training. `masked` is the paper's: one pass in which frames see the masked tokens of earlier frames.
`clean` runs every frame twice, once as it is and once masked, and masked frames see clean past frames only (complete teacher
forcing, Zhou et al. 2025, arXiv 2501.12389): exactly what the sampler sees, at twice the cost a frame. A little random noise in
the clean past (`context_noise`) makes the model forgive its own mistakes.

Action a_t turns frame t into frame t+1, so it stands with the tokens of frame t+1; the first frame has "no action".
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dreamloom.nn.attention import Backend
from dreamloom.nn.build import Buildable
from dreamloom.nn.transformer import FrameCache, SpaceTimeTransformer, causal_mask, pick
from dreamloom.worldmodels.maskgit import Order, fill_frame
from dreamloom.worldmodels.world import Generators

Injection = Literal["add", "prepend", "adaln"]
Part = tuple[int, int]


class Dynamics(nn.Module, Buildable):
    """MaskGIT transformer over frames of tokens.

    Args:
        codes: codebook size k of the tokenizer.
        tokens: tokens n of a frame.
        actions: number of actions.
        width: d.
        depth: blocks.
        heads: attention heads.
        window: frames that time attention spans.
        time_every: time attention in every k-th block, see `SpaceTimeTransformer`.
        injection: how actions enter: `add` to each token of the frame (the paper), `prepend` a token of their own to the
            frame, or `adaln` modulation of every block.
        past: what a masked frame sees of earlier frames in training: `clean` or `masked` tokens.
        context_noise: the largest share of the clean past that is replaced by random tokens, drawn for each clip.
        mask_low: lower bound of the mask rate, U(mask_low, 1); 0.5 in the paper.
        backend: attention backend.
    """

    def __init__(
        self,
        codes: int = 1024,
        tokens: int = 256,
        actions: int = 6,
        *,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        window: int = 16,
        time_every: int = 1,
        injection: Injection = "add",
        past: Literal["clean", "masked"] = "clean",
        context_noise: float = 0.0,
        mask_low: float = 0.5,
        backend: Backend = "sdpa",
    ):
        super().__init__()
        self.codes, self.tokens, self.actions = codes, tokens, actions
        self.injection, self.past, self.context_noise, self.mask_low = injection, past, context_noise, mask_low
        self.token_in = nn.Embedding(codes + 1, width)  # the last one stands for "masked"
        self.action_in = nn.Embedding(actions + 1, width)  # the last one stands for "no action"
        self.place = nn.Parameter(0.02 * torch.randn(tokens, width))
        nn.init.normal_(self.token_in.weight, std=0.5)
        nn.init.normal_(self.action_in.weight, std=0.5)
        self.transformer = SpaceTimeTransformer(
            width, depth, heads, window=window, time_every=time_every, modulated=injection == "adaln", backend=backend
        )
        self.head = nn.Linear(width, codes)

    @property
    def no_action(self) -> int:
        """Index that stands for "no action", as before the first frame."""
        return self.actions

    @property
    def _inputs(self) -> int:
        return self.tokens + (self.injection == "prepend")

    def _embed(self, tokens: Int[Tensor, "b t n"], actions: Int[Tensor, "b t"]) -> tuple[Tensor, Tensor | None]:
        """Features and, for adaLN, the condition; actions[t] led to frame t."""
        x, action = self.token_in(tokens) + self.place, self.action_in(actions)
        if self.injection == "add":
            return x + action[:, :, None], None
        if self.injection == "prepend":
            return torch.cat([action[:, :, None], x], dim=2), None
        return x, action

    def _own(self, h: Tensor) -> Float[Tensor, "b t n d"]:
        return h[:, :, -self.tokens :]

    def _logits(self, h: Float[Tensor, "... d"]) -> Float[Tensor, "... k"]:
        """float32, also where autocast computes the features in bfloat16."""
        with torch.autocast(h.device.type, enabled=False):
            return self.head(h.to(self.head.weight.dtype)).float()

    def leading(self, actions: Int[Tensor, "b s"]) -> Int[Tensor, "b t"]:
        """Actions taken at frames 0..t-2, moved to the frames 0..t-1 that they led to."""
        return F.pad(actions, (1, 0), value=self.no_action)

    def logits(self, tokens: Int[Tensor, "b t n"], actions: Int[Tensor, "b s"]) -> Float[Tensor, "b t n k"]:
        """Logits of every token of every frame in one causal pass over tokens that may be masked (code `codes`).

        Args:
            tokens: t frames.
            actions: the t - 1 actions between them.
        """
        x, condition = self._embed(tokens, self.leading(actions))
        return self._logits(self._own(self.transformer(x, condition=condition)))

    def logits_on_clean(
        self, tokens: Int[Tensor, "b t n"], masked: Int[Tensor, "b t n"], actions: Int[Tensor, "b s"]
    ) -> Float[Tensor, "b s n k"]:
        """Logits of frames 1..t-1, each seen masked, with its past seen as `tokens`."""
        t = tokens.shape[1]
        led = self.leading(actions)
        x, condition = self._embed(torch.cat([tokens, masked[:, 1:]], 1), torch.cat([led, led[:, 1:]], 1))
        positions = torch.arange(t, device=x.device)
        h = self.transformer(
            x,
            condition=condition,
            positions=torch.cat([positions, positions[1:]]),
            mask=clean_past_mask(t, self.transformer.window, x.device),
        )
        return self._logits(self._own(h[:, t:]))

    def mask(
        self, shape: torch.Size, generator: torch.Generator | None, device: torch.device, part: Part = (0, 1)
    ) -> Bool[Tensor, "b t n"]:
        """Which tokens are hidden: the rate is drawn for each clip (for each frame where the past is clean), never frame 0."""
        b, t, n = shape
        rate = _uniform((b, t if self.past == "clean" else 1, 1), generator, device, part)
        rate = self.mask_low + (1 - self.mask_low) * rate
        hidden = _uniform((b, t, n), generator, device, part) < rate
        hidden[:, 0] = False
        return hidden

    def _noised(self, tokens: Tensor, generator: torch.Generator | None, part: Part) -> Tensor:
        if not self.context_noise:
            return tokens
        b, device = len(tokens), tokens.device
        rate = self.context_noise * _uniform((b, 1, 1), generator, device, part)
        wrong = _uniform(tokens.shape, generator, device, part) < rate
        other = (self.codes * _uniform(tokens.shape, generator, device, part)).long()
        return torch.where(wrong, other, tokens)

    def loss(
        self,
        tokens: Int[Tensor, "b t n"],
        actions: Int[Tensor, "b s"],
        generator: torch.Generator | None = None,
        *,
        part: Part = (0, 1),
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Cross-entropy (nats) of masked tokens, a mean over clips of their means; chance is ln(codes).

        Args:
            tokens: t frames.
            actions: the t - 1 actions between them.
            generator: randomness of masks and noise.
            part: (i, of) where the batch is one of several equal parts: the mean of their losses is the whole's loss.

        Returns:
            The loss, and metrics: `accuracy`, `changed_accuracy` on tokens that differ from the frame before.
        """
        hidden = self.mask(tokens.shape, generator, tokens.device, part)
        masked = tokens.masked_fill(hidden, self.codes)
        if self.past == "clean":
            logits = self.logits_on_clean(self._noised(tokens, generator, part), masked, actions)
        else:
            logits = self.logits(masked, actions)[:, 1:]
        hidden, target = hidden[:, 1:], tokens[:, 1:]
        # Of all tokens, though only hidden ones count: picking these out would wait for the GPU.
        entropy = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
        loss = (hidden / (len(hidden) * hidden.sum((1, 2), keepdim=True)) * entropy).sum()
        right = (hidden & (logits.detach().argmax(-1) == target)).float()
        changed = (hidden & (target != tokens[:, :-1])).float()
        return loss, {
            "cross_entropy": loss.detach(),
            "accuracy": right.sum() / hidden.sum(),
            "changed_accuracy": (right * changed).sum() / changed.sum().clamp_min(1),
        }

    def empty_cache(self, b: int) -> FrameCache:
        """The cache before the first frame of b worlds."""
        return self.transformer.empty_cache(b, self._inputs)

    def _stream(
        self, tokens: Int[Tensor, "b n"], led: Int[Tensor, "b"], opened: FrameCache, wanted: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m d"]:
        x, condition = self._embed(tokens[:, None], led[:, None])
        if wanted is None:
            return self._own(self.transformer.stream(x, opened, condition=condition))[:, 0]
        return self.transformer.stream(x, opened, condition=condition, wanted=wanted + self._inputs - self.tokens)[:, 0]

    def _remember(self, tokens: Int[Tensor, "b n"], led: Int[Tensor, "b"], opened: FrameCache) -> FrameCache:
        x, condition = self._embed(tokens[:, None], led[:, None])
        self.transformer.remember(x, opened, condition=condition)
        return opened.closed()

    def observe(self, tokens: Int[Tensor, "b n"], led: Int[Tensor, "b"], cache: FrameCache) -> FrameCache:
        """Takes a finished frame, and the action that led to it, into the cache."""
        return self._remember(tokens, led, cache.opened())

    def imagine(
        self,
        led: Int[Tensor, "b"],
        cache: FrameCache,
        *,
        steps: int = 8,
        temperature: float = 1.0,
        order: Order = "random",
        generator: Generators = None,
    ) -> tuple[Int[Tensor, "b n"], FrameCache, Float[Tensor, "b"]]:
        """Draws the next frame and takes it into the cache; each refinement step computes that one frame only.

        Args:
            led: action that leads to the new frame.
            cache: past frames; not changed.
            steps: refinement steps.
            temperature: of the codes; 0 is greedy.
            order: of unmasking.
            generator: randomness.

        Returns:
            The frame's tokens, the cache, and how unsure the model was, see `fill_frame`.
        """
        opened = cache.opened()
        tokens, entropy = fill_frame(
            lambda filled, wanted: self._logits(self._stream(filled, led, opened, wanted)),
            b=len(led),
            n=self.tokens,
            mask_code=self.codes,
            steps=steps,
            temperature=temperature,
            order=order,
            generator=generator,
            device=led.device,
        )
        return tokens, self._remember(tokens, led, opened), entropy

    def imagine_uncached(
        self,
        past: Int[Tensor, "b t n"],
        actions: Int[Tensor, "b t"],
        *,
        steps: int = 8,
        temperature: float = 1.0,
        order: Order = "random",
        generator: Generators = None,
    ) -> Int[Tensor, "b n"]:
        """`imagine` the plain way: every step runs all frames again. The reference for tests and benchmarks.

        Args:
            past: t frames.
            actions: the t actions taken at them; the last leads to the new frame.
            steps: refinement steps.
            temperature: of the codes.
            order: of unmasking.
            generator: randomness.
        """

        def logits(filled: Int[Tensor, "b n"], wanted: Int[Tensor, "b m"] | None) -> Float[Tensor, "b m k"]:
            x, condition = self._embed(torch.cat([past, filled[:, None]], 1), self.leading(actions))
            h = self._own(self.transformer(x, condition=condition))[:, -1]
            return self._logits(h if wanted is None else pick(h, wanted, 1))

        return fill_frame(
            logits,
            b=len(past),
            n=self.tokens,
            mask_code=self.codes,
            steps=steps,
            temperature=temperature,
            order=order,
            generator=generator,
            device=past.device,
        )[0]


def _uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device, part: Part) -> Tensor:
    """Numbers in [0, 1) for one part of a batch: drawn for the whole batch, so that parts do not depend on their number."""
    i, of = part
    return torch.rand(of, *shape, generator=generator, device=device)[i]


def clean_past_mask(t: int, window: int, device: torch.device | None = None) -> Bool[Tensor, "s s"]:
    """Who sees whom among t clean frames followed by masked frames 1..t-1: clean past for all, and each masked frame itself."""
    causal = causal_mask(t, window, device)
    own = torch.eye(t, dtype=torch.bool, device=device)
    clean = torch.cat([causal, torch.zeros(t, t - 1, dtype=torch.bool, device=device)], 1)
    masked = torch.cat([(causal & ~own)[1:], own[1:, 1:]], 1)
    return torch.cat([clean, masked], 0)
