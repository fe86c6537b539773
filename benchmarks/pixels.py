"""Learning from pixels: frames that are resident as uint8 and augmented in batches, beside a DataLoader of CPU transforms.

Both arms feed the same learner (discrete CQL, Procgen's network) from the same frames, with a random shift and a colour jitter
of s and s'. The resident arm keeps each frame once on the device, makes stacks by index and augments whole batches there. The
other is what most code does: a Dataset that stacks frames, doubles next observations and applies torchvision's transforms to
one picture at a time, in worker processes. Both have the same processor cores in total: `--cores` of them, of which the
DataLoader's workers take all but one. The arms take turns; figures are medians of wall-clock time. `batches_per_s` is drawing
alone, after what workers had drawn ahead is used up; `cpu_ms` is what a batch costs a single thread, without waiting, so it
holds on a busy machine too. Latent rows come from an upsampler whose weights do not matter for the time.

    python benchmarks/pixels.py --device cuda --rounds 7 --out benchmarks/pixels.json
    python benchmarks/pixels.py --encoder nature --width 256 --rows-drawn 2048 --out benchmarks/pixels.json
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2
from tqdm import trange

from dreamloom.agents.cql import DiscreteCQL
from dreamloom.agents.frames import FrameBuffer, PixelBatch
from dreamloom.agents.vision import Vision
from dreamloom.datasets.augment import Augment, ColourJitter, Shift
from dreamloom.datasets.types import Transitions
from dreamloom.diffusion.upsampler import Upsampler
from dreamloom.eval.provenance import publish
from dreamloom.nn.encoders import Impala, Nature

ACTIONS, EPISODE, LATENT = 15, 200, 256


def write_frames(path: Path, rows: int) -> Path:
    """Random episodes in the layout of docs/data.md."""
    random = np.random.default_rng(0)
    ends = np.arange(rows) % EPISODE == EPISODE - 1
    with h5py.File(path, "w") as file:
        file["observations"] = random.integers(0, 256, (rows, 64, 64, 3), np.uint8)
        file["actions"], file["rewards"] = random.integers(0, ACTIONS, rows), random.normal(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = ends, np.zeros(rows, bool)
    return path


class Pictures(Dataset):
    """One transition at a time, as floats, changed by torchvision."""

    def __init__(self, path: Path, stack: int):
        with h5py.File(path) as file:
            self.frames, self.actions = file["observations"][:], torch.from_numpy(file["actions"][:])
            self.rewards, self.terminals = torch.from_numpy(file["rewards"][:]), torch.from_numpy(file["terminals"][:])
        self.stack = stack
        self.change = v2.Compose([v2.RandomCrop(64, padding=4, padding_mode="edge"), v2.ColorJitter(0.4, 0.4, 0.4, 0.5)])

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        done = self.terminals[row]
        pictures = torch.from_numpy(np.stack([self.seen(row), self.seen(row if done else row + 1)]))
        changed = self.change(pictures.permute(0, 1, 4, 2, 3).float() / 255).flatten(1, 2)
        return changed[0], self.actions[row], self.rewards[row], changed[1], done.float()

    def seen(self, row: int) -> np.ndarray:
        first = row - row % EPISODE
        return self.frames[[max(first, row - i) for i in reversed(range(self.stack))]]


def endless(loader: DataLoader, device: torch.device) -> Iterator[PixelBatch]:
    while True:
        for columns in loader:
            yield PixelBatch(*(column[None].to(device, non_blocking=True) for column in columns))


def learner(buffer: FrameBuffer, encoder: str, device: torch.device) -> DiscreteCQL:
    agent = DiscreteCQL(vision=Vision({"impala": Impala, "nature": Nature}[encoder](buffer.shape)))
    agent.prepare(buffer)
    return agent.to(device)


def seconds(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


def processor_seconds(work: Callable[[], Any]) -> float:
    """Seconds of the processor that one call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(path: Path, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    augment = Augment([Shift(), ColourJitter()], combine="all").to(device)
    buffer = FrameBuffer(path, stack=args.stack, augment=augment, device=device)
    pictures = Pictures(path, args.stack)
    workers = args.cores - 1
    loader = DataLoader(pictures, args.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    batches = endless(loader, device)
    agents = [learner(buffer, args.encoder, device) for _ in range(2)]

    def resident() -> PixelBatch:
        return buffer.sample(args.batch, agents[0].streams())

    draws: dict[str, Callable[[], PixelBatch]] = {"resident": resident, "dataloader": lambda: next(batches)}
    updates = {name: lambda a=agent, d=draw: a.update(d()) for agent, (name, draw) in zip(agents, draws.items(), strict=True)}
    threads = {"resident": args.cores, "dataloader": 1}
    for arm in updates.values():
        arm()
    turns: dict[str, list[dict[str, float]]] = {"update": [], "draw": []}
    for _ in trange(args.rounds, desc="learner"):
        for kind, arms in (("update", updates), ("draw", draws)):
            turns[kind].append({})
            for name, arm in arms.items():
                torch.set_num_threads(threads[name])
                for _ in range(2 * workers + 1):  # what workers draw ahead
                    draws[name]()
                turns[kind][-1][name] = seconds(arm, args.updates, device)
    found: dict[str, Any] = {}
    for name in draws:
        found[name] = {
            "updates_per_s": round(1 / statistics.median(turn[name] for turn in turns["update"]), 2),
            "batches_per_s": round(1 / statistics.median(turn[name] for turn in turns["draw"]), 2),
        }
    for kind, rows in turns.items():
        found[f"{kind}_speedup"] = round(statistics.median(turn["dataloader"] / turn["resident"] for turn in rows), 2)
    torch.set_num_threads(1)
    single = {"resident": resident, "dataloader": lambda: default_collate([pictures[row] for row in range(args.batch)])}
    for name, draw in single.items():
        found[name]["cpu_ms"] = round(1000 * min(processor_seconds(draw) for _ in range(args.rounds)), 1)
    torch.set_num_threads(args.cores)
    frame = int(np.prod(pictures.frames.shape[1:]))
    stored = frame * 2 * args.stack + 13  # a stack of s and one of s', as uint8, with action, reward and terminal
    found["bytes_per_transition"] = {"resident": round(buffer.bytes_per_transition), "stored_stacks": stored}
    return found


def latent_rows(args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Rows a second of an upsampler of latents."""
    random, n = np.random.default_rng(0), 5000
    z = random.normal(size=(2, n, LATENT)).astype(np.float32)
    none = np.zeros(n, bool)
    rewards = (10.0 * (random.random(n) < 0.02)).astype(np.float32)
    rows = Transitions(z[0], random.integers(0, ACTIONS, n), rewards, z[1], none, none)
    upsampler = Upsampler(width=args.width, next_observation="change").to(device)
    upsampler.fit(rows, steps=2, progress=False)
    upsampler.sample(args.batch, batch_size=args.batch)
    times = []
    for turn in trange(args.rounds, desc="latents"):
        start = time.perf_counter()
        upsampler.sample(args.rows_drawn, seed=turn)
        times.append(time.perf_counter() - start)
    return {"width": args.width, "columns": 2 * LATENT, "rows_per_s": round(args.rows_drawn / statistics.median(times), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=20, help="of each turn")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--stack", type=int, default=1)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--cores", type=int, default=2, help="of the processor, for each arm in all")
    parser.add_argument("--encoder", choices=("impala", "nature"), default="impala")
    parser.add_argument("--width", type=int, default=1024, help="of the upsampler")
    parser.add_argument("--rows-drawn", type=int, default=8192)
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # workers inherit it
    torch.set_num_threads(args.cores)
    load = os.getloadavg()[0]
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        found = compare(write_frames(Path(folder, "frames.hdf5"), args.frames), args, device)
    settings = {name: getattr(args, name) for name in ("encoder", "batch", "stack", "frames", "cores", "rounds", "updates")}
    report: dict[str, object] = {"benchmark": "pixels", "settings": settings, "load_before": round(load, 1), **found}
    report["latents"] = latent_rows(args, device)
    publish(report, args.out, device)


if __name__ == "__main__":
    main()
