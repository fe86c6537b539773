"""The latter part of some cells of agents from pixels: heads on latents of a learner, real ones and those drawn after them."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dreamloom.agents.agent import Agent
from dreamloom.agents.buffer import Buffer
from dreamloom.agents.encoding import latent_transitions
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.training import train
from dreamloom.agents.vision import Latents
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.curation import curate, fit_rules, parse_rules
from dreamloom.eval.arms import Arm
from dreamloom.eval.fidelity.scores import likeness
from dreamloom.eval.study_cells import clock

if TYPE_CHECKING:
    from dreamloom.eval.study import Study

_KEPT = 0.99  # quantile of real rows' errors up to which a rule of dynamics keeps synthetic ones


@dataclass
class Players:
    """What a cell has trained: agents that play, each with its seeds, and what is known of how they came about."""

    agents: list[Agent]
    seconds: dict[str, float]
    notes: dict[str, Any] = field(default_factory=dict)


def with_heads(study: "Study", learner: str, arm: Arm, agent: Agent, buffer: FrameBuffer) -> Players:
    """Heads on latents, for each seed of the learner its own."""
    made = Players([], dict.fromkeys(("encode", "fit", "sample", "train"), 0.0))
    likenesses = []
    for number in range(agent.seeds):
        assert study.pixels is not None
        latents = Latents.of(agent, seed=number, combine=study.pixels.combine).to(buffer.device)
        began = clock()
        member = None if buffer.augment is None else buffer.augment.members(agent.seeds)[number]
        real = latent_transitions(latents, buffer, seed=study.seed + number, member=member, progress=False)
        made.seconds["encode"] += clock() - began
        parts = [real] if arm.keep else []
        if arm.synthetic:
            parts.append(_more(study, real, arm.synthetic, study.seed + number, buffer.device, made.seconds))
            likenesses.append(likeness(real, parts[-1], seed=number))
        began = clock()
        made.agents.append(_head(study, learner, latents, parts, buffer.action_size, study.seed + number))
        made.seconds["train"] += clock() - began
    if likenesses:
        made.notes["latents"] = {name: [found[name] for found in likenesses] for name in likenesses[0]}
    return made


def _more(
    study: "Study", real: Transitions, rows: int, seed: int, device: torch.device, seconds: dict[str, float]
) -> Transitions:
    """Rows of an upsampler that saw `real` alone; as many as are asked for, less what curation drops."""
    pixels = study.pixels
    assert pixels is not None
    began = clock()
    upsampler = copy.deepcopy(study.upsampler).to(device)
    upsampler.fit(real, steps=study.upsampler_steps, batch_size=study.upsampler_batch, lr=study.upsampler_lr, seed=seed)
    fitted = clock()
    wanted = None if pixels.guide is None else (pixels.guide[0], pixels.guide[1])
    made = upsampler.sample(rows, seed=seed, condition=wanted, guidance=pixels.guidance)
    rules = fit_rules(parse_rules(pixels.curate), real, quantile=_KEPT, seed=seed)
    made, _ = curate(made, rules)
    seconds["fit"] += fitted - began
    seconds["sample"] += clock() - fitted
    return made


def _head(study: "Study", learner: str, latents: Latents, parts: list[Transitions], actions: int, seed: int) -> Agent:
    assert study.pixels is not None
    head = copy.deepcopy(study.pixels.heads[learner])
    head.see_with(latents)
    head.prepare(parts, seed=seed, actions=actions)
    device = next(latents.parameters()).device
    head.to(device)
    buffer = Buffer(parts, device=device)
    train(head, buffer, updates=study.pixels.head_updates, batch_size=study.batch_size, seed=seed)
    return head
