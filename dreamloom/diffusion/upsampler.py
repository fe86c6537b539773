"""The upsampler: transitions in, any number of like transitions out (SynthER, Lu et al. 2023)."""

import copy
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from dreamloom.datasets.types import Transitions
from dreamloom.diffusion import conditions
from dreamloom.diffusion.conditions import HARMONICS, Ranks, Relevance, rank_features
from dreamloom.diffusion.denoisers import ResidualMLP
from dreamloom.diffusion.objectives import EDM, Network, Objective
from dreamloom.diffusion.row_noise import RowNoise, random_words
from dreamloom.diffusion.rows import NextObservation, Rows, Terminals
from dreamloom.diffusion.solvers import Denoise, SDEDPMSolver, Solver
from dreamloom.diffusion.training import adamw, batch_of_step, cosine, seed_of_step
from dreamloom.nn.build import Buildable
from dreamloom.nn.finite import LossGuard
from dreamloom.nn.graphs import Replay, set_rate, tensor_rates
from dreamloom.nn.parts import load_part

# What a checkpoint may name.
ALLOWED = frozenset(
    f"dreamloom.diffusion.{name}"
    for name in (
        "upsampler.Upsampler",
        "rows.Rows",
        "conditions.Ranks",
        "objectives.EDM",
        "objectives.FlowMatching",
        "solvers.Euler",
        "solvers.StochasticHeun",
        "solvers.SDEDPMSolver",
        "diffusers_solver.DiffusersSolver",
    )
)
Precision = Literal["float32", "bfloat16"]
DRAWN = 2**64 - 1  # the step of the row noise that draws discrete values; solvers count from 0


class Batch(NamedTuple):
    """Encoded rows: values (b, d), labels (b,) and the rank (b,) of the scalar that guides (0 where there is none)."""

    values: Tensor
    labels: Tensor
    ranks: Tensor

    def take(self, rows: Tensor) -> "Batch":
        """Some of the rows."""
        return Batch(*(column[rows] for column in self))


