"""The parts of `metrics.json`, each from a trial. A figure that cannot be had is None, with the reason under `notes`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dreamloom.eval import latent
from dreamloom.eval.frechet import I3D, EffNet, features, frechet_distance
from dreamloom.eval.heldout import Episodes
from dreamloom.eval.inverse import InverseModel, fit_inverse, scores
from dreamloom.eval.latency import step_latency
from dreamloom.eval.protocols import control as controls
from dreamloom.eval.protocols.genie import likeness_scores, teacher_forced, tokenizer_scores, uncached_latency
from dreamloom.eval.protocols.rollout import HORIZONS, Take, curve, drift, likeness, merged
from dreamloom.eval.protocols.trial import Trial
from dreamloom.worldmodels.labels import motions_of_actions

Section = dict[str, Any]
LATENCY_STEPS = (1, 2, 4, 8, 25)
LABELS = (10, 50, 200)
# Frames of each set of EffNet-FD, at most: what two cores do in about a minute.
FRECHET_FRAMES = 1024
# Clips to train the inverse model on, for each that is dreamed of.
INVERSE_RATIO = 8


def rollouts(trial: Trial) -> Section:
    """`rollout`, `copy_last`, `ceiling`: likeness at each horizon; `drift`; `curves` for the plot."""
    takes = {"near": trial.near} | ({} if trial.far is None else {"far": trial.far})
    shown = {name: _shown(trial, name, t) for name, t in takes.items()}
    found: Section = {row: merged([likeness(t.truth, shown[name][row]) for name, t in takes.items()]) for row in shown["near"]}
    longest = trial.far or trial.near
    found["rollout"]["clips"] = {
        str(h): len((trial.near if h <= trial.near.truth.shape[1] else longest).dream) for h in trial.reach
    }
    curves = {name: {row: curve(t.truth, frames) for row, frames in shown[name].items()} for name, t in takes.items()}
    curves["near"]["random_actions"] = curve(trial.near.truth[:, : trial.random.shape[1]], trial.swapped)
    notes = {f"rollout.psnr.{h}": _too_short(trial, h) for h in HORIZONS if h not in trial.reach}
    return {**found, "drift": drift(longest.truth, longest.dream), "curves": curves, "notes": notes}


def _shown(trial: Trial, name: str, taken: Take) -> dict[str, UInt8[Tensor, "b s c h w"]]:
    """The frames that stand beside the truth: the dream, and what bounds it from below and above."""
    rows = {"rollout": taken.dream, "copy_last": taken.copied}
    if trial.decodes:
        decoded = trial.near_decoded if name == "near" else trial.far_decoded
        rows["ceiling"] = decoded[:, trial.context :]
    return rows


def _too_short(trial: Trial, horizon: int) -> str:
    longest = trial.test.longest()
    return f"needs episodes of {trial.context + horizon} frames; the longest held-out one has {longest}"


def genie(trial: Trial) -> Section:
    """`tokenizer` and `teacher_forced`."""
    frames = trial.near.clip.frames
    if trial.genie is None:
        notes = {"teacher_forced": "the world has no tokens"}
        if not trial.decodes:
            return {"notes": {**notes, "tokenizer": "the world has no tokenizer"}}
        return {"tokenizer": likeness_scores(frames, trial.near_decoded), "notes": notes}
    return {
        "tokenizer": tokenizer_scores(trial.genie.tokenizer, frames, trial.tokens, trial.near_decoded),
        "teacher_forced": teacher_forced(trial.genie.dynamics, trial.tokens, trial.near.actions),
    }


def distances(trial: Trial, i3d: Path | None) -> Section:
    """`effnet_fd`, and `fvd` where the user brings an I3D network."""
    near, device = trial.near, trial.world.device
    rows = torch.from_numpy(np.random.default_rng(trial.seed).permutation(near.truth.shape[0] * near.truth.shape[1]))
    rows = rows[:FRECHET_FRAMES].sort().values
    try:
        network = EffNet().to(device)
    except ImportError as error:
        why = f"{error.name} is not installed: pip install 'dreamloom[eval]'"
        return {"effnet_fd": dict.fromkeys(("recon", "dream", "both", "floor")), "notes": {"effnet_fd": why}}
    other = trial.test.clips(trial.clips, near.clip.frames.shape[1], seed=trial.seed + 1).frames[:, trial.context :]
    sets = {name: clips.flatten(0, 1)[rows] for name, clips in _kinds(trial).items()}
    seen = {name: features(network, frames, device=device) for name, frames in sets.items()}
    floor = features(network, other.flatten(0, 1)[rows], device=device)
    found: Section = {"effnet_fd": {**_split(seen), "floor": frechet_distance(seen["real"], floor), "frames": len(rows)}}
    if i3d is None:
        return {**found, "notes": {"fvd": "needs --i3d, a TorchScript file of an I3D network"}}
    video = I3D(i3d).to(device)
    seen = {name: features(video, clips, device=device, batch=8) for name, clips in _kinds(trial).items()}
    return {**found, "fvd": {**_split(seen), "clips": len(near.truth), "frames": near.truth.shape[1]}}


def _kinds(trial: Trial) -> dict[str, UInt8[Tensor, "b s c h w"]]:
    kinds = {"real": trial.near.truth, "dream": trial.near.dream}
    if trial.decodes:
        kinds["recon"] = trial.near_decoded[:, trial.context :]
    return kinds


def _split(seen: dict[str, Tensor]) -> dict[str, float | None]:
    """What the tokenizer loses, what the dynamics loses on top of it, and both."""
    recon = seen.get("recon")
    return {
        "recon": None if recon is None else frechet_distance(seen["real"], recon),
        "dream": None if recon is None else frechet_distance(recon, seen["dream"]),
        "both": frechet_distance(seen["real"], seen["dream"]),
    }


def control(trial: Trial, train: Episodes) -> Section:
    """`delta4_psnr`, `action_swap`, `no_op`."""
    found: Section = {"no_op": _no_op(trial), "notes": {}}
    if trial.near.truth.shape[1] >= controls.DELTA_STEP:
        found["delta4_psnr"] = {**controls.delta4(trial.near, trial.swapped, seed=trial.seed), "clips": trial.clips}
    else:
        found["delta4_psnr"] = {"mean": None, "low": None, "high": None}
        found["notes"]["delta4_psnr"] = _too_short(trial, controls.DELTA_STEP)
    length = trial.near.clip.frames.shape[1]
    if not train.affording(length):
        found["action_swap"] = {"accuracy": None}
        found["notes"]["action_swap"] = "no levels to train the inverse model on; give --inverse-data"
        return found
    inverse = _inverse(trial, train, length)
    swap = controls.action_swap(inverse, trial.near, trial.swapped, trial.random)
    real = scores(inverse, trial.near.clip.frames.to(trial.world.device), trial.near.actions.to(trial.world.device))
    found["action_swap"] = {**swap, **{f"real_{name}": value for name, value in real.items()}, "chance": 1 / trial.count}
    return found


def _inverse(trial: Trial, train: Episodes, length: int) -> InverseModel:
    clip = train.clips(INVERSE_RATIO * trial.clips, length, seed=trial.seed)
    device = trial.world.device
    actions = trial.actions(clip).to(device)
    return fit_inverse(clip.frames.to(device), actions, count=trial.count, seed=trial.seed)


def _no_op(trial: Trial) -> Section:
    near = trial.near
    action = controls.still_action(trial.world.action_names, near.clip.frames, near.actions)
    start = near.prompt[:16]
    held = trial.dream(start, torch.full((len(start), near.truth.shape[1]), action), "no-op")
    found = controls.no_op(action, start[:, -1], held, near.clip.frames, near.actions)
    return {"name": trial.world.action_names[action], **found}


def latent_actions(trial: Trial) -> Section:
    """`latent_actions`: usage, and what they tell of the true actions where the file has these."""
    if trial.latent is None:
        why = "the world takes true actions"
        return {"latent_actions": {"usage_entropy": None, "nmi": None}, "notes": {"latent_actions": why}}
    inferred = trial.near.actions.flatten()
    found: Section = {**latent.usage(inferred, trial.count), "nmi": None}
    data, true = trial.test.data, trial.near.clip.actions
    if true is None or true.ndim != 2:
        return {"latent_actions": found, "notes": {"latent_actions.nmi": "the file has no discrete actions"}}
    flat = true[:, :-1].long().flatten()
    found |= _agreement(inferred, flat, trial.seed)
    if data.action_names is not None:
        # Procgen's 15 actions are fewer motions: six of them do nothing in most games.
        motions = motions_of_actions(data.action_names, data.attrs.get("game"))
        groups = torch.from_numpy(np.unique(motions, axis=0, return_inverse=True)[1].reshape(-1))
        found["by_motion"] = _agreement(inferred, groups[flat], trial.seed)
    found["true_given_latent"] = _confusion(inferred, flat, trial.count)
    found["true_names"] = data.action_names
    return {"latent_actions": found}


def _agreement(inferred: Tensor, true: Tensor, seed: int) -> Section:
    return {
        "nmi": latent.mutual_information(inferred, true),
        "map_accuracy": latent.map_accuracy(inferred, true, labels=LABELS, seed=seed),
    }


def _confusion(inferred: Tensor, true: Tensor, count: int) -> list[list[float]]:
    table = torch.zeros(count, int(true.max()) + 1, dtype=torch.float64)
    table.index_put_((inferred, true), torch.ones(len(true), dtype=torch.float64), accumulate=True)
    return (table / table.sum(1, keepdim=True).clamp_min(1)).tolist()


def latency(trial: Trial) -> Section:
    """`latency_ms`: `p50`, `p95` of one world, by steps, and the plain way without caches where the world is a Genie."""
    world, clip = trial.world, trial.near.clip
    found = step_latency(world, clip.frames[:1].to(world.device), default=trial.sampling, steps=LATENCY_STEPS, repeats=20)
    if trial.genie is not None:
        window = trial.genie.dynamics.transformer.window - 1
        tokens, actions = trial.tokens[:1, -window - 1 : -1], trial.near.actions[:1, -window:]
        found["uncached_by_steps"] = uncached_latency(
            trial.genie.tokenizer,
            trial.genie.dynamics,
            tokens,
            actions,
            temperature=trial.effective.temperature or 0.0,
            steps=LATENCY_STEPS,
            repeats=3,
        )
        found["window"] = tokens.shape[1] + 1
    return {"latency_ms": found}


GRID_STARTS, GRID_STEPS, GRID_ACTIONS = 4, 24, 8


def grid(trial: Trial) -> dict[str, UInt8[Tensor, "b s c h w"]]:
    """Rows of the GIF: real, same actions, and each single action held (the 8 most used ones, where there are more)."""
    take: Take = trial.near
    if trial.test.affording(trial.context + GRID_STEPS):
        take = trial.take(GRID_STARTS, GRID_STEPS)
    prompt, steps = take.prompt[:GRID_STARTS], take.truth.shape[1]
    rows = {"real": take.truth[:GRID_STARTS], "same actions": take.dream[:GRID_STARTS]}
    used = torch.bincount(trial.near.actions.flatten(), minlength=trial.count)
    for action in sorted(used.argsort(descending=True, stable=True)[:GRID_ACTIONS].tolist()):
        held = torch.full((len(prompt), steps), action)
        rows[trial.world.action_names[action]] = trial.dream(prompt, held, "grid")
    return {name: torch.cat([prompt[:, -1:], frames], 1) for name, frames in rows.items()}
