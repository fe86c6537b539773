"""Transitions of frames as transitions of latents: what diffusion multiplies, and heads are trained on."""

import numpy as np
import torch
from tqdm import tqdm

from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.vision import Latents
from dreamloom.datasets.types import Transitions

_CHUNK = 1024  # frames that are encoded at once


def latent_transitions(
    latents: Latents, buffer: FrameBuffer, *, seed: int = 0, member: int | None = None, progress: bool = True
) -> Transitions:
    """All transitions of a buffer as latents, in order of time.

    Every frame is encoded once; where the buffer augments, each transition is changed once, in a way of its own that s and s'
    share if the augmentation says so, as Guzel, Bogunovic and Parker-Holder (2025) do before they diffuse.

    Args:
        latents: on the buffer's device.
        buffer: with the stack that the learner was trained on, and one step.
        seed: of the augmentation.
        member: of the augmentations, the one to use; None for all.
        progress: whether a bar is shown.
    """
    assert buffer.n_step == 1
    if buffer.augment is None:
        z, z_next, renamed = _plain(latents, buffer, progress)
    else:
        z, z_next, renamed = _augmented(latents, buffer, torch.Generator(buffer.device).manual_seed(seed), member, progress)
    _, _, rewards, _, left, terminal = (column.cpu().numpy() for column in buffer.episodes)
    rows, last = buffer.rows.cpu().numpy(), (left == 1)
    ends = (terminal & last)[rows]
    return Transitions(
        observations=z,
        actions=renamed,
        rewards=rewards[rows].astype(np.float32),
        next_observations=np.where(ends[:, None], z, z_next),
        terminals=ends,
        timeouts=last[rows] & ~ends,
        next_known=~ends if ends.any() else None,
    )


def _plain(latents: Latents, buffer: FrameBuffer, progress: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    every = torch.arange(len(buffer.episodes.frames), device=buffer.device)
    z = np.concatenate([latents.encode(buffer.stacked(rows)).cpu().numpy() for rows in _parts(every, progress)])
    rows = buffer.rows.cpu().numpy()
    return z[rows], z[np.minimum(rows + 1, len(z) - 1)], buffer.episodes.actions.cpu().numpy()[rows]


def _augmented(
    latents: Latents, buffer: FrameBuffer, generator: torch.Generator, member: int | None, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found: list[list[np.ndarray]] = [[], [], []]
    for rows in _parts(buffer.rows, progress):
        batch = buffer.augmented(buffer.take(rows[None]), [generator], [member])
        s, actions, s_next = batch.observations[0], batch.actions[0], batch.next_observations[0]
        for column, value in zip(found, (latents.encode(s), latents.encode(s_next), actions), strict=True):
            column.append(value.cpu().numpy())
    z, z_next, renamed = (np.concatenate(column) for column in found)
    return z, z_next, renamed


def _parts(rows: torch.Tensor, progress: bool) -> tqdm:
    return tqdm(rows.split(_CHUNK), desc="encoding", unit_scale=_CHUNK, unit=" frames", leave=False, disable=not progress)