class Upsampler(nn.Module, Buildable):
    """A diffusion model over transitions.

    Args:
        width: of the network.
        depth: residual blocks of the network.
        objective: what the network learns; None for `EDM()`.
        solver: how rows are drawn; None for the cheapest that keeps the published quality (docs/replay.md).
        terminals: drawn from their empirical distribution, or diffused as in SynthER (see `Rows`).
        next_observation: diffused as it is, or as the change from the observation.
        max_levels: a column of at most so many distinct values is drawn, not diffused (see `Rows`).
        condition: scalar that `sample` can be guided by (see `conditions`); None for an unconditional model.
        condition_dropout: share of training rows that do not show it (Prioritized Generative Replay: 0.25).
        precision: of the network's matrix products; what is around them is float32.
        ema: decay of the averaged weights that `sample` uses.
        ema_every: training steps between two averagings.
        rows: codec of the data; `prepare` makes it, a checkpoint brings it.
        ranks: quantiles of the condition; likewise.
    """

    network: ResidualMLP
    average: ResidualMLP
    _anchor: Tensor

    def __init__(
        self,
        *,
        width: int = 512,
        depth: int = 6,
        objective: Objective | None = None,
        solver: Solver | None = None,
        terminals: Terminals = "drawn",
        next_observation: NextObservation = "absolute",
        max_levels: int = 16,
        condition: Relevance | None = None,
        condition_dropout: float = 0.25,
        precision: Precision = "float32",
        ema: float = 0.995,
        ema_every: int = 10,
        rows: Rows | None = None,
        ranks: Ranks | None = None,
    ):
        super().__init__()
        self.width, self.depth = width, depth
        self.objective, self.solver = objective or EDM(), solver or SDEDPMSolver()
        self.terminals, self.next_observation, self.max_levels = terminals, next_observation, max_levels
        self.condition, self.condition_dropout = condition, condition_dropout
        self.precision, self.ema, self.ema_every = precision, ema, ema_every
        self.rows: Rows | None = None
        self.ranks: Ranks | None = None
        self.register_buffer("_anchor", torch.zeros(0), persistent=False)  # knows the device before there are networks
        if rows is not None:
            self._build(rows, ranks)

    def _build(self, rows: Rows, ranks: Ranks | None) -> None:
        """The networks for these rows; from here on `config` names them."""
        self.rows, self.ranks = rows, ranks
        features = rows.features + (HARMONICS + 1 if ranks is not None else 0)
        self.network = ResidualMLP(rows.size, condition=features, width=self.width, depth=self.depth)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        parts = {"objective": self.objective, "solver": self.solver, "rows": rows, "ranks": ranks}
        self.config["init_args"] |= {name: part and part.config for name, part in parts.items()}

    def prepare(self, transitions: Transitions, *, seed: int = 0, relevance: np.ndarray | None = None) -> Batch:
        """Fixes columns and statistics, makes fresh networks, and returns all rows encoded, on the model's device.

        Args:
            transitions: real rows; in order of time where the condition is `return_to_go`.
            seed: of the networks' weights.
            relevance: (N,) the guiding scalar, where the condition is "given".

        Raises:
            ValueError: rows that cannot be diffused (see `Rows.of`), or a relevance that does not fit.
        """
        rows = Rows.of(
            transitions, terminals=self.terminals, next_observation=self.next_observation, max_levels=self.max_levels
        )
        values, labels = rows.encode(transitions)
        place, scalar_ranks = torch.zeros(len(labels)), None
        if self.condition is not None:
            scalars = conditions.relevance(self.condition, transitions, values, relevance, seed=seed)
            scalar_ranks = Ranks.of(scalars, labels.numpy(), len(rows.counts))
            place = torch.from_numpy(scalar_ranks.rank(scalars).astype(np.float32))
        device = self.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(rows, scalar_ranks)
        self.to(device)
        return Batch(values.to(device), labels.to(device), place.to(device))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._anchor.device

    def fit(
        self,
        transitions: Transitions,
        *,
        steps: int,
        batch_size: int = 256,
        lr: float = 3e-4,
        seed: int = 0,
        relevance: np.ndarray | None = None,
        progress: bool = True,
    ) -> "Upsampler":
        """Trains from scratch on the model's device: AdamW, a cosine down to 0, gradients clipped to norm 1, as SynthER does.

        Args:
            transitions: real rows.
            steps: of training (SynthER: 100,000).
            batch_size: rows a step (SynthER: 1024 from 800,000 rows on, else 256).
            lr: first learning rate.
            seed: of weights, batches and noise.
            relevance: (N,) the guiding scalar, where the condition is "given".
            progress: whether a bar is shown.

        Raises:
            ValueError: rows that cannot be diffused, a relevance that does not fit, or a loss that turned NaN or infinite.
        """
        data = self.prepare(transitions, seed=seed, relevance=relevance)
        optimizer = adamw(self.network.parameters(), lr=lr)
        rows = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        generator = torch.Generator(self.device)
        guard, last = LossGuard(), torch.zeros((), device=self.device)

        def descend() -> None:
            loss, _ = self.loss(data.take(rows), generator)
            last.copy_(loss.detach())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            optimizer.step()

        if self.device.type == "cuda":
            tensor_rates(optimizer)
            descend = Replay(descend, generators=[generator], optimizer=optimizer)
        factor = cosine(steps)
        self.train()
        for step in tqdm(range(steps), desc="upsampler", disable=not progress):
            rows.copy_(batch_of_step(seed, step, batch_size, len(transitions)))
            generator.manual_seed(seed_of_step(seed, step))
            set_rate(optimizer.param_groups[0], lr * factor(step))
            descend()
            guard.see(step + 1, [last])
            self.update_average(step + 1)
        guard.require_finite()
        return self.eval()

    @torch.no_grad()
    def update_average(self, step: int) -> None:
        """Moves the averaged weights towards the trained ones, after step number `step`; quickly at first."""
        if step % self.ema_every:
            return
        times = step // self.ema_every
        decay = min(self.ema, (1 + times) / (10 + times))
        for average, trained in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(trained, 1 - decay)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Loss on encoded rows, and metrics. In eval mode it is that of the averaged weights."""
        shown = torch.rand(len(batch.ranks), generator=generator, device=self.device) >= self.condition_dropout
        features = self._features(batch.labels, batch.ranks, shown.float())
        network = self._rounded(self.network if self.training else self.average)
        return self.objective.loss(network, batch.values, features, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        start: int = 0,
        solver: Solver | None = None,
        batch_size: int = 8192,
        condition: float | tuple[float, float] | None = None,
        guidance: float = 2.0,
    ) -> Transitions:
        """Rows `start` to `start + n` of the endless stream `seed`; a row's noise depends on (seed, row) alone.

        Args:
            n: number of rows.
            seed: of the stream.
            start: first row.
            solver: None for the model's own.
            batch_size: rows at a time; it changes a row no more than float arithmetic does.
            condition: what the guiding scalar should be: a value, or a range of its quantiles in the data such as (0.9, 1.0);
                None for no guidance.
            guidance: w of D = D_unconditional + w (D_conditional - D_unconditional) (Ho and Salimans 2022); 1 is plain
                conditioning, 2 is what Prioritized Generative Replay uses.

        Raises:
            ValueError: the model has not been trained, or has no condition to be guided by.
        """
        if self.rows is None:
            raise ValueError("this upsampler has not been trained: call fit first, or load one")
        if condition is not None and self.ranks is None:
            raise ValueError("this upsampler was trained without a condition: set `condition` before training")
        solver = solver or self.solver
        parts = []
        for first in range(start, start + n, batch_size):
            count = min(batch_size, start + n - first)
            labels, ranks = self._draw(seed, first, count, condition)
            noise = RowNoise(seed, first, count, self.rows.size, device=self.device)
            values = solver(self._denoiser(labels, ranks, guidance), noise)
            parts.append(self.rows.decode(values, labels))
        return Transitions.concatenate(parts)

    def _draw(
        self, seed: int, first: int, count: int, condition: float | tuple[float, float] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Numbers of the combinations of discrete values, and ranks of the condition if there is one."""
        assert self.rows is not None
        words = random_words(seed, DRAWN, first, count, blocks=1)[:, :2]
        uniform = (words >> np.uint64(11)) * 2.0**-53
        if condition is None:
            share = np.cumsum(self.rows.counts.cpu().numpy())
            labels, ranks = np.searchsorted(share / share[-1], uniform[:, 1], "right"), None
        else:
            assert self.ranks is not None
            places, labels = self.ranks.draw(condition, uniform)
            ranks = torch.from_numpy(places.astype(np.float32)).to(self.device)
        return torch.from_numpy(labels).to(self.device), ranks

    def _denoiser(self, labels: Tensor, ranks: Tensor | None, guidance: float) -> Denoise:
        """D(x; sigma) of the averaged weights for these rows, guided where there are ranks."""
        nothing = torch.zeros(len(labels), device=self.device)
        plain = self._features(labels, nothing, nothing)
        shown = None if ranks is None else self._features(labels, ranks, nothing + 1)
        network = self._rounded(self.average)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if shown is None:
                return self.objective.denoise(network, x, sigma, plain)
            conditional = self.objective.denoise(network, x, sigma, shown)
            if guidance == 1:
                return conditional
            return torch.lerp(self.objective.denoise(network, x, sigma, plain), conditional, guidance)

        return denoise

    def _rounded(self, network: Network) -> Network:
        """The network with matrix products in the precision asked for."""

        def call(x: Tensor, label: Tensor, condition: Tensor | None) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                return network(x, label, condition).to(x.dtype)

        return call

    def _features(self, labels: Tensor, ranks: Tensor, shown: Tensor) -> Tensor | None:
        """(b, c) what the network is told of each row; None where there is nothing to tell."""
        assert self.rows is not None
        codes = self.rows.codes[labels]
        if self.ranks is not None:
            return torch.cat([codes, rank_features(ranks, shown)], 1)
        return codes if codes.shape[1] else None


def load_upsampler(path: str | Path) -> Upsampler:
    """A trained upsampler, in eval mode on the CPU.

    Args:
        path: a `.ckpt` of `dreamloom fit`, or the folder of its run.

    Raises:
        ValueError: the file is not such a checkpoint, or holds another kind of model.
    """
    return load_part(path, Upsampler, ALLOWED)
