"""The verb `encode`: a trained learner from pixels and a dataset of frames -> a dataset of its latents.

A dataset of latents is one of vectors like any other: `fit -c recipes/pixels/latents.yaml` diffuses it, `synthesize` draws more
of it, agents of vectors train on it, `eval replay` compares.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dreamloom import __version__
from dreamloom.agents.agent import load_agent
from dreamloom.agents.encoding import latent_transitions
from dreamloom.agents.frames import FrameBuffer
from dreamloom.agents.vision import Combination, Latents
from dreamloom.datasets.atomic import require_new_file
from dreamloom.datasets.hdf5 import save_hdf5
from dreamloom.datasets.store import open_dataset
from dreamloom.datasets.types import Transitions
from dreamloom.nn.parts import checkpoint_at
from dreamloom.train.generation import fingerprint


def encode(
    learner: Path,
    *,
    data: str,
    out: Path,
    levels: str | None = None,
    rows: int | None = None,
    top_return: float | None = None,
    subset_seed: int = 0,
    learner_seed: int = 0,
    combine: Combination = "sum",
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Encodes a dataset of frames with a trained learner, into one HDF5 file of its latents.

    A row is (z, a, r, z'), z = z_pi + z_Q as published (Guzel, Bogunovic and Parker-Holder 2025). Encoder and linear layers are
    frozen; each frame is encoded once. What followed a terminal row is not known, and is marked so.

    Example:
        dreamloom encode runs/pixels/coinrun/cql --data data/coinrun_mixed.hdf5 --out data/coinrun_z.hdf5

    Args:
        learner: checkpoint of a learner from pixels, the folder of its run, or of its recipe's runs (the newest counts).
        data: the frames, as `dreamloom fit` takes them.
        out: the HDF5 file to make.
        levels: level seeds LO:HI, or DGRL's train, validation or test.
        rows: draw episodes at random until they have so many rows.
        top_return: only this share of the episodes, those of the highest return.
        subset_seed: of the draw of --rows.
        learner_seed: which of the learner's seeds, counted from 0.
        combine: sum, as published, or concatenation of the latents of the learner's networks.
        device: where frames are encoded; auto is a GPU if there is one.

    Raises:
        ValueError: `out` exists, the checkpoint is no learner from pixels, or the frames do not fit it.
    """
    require_new_file(out)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = checkpoint_at(learner)
    latents = Latents.of(load_agent(checkpoint), seed=learner_seed, combine=combine).to(device)
    chosen = {"levels": levels, "rows": rows, "top_return": top_return}
    choose: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    choose |= {"seed": subset_seed} if choose else {}
    buffer = FrameBuffer(data, stack=latents.shape[0] // 3, choose=choose, device=device)
    if buffer.shape != tuple(latents.shape):
        raise ValueError(f"{data}: frames are (c, h, w) = {buffer.shape}, the learner was trained on {tuple(latents.shape)}")
    with open_dataset(data) as source:
        kept = {name: value for name, value in source.attrs.items() if name not in ("format", "format_version")}
    made = {"learner": str(checkpoint), "model": mark(latents), "combine": combine, "learner_seed": learner_seed}
    attrs = {**kept, "latents": {**made, **choose, "data": str(data), "dreamloom": __version__}}
    save_hdf5(out, parts_of(latent_transitions(latents, buffer)), attrs)
    print(f"saved {out}: {len(buffer):,} rows of {latents.latent_size} numbers")


def parts_of(rows: Transitions, size: int = 65_536) -> Iterator[Transitions]:
    """Rows piece by piece."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def mark(latents: Latents) -> str:
    """What latents of the same weights and kind have in common, and no others."""
    return fingerprint(latents, latents.config)


def require_latents(latents: Latents, attrs: Mapping[str, Any]) -> None:
    """A dataset must hold latents of this very learner, where it says whose they are.

    Args:
        latents: what agents are to act with.
        attrs: of the dataset that they are to be trained on; a synthetic one's are those of the real data.

    Raises:
        ValueError: it holds those of another, or does not say that it holds latents.
    """
    made = attrs.get("latents")
    if not isinstance(made, dict):
        raise ValueError("the first dataset holds no latents: make it with `dreamloom encode`")
    if made.get("model") != mark(latents):
        raise ValueError(
            f"the first dataset holds latents of {made.get('learner')} (learner_seed {made.get('learner_seed')}, combine "
            f"{made.get('combine')}), not of the learner given: checkpoint, learner_seed and combine must be the same"
        )
