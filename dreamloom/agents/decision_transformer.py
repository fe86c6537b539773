"""Decision Transformer from pixels (Chen et al. 2021), and BCT, which is the same without returns (Mediratta et al. 2023).

A causal transformer reads return-to-go, frame and action of the last steps and says the next action; acting is asking for a
high return. Apart from the paper: places in the window are rotary, no learned embedding of the step of the episode; the encoder
is that of the other learners.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from dreamloom.agents.agent import Agent, Player
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.frames import FrameBuffer, Windows
from dreamloom.agents.networks import of_action
from dreamloom.agents.units import Units
from dreamloom.agents.vision import Latents, Vision, to_unit
from dreamloom.nn.attention import Attention, rotation
from dreamloom.nn.transformer import GELU


class DecisionTransformer(Agent):
    """Decision Transformer, or BCT with `returns` false. One seed: a transformer gains nothing from seeds side by side.

    Args:
        seeds: must be 1.
        context: steps that are looked back on.
        returns: whether the policy is told the return to come.
        target_return: that it is asked for when it acts; None for the highest of the data.
        lr: learning rate.
        width: of the transformer.
        depth: blocks.
        heads: of attention.
        vision: what frames are looked at with.
        observation_size: of the latents; `prepare` finds it out.
        action_size: likewise.
        discrete_actions: likewise.
    """

    kinds = ("continuous", "discrete")
    target: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        vision: Vision | Latents,
        seeds: int = 1,
        context: int = 20,
        returns: bool = True,
        target_return: float | None = None,
        lr: float = 1e-4,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        observation_size: int | None = None,
        action_size: int | None = None,
        discrete_actions: bool | None = None,
    ):
        super().__init__(seeds=seeds, vision=vision)
        if seeds != 1 or not isinstance(vision, Vision):
            raise ValueError("a Decision Transformer has one seed, and a Vision that learns with it")
        self.context, self.returns, self.target_return = context, returns, target_return
        self.lr, self.width, self.depth, self.heads = lr, width, depth, heads
        self.register_buffer("target", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.size(observation_size, action_size, discrete_actions)

    def build(self, observation_size: int, action_size: int) -> dict[str, float]:
        assert isinstance(self.vision, Vision)
        shape: dict[str, Any] = {"width": self.width, "depth": self.depth, "heads": self.heads, "returns": self.returns}
        self.actor = SequencePolicy(self.vision.trunks(), observation_size, action_size, discrete=self.discrete, **shape)
        return {"actor": self.lr}

    def prepare(self, data: Any, *, seed: int = 0, actions: int = 0, units: Units | None = None) -> None:
        super().prepare(data, seed=seed, actions=actions, units=units)
        best = data.returns[data.episodes.first.long().unique()].max()
        self.scale.copy_(data.returns.abs().max().clamp(min=1e-6))
        self.target.copy_(best if self.target_return is None else best.new_tensor(self.target_return))

    def batch(self, buffer: Buffer | FrameBuffer, batch_size: int, generators: Sequence[torch.Generator]) -> Windows:
        assert isinstance(buffer, FrameBuffer)
        return buffer.windows(batch_size, self.context, generators)

    def update(self, batch: Windows) -> dict[str, Float[Tensor, "s"]]:  # type: ignore[override]
        self.updates += 1
        actions = batch.actions[0] if self.discrete else self._to_unit(batch.actions[0])
        returns, real = batch.returns[0] / self.scale, batch.real[0]
        features = self.see(batch.observations[0])

        def said(seen: Tensor) -> Tensor:
            return self.actor(seen, actions, returns, real)

        self._plain = None
        if self.vision is not None and self.vision.drac:
            with torch.no_grad():
                self._plain = self._without_augmentation(batch)
        bc_loss = self.actor.loss(said(features), actions, real)
        steady = self.steady(said, features, policy=self.discrete).mean()  # over windows
        self.descend("actor", (bc_loss + steady)[None])
        return {"bc_loss": bc_loss.detach()[None]}

    def _without_augmentation(self, batch: Any) -> Tensor:
        if batch.plain is None:
            raise ValueError("DrAC's regulariser compares augmented frames with plain ones: it needs data.augment")
        return self.see(batch.plain[0])

    def see(self, frames: Shaped[Tensor, "b t c h w"]) -> Float[Tensor, "b t f"]:
        """Features of the frames of windows."""
        assert self.vision is not None
        return self.vision(to_unit(frames.flatten(0, 1))[None])[0].unflatten(0, frames.shape[:2])

    def act(self, observations: Shaped[Tensor, "s n c h w"]) -> Shaped[Tensor, "s n ..."]:
        """First actions of an episode; `player` goes on from there."""
        n = observations.shape[1]
        none = torch.zeros(1, n, device=self.device)
        return self.player(n)(observations, none, torch.arange(n, device=self.device))

    def player(self, episodes: int) -> Player:
        return _Memory(self, episodes)

    def _to_unit(self, actions: Tensor) -> Tensor:
        return (actions - self.action_low) * (2 / (self.action_high - self.action_low)) - 1


class _Memory:
    """The last steps of episodes that are played side by side."""

    def __init__(self, agent: DecisionTransformer, episodes: int):
        t, device = agent.context, agent.device
        shape = (episodes, t) if agent.discrete else (episodes, t, len(agent.action_low))
        self.agent = agent
        self.features: Tensor | None = None
        self.actions = torch.zeros(shape, dtype=torch.int64 if agent.discrete else torch.float32, device=device)
        self.returns = torch.zeros(episodes, t, device=device)
        self.real = torch.zeros(episodes, t, dtype=torch.bool, device=device)
        self.left = (agent.target / agent.scale).repeat(episodes)

    @torch.no_grad()
    def __call__(self, frames: Tensor, rewards: Tensor, playing: Tensor) -> Tensor:
        agent = self.agent
        seen = agent.see(frames[0][:, None])[:, 0]
        if self.features is None:
            self.features = seen.new_zeros(*self.real.shape, seen.shape[-1])
        self.left[playing] -= rewards[0] / agent.scale
        for column, new in ((self.features, seen), (self.returns, self.left[playing]), (self.real, True), (self.actions, 0)):
            column[playing] = column[playing].roll(-1, 1)
            column[playing, -1] = new  # type: ignore[assignment]
        columns = (self.features, self.actions, self.returns, self.real)
        said = agent.actor(*(column[playing] for column in columns))[:, -1]
        chosen = said.argmax(-1) if agent.discrete else said
        self.actions[playing, -1] = chosen
        return (chosen if agent.discrete else agent.action_low + (chosen + 1) * (agent.action_high - agent.action_low) / 2)[
            None
        ]


class SequencePolicy(nn.Module):
    """A causal transformer over return, frame and action of each step; what it says of a step stands at its frame.

    Args:
        trunk: of features, (1, b, f) to (1, b, o).
        observation_size: o.
        action_size: of an action, or how many discrete ones there are.
        discrete: whether actions are discrete.
        returns: whether returns are read.
        width: d.
        depth: blocks.
        heads: of attention.
    """

    def __init__(
        self,
        trunk: nn.Module,
        observation_size: int,
        action_size: int,
        *,
        discrete: bool,
        returns: bool,
        width: int,
        depth: int,
        heads: int,
    ):
        super().__init__()
        self.trunk, self.discrete, self.head_size = trunk, discrete, width // heads
        self.frame = nn.Linear(observation_size, width)
        self.return_to_go = nn.Linear(1, width) if returns else None
        self.action = nn.Embedding(action_size, width) if discrete else nn.Linear(action_size, width)
        self.kind = nn.Parameter(torch.zeros(2 + returns, width))
        self.blocks = nn.ModuleList([_Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, action_size)

    @torch.no_grad()
    def reset(self, generators: Sequence[torch.Generator]) -> None:
        """Fresh weights: normal, deviation 0.02, as GPT-2's; the trunk as its encoder's."""
        (generator,) = generators
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                layer.weight.normal_(0, 0.02, generator=generator)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.zero_()
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
        self.kind.normal_(0, 0.02, generator=generator)
        self.trunk.reset(generators)  # type: ignore[operator]

    def forward(
        self,
        features: Float[Tensor, "b t f"],
        actions: Shaped[Tensor, "b t ..."],
        returns: Float[Tensor, "b t"],
        real: Bool[Tensor, "b t"],
    ) -> Float[Tensor, "b t k"]:
        """Log probabilities of actions, or actions in [-1, 1], from all that came before each."""
        s = self.frame(self.trunk(features.flatten(0, 1)[None])[0]).unflatten(0, features.shape[:2])
        tokens = [s, self.action(actions)]
        if self.return_to_go is not None:
            tokens = [self.return_to_go(returns[..., None]), *tokens]
        n = len(tokens)
        x = torch.stack([token + kind for token, kind in zip(tokens, self.kind, strict=True)], 2).flatten(1, 2)
        length = x.shape[1]
        places = torch.arange(length, device=x.device)
        # A padded step sees itself, so that no softmax is empty; nobody else sees it.
        seen = real.repeat_interleave(n, 1)[:, None, None] | torch.eye(length, dtype=torch.bool, device=x.device)
        mask = seen & (places[:, None] >= places)
        turn = rotation(places[None], self.head_size)
        for block in self.blocks:
            x = block(x, turn, mask)
        said = self.head(self.norm(x[:, n - 2 :: n]))
        return said.log_softmax(-1) if self.discrete else said.tanh()

    def loss(self, said: Float[Tensor, "b t k"], actions: Tensor, real: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
        """Mean negative log likelihood, or squared error, over the steps that are no padding."""
        each = -of_action(said, actions) if self.discrete else (said - actions).square().mean(-1)
        return (each * real).sum() / real.sum()


class _Block(nn.Module):
    """Attention and a feed-forward, each behind a norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x), turn, mask)
        return x + self.mlp(self.norms[1](x))
