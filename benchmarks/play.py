"""The player over real sockets on loopback: frames a second and key-to-pixel latency with 1, 8 and 32 players.

The server is `dreamloom play` in a process of its own; the players are sockets here. Every player holds a key all the
time and changes it at random moments; the latency is from sending a key until the first frame that answers it has come
and is unpacked. The numbers of players take turns, round by round. Rates are medians of the rounds; percentiles of the
latency are those of the keys of all rounds together, and the 95th of each round stands beside them.

    python benchmarks/play.py --world worlds/coinrun --seconds 20 --out play.json
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from websockets.asyncio.client import ClientConnection, connect

from dreamloom.eval.provenance import publish
from dreamloom.play.messages import FRAME, unpack_picture


@contextmanager
def served(world: str, device: str) -> Iterator[str]:
    """Runs `dreamloom play` on a free port; yields host:port."""
    command = [sys.executable, "-m", "dreamloom", "play", world, "--no-open", "--port", "0", "--device", device]
    process = subprocess.Popen([*command, "--max-sessions", "64"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            raise SystemExit(f"{' '.join(command)} did not start")
        yield line.split("http://")[1].split()[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


class Player:
    """Holds keys and keeps count."""

    def __init__(self, socket: ClientConnection, actions: int, drawn: random.Random) -> None:
        self.socket, self.actions, self.drawn = socket, actions, drawn
        self.sent: dict[int, float] = {}
        self.waits: list[float] = []
        self.arrivals: list[float] = []
        self.model_ms: list[float] = []

    async def hold(self, end: float) -> None:
        """Changes the key every half second or so."""
        action, stamp = self.drawn.randrange(self.actions), 0
        while time.perf_counter() < end:
            action, stamp = (action + self.drawn.randrange(1, max(2, self.actions))) % self.actions, stamp + 1
            self.sent[stamp] = time.perf_counter()
            await self.socket.send(json.dumps({"type": "hold", "action": action, "id": stamp}))
            await asyncio.sleep(self.drawn.uniform(0.3, 0.7))

    async def watch(self, end: float) -> None:
        """Receives frames."""
        while (left := end - time.perf_counter()) > 0:
            try:
                data = await asyncio.wait_for(self.socket.recv(), left)
            except TimeoutError:
                return
            if isinstance(data, bytes):
                header, _ = unpack_picture(data)
                if header["kind"] == FRAME:
                    self._count(header, time.perf_counter())

    def _count(self, header: dict[str, Any], now: float) -> None:
        self.arrivals.append(now)
        self.model_ms.append(header["model_ms"])
        for stamp in [stamp for stamp in self.sent if stamp <= header["stamp"]]:
            asked = self.sent.pop(stamp)
            if stamp == header["stamp"]:
                self.waits.append(now - asked)


async def measure(address: str, players: int, seconds: float, fps: float | None, seed: int) -> list[Player]:
    """One round: all players play for a while."""
    sockets = [await connect(f"ws://{address}/socket", compression=None) for _ in range(players)]
    hello = [json.loads(await socket.recv()) for socket in sockets].pop()
    crew = [Player(s, len(hello["actions"]), random.Random(1000 * seed + i)) for i, s in enumerate(sockets)]
    for socket in sockets:
        await socket.send(json.dumps({"type": "settings", "seed": seed, "fps": fps or hello["fps"]}))
    end = time.perf_counter() + seconds
    await asyncio.gather(*(job for player in crew for job in (player.hold(end), player.watch(end))))
    for socket in sockets:
        await socket.close()
    if not any(player.waits for player in crew):
        raise SystemExit(f"no frames came for {players} players within {seconds} s")
    return crew


def summary(rounds: list[list[Player]]) -> dict[str, Any]:
    """The figures of one number of players."""
    rates = [[(len(p.arrivals) - 1) / (p.arrivals[-1] - p.arrivals[0]) for p in crew if len(p.arrivals) > 1] for crew in rounds]
    waits = [np.array([wait for player in crew for wait in player.waits]) * 1000 for crew in rounds]
    p50, p95 = np.percentile(np.concatenate(waits), [50, 95])
    model_ms = [ms for crew in rounds for player in crew for ms in player.model_ms]
    return {
        "fps_per_player": round(statistics.median(statistics.median(rate) for rate in rates), 2),
        "fps_slowest_player": round(statistics.median(min(rate) for rate in rates), 2),
        "latency_ms_p50": round(float(p50), 2),
        "latency_ms_p95": round(float(p95), 2),
        "latency_ms_p95_by_round": [round(float(np.percentile(w, 95)), 2) for w in waits],
        "model_ms_p50": round(statistics.median(model_ms), 2),
        "keys": sum(map(len, waits)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="coinrun", help="a bundled name or a folder")
    parser.add_argument("--players", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fps", type=float, help="target frames a second; the world's own by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="keep the JSON here")
    args = parser.parse_args()
    results: dict[int, list[list[Player]]] = {players: [] for players in args.players}
    with served(args.world, args.device) as address:
        turns = [(number, players) for number in range(args.rounds) for players in args.players]
        for number, players in tqdm(turns, desc="rounds"):
            results[players].append(asyncio.run(measure(address, players, args.seconds, args.fps, number)))
    report = {
        "benchmark": "play",
        "world": args.world,
        "target_fps": args.fps,
        "seconds": args.seconds,
        "rounds": args.rounds,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "players": {str(players): summary(rounds) for players, rounds in results.items()},
    }
    publish(report, args.out, torch.device(args.device))


if __name__ == "__main__":
    main()
