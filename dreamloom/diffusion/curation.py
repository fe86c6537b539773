"""Optional curation of generated rows: drop what lies outside the real data's range, or breaks its dynamics."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from tqdm import trange

from dreamloom.datasets.types import Transitions

RuleName = Literal["range", "dynamics"]
BATCH, CHUNK = 256, 16_384  # rows of a training step, and of one pass over many rows


class Rule(nn.Module):
    """Says which rows to drop."""

    def breaks(self, data: Transitions) -> Bool[np.ndarray, " n"]:
        """True for each row that breaks the rule."""
        raise NotImplementedError


def parse_rules(text: str) -> list[RuleName]:
    """Rules from their spelling at the command line: "range", "dynamics" or "range,dynamics"; "" for none.

    Raises:
        ValueError: another word, or one twice.
    """
    words = text.split(",") if text else []
    rules = [rule for rule in get_args(RuleName) if rule in words]
    if len(rules) != len(words):
        raise ValueError(f"--curate {text!r}: expected {' or '.join(get_args(RuleName))}, or both with a comma between")
    return rules


def fit_rules(names: list[RuleName], real: Transitions, *, quantile: float, seed: int) -> dict[RuleName, Rule]:
    """The rules that real rows make, in the order in which they are applied.

    Args:
        names: of the rules.
        real: the real rows.
        quantile: see `DynamicsRule`.
        seed: see `DynamicsRule`.
    """
    rules: dict[RuleName, Rule] = {}
    for name in names:
        rules[name] = RangeRule(real) if name == "range" else DynamicsRule(real, quantile=quantile, seed=seed)
    return rules


def curate(data: Transitions, rules: Mapping[RuleName, Rule]) -> tuple[Transitions, dict[RuleName, int]]:
    """The rows that break no rule, and how many each rule dropped of those that the rules before it had kept."""
    dropped = {}
    for name, rule in rules.items():
        wrong = rule.breaks(data)
        data, dropped[name] = data[~wrong], int(wrong.sum())
    return data, dropped


class RangeRule(Rule):
    """Keeps rows whose every number lies between the least and the greatest real one of its column.

    Args:
        real: the real rows.
    """

    low: Tensor
    high: Tensor

    def __init__(self, real: Transitions):
        super().__init__()
        rows = _flat(real)
        self.register_buffer("low", rows.amin(0))
        self.register_buffer("high", rows.amax(0))

    def breaks(self, data: Transitions) -> Bool[np.ndarray, " n"]:
        rows = _flat(data)
        return ((rows < self.low.cpu()) | (rows > self.high.cpu())).any(1).numpy()


class DynamicsRule(Rule):
    """Keeps rows that an ensemble which learnt the real dynamics predicts about as well as held-out real rows.

    It predicts (change of the observation, reward) from (observation, action). The error of a row is the mean over those
    columns of the squared error of the ensemble's mean, each in units of its real standard deviation. Rows that do not know
    their next observation cannot be judged and are kept.

    Args:
        real: the real rows.
        members: networks of the ensemble.
        width: of their two hidden layers.
        quantile: of the errors of held-out real rows (a tenth, at most 20,000); a greater error breaks the rule.
        steps: of training.
        seed: of training and of the choice of held-out rows.

    Raises:
        ValueError: fewer than 100 real rows to learn from.
    """

    mean: Tensor
    std: Tensor
    threshold: Tensor

    def __init__(
        self,
        real: Transitions,
        *,
        members: int = 3,
        width: int = 256,
        quantile: float = 0.99,
        steps: int = 4000,
        seed: int = 0,
    ):
        super().__init__()
        real = real if real.next_known is None else real[real.next_known]
        if len(real) < 100:
            raise ValueError(f"curation by dynamics needs at least 100 real rows that know what followed, got {len(real)}")
        self.discrete = int(real.actions.max()) + 1 if real.actions.ndim == 1 else 0
        inputs, targets = self._inputs(real), _targets(real)
        self.register_buffer("mean", torch.cat([inputs, targets], 1).mean(0))
        self.register_buffer("std", torch.cat([inputs, targets], 1).std(0).clamp(min=1e-6))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.members = nn.ModuleList(_mlp(inputs.shape[1], width, targets.shape[1]) for _ in range(members))
            held = min(len(real) // 10, 20_000)
            heldout, seen = torch.randperm(len(real)).split([held, len(real) - held])
            self._fit(inputs[seen], targets[seen], steps)
        # numpy's quantile, since torch's refuses large inputs
        errors = self._errors(inputs[heldout], targets[heldout])
        self.register_buffer("threshold", torch.tensor(np.quantile(errors.numpy(), quantile), dtype=torch.float32))

    def breaks(self, data: Transitions) -> Bool[np.ndarray, " n"]:
        """Which rows the ensemble finds wrong."""
        errors = self._errors(self._inputs(data), _targets(data))
        wrong = (errors > self.threshold.cpu()).numpy()
        return wrong if data.next_known is None else wrong & data.next_known

    def _inputs(self, data: Transitions) -> Float[Tensor, "n i"]:
        actions = torch.from_numpy(data.actions)
        if self.discrete:
            actions = actions[:, None] == torch.arange(self.discrete)  # zeros for an action that no real row has
        return torch.cat([torch.from_numpy(data.observations), actions.float()], 1)

    def _fit(self, inputs: Tensor, targets: Tensor, steps: int) -> None:
        optimizer = torch.optim.AdamW(self.members.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in trange(steps, desc="dynamics for curation", unit=" steps", leave=False):
            batches = torch.randint(len(inputs), (len(self.members), BATCH))  # each member sees rows of its own
            losses = [
                self._error(inputs[rows], targets[rows], [member]).mean()
                for rows, member in zip(batches, self.members, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
        self.requires_grad_(False)

    def _errors(self, inputs: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        device, pieces = self.mean.device, zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True)
        errors = [self._error(i.to(device), t.to(device), self.members).cpu() for i, t in pieces]
        return torch.cat(errors)

    def _error(self, inputs: Float[Tensor, "n i"], targets: Float[Tensor, "n t"], members: Iterable[nn.Module]) -> Tensor:
        x, y = ((torch.cat([inputs, targets], 1) - self.mean) / self.std).split([inputs.shape[1], targets.shape[1]], 1)
        predicted = torch.stack([member(x) for member in members]).mean(0)
        return (predicted - y).square().mean(1)


def _flat(data: Transitions) -> Shaped[Tensor, "n d"]:
    """Every number of a row but its flags."""
    columns = (data.observations, data.actions, data.rewards, data.next_observations)
    return torch.from_numpy(np.concatenate([c if c.ndim > 1 else c[:, None] for c in columns], 1))


def _targets(data: Transitions) -> Float[Tensor, "n t"]:
    change = data.next_observations - data.observations
    return torch.from_numpy(np.concatenate([change, data.rewards[:, None]], 1))


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)
