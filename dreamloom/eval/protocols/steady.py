"""The section "steady": long rollouts of a world beside long runs of the real game, judged by the frames that they show."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from dreamloom.eval import steadiness
from dreamloom.eval.frechet import EffNet, features
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.protocols.rollout import rollout
from dreamloom.eval.protocols.sequences import Sequences, draw_sequences
from dreamloom.eval.protocols.trial import Trial
from dreamloom.eval.psnr import bootstrap

Section = dict[str, Any]
BANK, HELD = 4096, 2048  # real frames to be near to, and held-out ones that tell what is near; at most
FAR, BLANK = 0.99, 0.005  # quantiles of held-out frames: of the distance to the bank, and of the contrast
STRIP = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # frames of a rollout that the report shows
SHOWN_ACTIONS = 8


@dataclass(frozen=True)
class Yardstick:
    """What real frames look like.

    Attributes:
        network: gives features of frames; None where there is none to be had.
        bank: features of real frames.
        far: distance to the bank beyond which a frame looks like none of them; None where that cannot be told.
        blank: contrast below which a frame is blank.
        why: the reason where `far` is None.
    """

    network: nn.Module | None
    bank: Float[Tensor, "m d"]
    far: float | None
    blank: float
    why: str = ""

    def distance(self, frames: UInt8[Tensor, "n c h w"], device: torch.device) -> Float[Tensor, "n"]:
        """How far frames are from the nearest real ones."""
        assert self.network is not None
        return steadiness.nearest(features(self.network, frames, device=device), self.bank)


@dataclass(frozen=True)
class Seen:
    """What some rollouts showed.

    Attributes:
        departed: the first frame from which each is far from real frames; its length where it never is.
        distance: to the nearest real frame; NaN where it was not computed.
        blank: whether a frame is blank.
        moved: whether something moved.
        actions: what was done.
    """

    departed: Int[Tensor, "b"]
    distance: Float[Tensor, "b s"]
    blank: Bool[Tensor, "b s"]
    moved: Bool[Tensor, "b s"]
    actions: Int[Tensor, "b s"]


def make_yardstick(test: Episodes, train: Episodes, *, seed: int, device: torch.device) -> Yardstick:
    """Measures real frames.

    Args:
        test: episodes whose frames tell what is far and what is blank.
        train: episodes of other levels, whose frames are the bank.
        seed: of the frames.
        device: where features are computed.
    """
    held = test.sample(HELD, seed=seed)
    # A frame of the very least contrast is not below it, whatever the rounding.
    blank = float(steadiness.contrast(held[:, None]).flatten().double().quantile(BLANK)) - 1e-3
    none = torch.zeros(0, 1)
    if not len(train.starts):
        return Yardstick(None, none, None, blank, "needs a file of at least two levels or episodes")
    try:
        network = EffNet().to(device)
    except ImportError as error:
        return Yardstick(None, none, None, blank, f"{error.name} is not installed: pip install 'dreamloom[eval]'")
    bank = features(network, train.sample(BANK, seed=seed), device=device)
    own = steadiness.nearest(features(network, held, device=device), bank)
    return Yardstick(network, bank, float(own.double().quantile(FAR)), blank)


def look(rule: Yardstick, before: UInt8[Tensor, "b c h w"], frames: Tensor, actions: Tensor, device: torch.device) -> Seen:
    """Judges rollouts frame by frame.

    Args:
        rule: what real frames look like.
        before: the frame that each starts from.
        frames: (b, s, c, h, w) uint8, what was shown.
        actions: (b, s) what was done.
        device: where features are computed.
    """
    moved = steadiness.motion(torch.cat([before[:, None], frames], 1))
    blank = steadiness.contrast(frames) < rule.blank
    count, length = actions.shape
    if rule.far is None:
        return Seen(torch.full((count,), length), torch.full((count, length), torch.nan), blank, moved, actions)
    departed, distance = steadiness.departures(
        lambda row, column: rule.distance(frames[row, column], device), count, length, rule.far
    )
    return Seen(departed, distance, blank, moved, actions)


def steady(trial: Trial, train: Episodes, *, rollouts: int, length: int) -> tuple[Section, dict[str, Tensor]]:
    """`steady`, `steady_real`, `steady_curves`, and the strips of the report.

    Args:
        trial: the world, and the episodes to start from.
        train: real episodes of other levels.
        rollouts: with the dataset's own actions; half as many hold one action.
        length: frames of each.
    """
    device = trial.world.device
    rule = make_yardstick(trial.test, train, seed=trial.seed, device=device)
    sequences = draw_sequences(trial, rollouts, length)
    used = torch.bincount(sequences.actions.flatten(), minlength=trial.count)
    held = _held(used, max(2, rollouts // 2))[:, None].expand(-1, length)
    strips: dict[str, Tensor] = {}
    real = _joined(_real(trial, rule, sequences, strips))
    kinds = {"own actions": sequences.actions, "held": held}
    dreams = {kind: _joined(_dreams(trial, rule, sequences, kind, led, strips)) for kind, led in kinds.items()}
    moving = steadiness.moving_actions(sequences.actions, sequences.moved, trial.count)
    scores = {kind: score(seen, moving, rule, trial.seed) for kind, seen in {**dreams, "real": real}.items()}
    about = {
        "rollouts": rollouts,
        "length": length,
        "far": rule.far,
        "blank_contrast": rule.blank,
        "moving_actions": [name for name, moves in zip(trial.world.action_names, moving.tolist(), strict=True) if moves],
    }
    by_action = _by_action(dreams["held"], moving, rule, trial)
    found: Section = {
        "steady": {**about, **scores["own actions"], "held": {**scores["held"], "by_action": by_action}},
        "steady_real": scores["real"],
        "steady_curves": {} if rule.far is None else {**_curves({**dreams, "real": real}), "far": rule.far},
        "notes": {"steady.frames": rule.why} if rule.why else {},
    }
    return found, strips


def score(seen: Seen, moving: Bool[Tensor, "a"], rule: Yardstick, seed: int) -> Section:
    """`frames`, `blank` and `stuck` of some rollouts, with 95% intervals over them; None where one cannot be told."""
    shares = steadiness.stuck(seen.moved, moving[seen.actions])
    shares = shares[~shares.isnan()]
    frames = bootstrap(seen.departed, seed=seed, statistic="median") if rule.far is not None else None
    return {
        "frames": frames or dict.fromkeys(("median", "low", "high")),
        "blank": bootstrap(seen.blank.double().mean(1), seed=seed),
        "stuck": bootstrap(shares, seed=seed) if len(shares) else dict.fromkeys(("mean", "low", "high")),
    }


def _held(used: Int[Tensor, "a"], count: int) -> Int[Tensor, "b"]:
    """Actions to hold: those that the data takes, in turns."""
    taken = torch.nonzero(used)[:, 0]
    return taken[torch.arange(count) % len(taken)]


def _real(trial: Trial, rule: Yardstick, sequences: Sequences, strips: dict[str, Tensor]) -> Iterator[Seen]:
    for rows in _batches(len(sequences.actions), trial.batch, "real rollouts"):
        frames = sequences.frames(rows)
        seen = look(rule, frames[:, 0], frames, sequences.actions[rows], trial.world.device)
        if not strips:
            strips["real"] = _strip(frames[0])
        # Where an episode follows another, its first frame is no step of the game.
        yield Seen(seen.departed, seen.distance, seen.blank, sequences.moved[rows], seen.actions)


def _dreams(
    trial: Trial, rule: Yardstick, sequences: Sequences, kind: str, actions: Tensor, strips: dict[str, Tensor]
) -> Iterator[Seen]:
    names = trial.world.action_names
    for rows in _batches(len(actions), trial.batch, kind):
        prompt = sequences.prompt(rows)
        frames = rollout(
            trial.world,
            prompt,
            actions[rows],
            seed=trial.seed,
            sampling=trial.sampling,
            batch=trial.batch,
            first=int(rows[0]),
            description=kind,
        )
        for row, clip in zip(rows.tolist(), frames, strict=True):
            label = names[actions[row, 0]] if kind == "held" else kind
            if label not in strips and len(strips) < 2 + SHOWN_ACTIONS:
                strips[label] = _strip(clip)
        yield look(rule, prompt[:, -1], frames, actions[rows], trial.world.device)


def _batches(count: int, size: int, description: str) -> Iterator[Tensor]:
    yield from tqdm(torch.arange(count).split(size), desc=description, unit="batch", leave=False)


def _joined(parts: Iterator[Seen]) -> Seen:
    columns = zip(*[vars(part).values() for part in parts], strict=True)
    return Seen(*[torch.cat(column) for column in columns])


def _strip(clip: UInt8[Tensor, "s c h w"]) -> UInt8[Tensor, "n c h w"]:
    return clip[[step - 1 for step in STRIP if step <= len(clip)]]


def _by_action(seen: Seen, moving: Tensor, rule: Yardstick, trial: Trial) -> Section:
    """The three figures of each held action, without intervals: few rollouts hold it."""
    found = {}
    for action in seen.actions[:, 0].unique().tolist():
        rows = seen.actions[:, 0] == action
        shares = steadiness.stuck(seen.moved[rows], moving[seen.actions[rows]])
        found[trial.world.action_names[action]] = {
            "rollouts": int(rows.sum()),
            "frames": float(seen.departed[rows].double().quantile(0.5)) if rule.far is not None else None,
            "blank": float(seen.blank[rows].double().mean()),
            "stuck": None if shares.isnan().any() else float(shares.mean()),
        }
    return found


def _curves(kinds: dict[str, Seen]) -> Section:
    """Median and quartiles over rollouts of the distance to real frames, at the frames that were looked at in all."""
    found = {}
    for kind, seen in kinds.items():
        looked = torch.nonzero(~seen.distance.isnan().any(0))[:, 0]
        quartiles = seen.distance[:, looked].double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 0)
        rows = zip(("low", "median", "high"), quartiles.tolist(), strict=True)
        found[kind] = {"frame": (looked + 1).tolist(), **dict(rows)}
    return found
