"""A small World for tests of the player, a server of it on a real socket, and a client."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import gymnasium
import numpy as np
import torch
from websockets.sync.client import connect as connect_socket

from dreamloom.play.app import create_app
from dreamloom.play.connection import Limits
from dreamloom.play.messages import FRAME, unpack_picture
from dreamloom.play.server import make_server
from dreamloom.play.shelf import Entry, Shelf
from dreamloom.worldmodels.world import Outcome, Sampling

SHIFTS = {"left": (0, -2), "right": (0, 2), "jump": (-2, 0), "down": (2, 0), "none": (0, 0), "jump right": (-2, 2)}


@dataclass(frozen=True)
class Shifted:
    frame: torch.Tensor
    age: torch.Tensor


@dataclass
class ShiftWorld:
    """Each action shifts the picture, and "vanish" empties it; `noise` adds drawn grain, a step takes `delay` seconds."""

    noise: int = 0
    delay: float = 0.0
    broken: int = -1  # an action that this world fails on
    side: int = 64
    unsure: float | None = None  # what this world says of itself
    game: str | None = None
    labels: tuple[str, ...] = ("left", "right", "jump", "down", "jump right")
    name: str = "shift"
    fps: float = 15.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: list[int] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.frame_shape = (3, self.side, self.side)
        self.action_names = list(self.labels)
        self.action_space = gymnasium.spaces.Discrete(len(self.labels))
        self.prompts = torch.stack([_landscape(seed, self.side) for seed in range(4)])[:, None]

    def reset(self, prompt: torch.Tensor) -> Shifted:
        frame = prompt[:, -1]
        return Shifted(frame, torch.zeros(len(frame), dtype=torch.int64))

    def step(
        self, state: Shifted, action: Any, generator: Any = None, sampling: Sampling | None = None
    ) -> tuple[Shifted, Outcome]:
        if self.broken in action.tolist():
            raise RuntimeError("no such luck")
        time.sleep(self.delay)
        self.calls.append(len(state.age))
        self.samplings.append(sampling or Sampling())
        shifts = [SHIFTS.get(self.labels[int(one)], (0, 0)) for one in action]
        moved = [torch.roll(frame, shift, (1, 2)) for frame, shift in zip(state.frame, shifts, strict=True)]
        if self.noise:
            grain = [torch.randint(0, self.noise, self.frame_shape, generator=one) for one in generator]
            moved = [frame ^ one.to(torch.uint8) for frame, one in zip(moved, grain, strict=True)]
        gone = torch.tensor([self.labels[int(one)] == "vanish" for one in action])
        frames = torch.stack(moved) * ~gone[:, None, None, None]
        unsure = None if self.unsure is None else torch.full((len(frames),), self.unsure)
        return Shifted(frames, state.age + 1), Outcome(frames, uncertainty=unsure)


def _landscape(seed: int, side: int) -> torch.Tensor:
    """Sky, hills and a sun, so that every shift is another picture."""
    drawn = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:side, 0:side] * 64 / side
    ridge = 38 + 8 * np.sin(columns / 64 * 4 * np.pi + drawn.uniform(0, 6)) + drawn.integers(0, 3, 64)[columns.astype(int)]
    picture = np.where((rows > ridge)[..., None], [60, 110 + 20 * seed, 70], [40, 90, 150 + 20 * seed])
    picture[np.hypot(rows - 14, columns - 14 - 9 * seed) < 6] = [245, 215, 90]
    return torch.from_numpy(picture.astype(np.uint8)).permute(2, 0, 1)


@contextmanager
def serving(world: Any, limits: Limits | None = None, host: str = "127.0.0.1") -> Iterator[tuple[str, Any]]:
    """Serves a world on a free loopback port: yields (host:port, worker)."""
    shelf = Shelf([Entry.of(world)])
    worker = shelf.load()
    with serving_all(shelf, limits, host) as address:
        yield address, worker


@contextmanager
def serving_all(shelf: Shelf, limits: Limits | None = None, host: str = "127.0.0.1") -> Iterator[str]:
    """Serves worlds on a free loopback port: yields host:port."""
    limits = limits or Limits()
    app = create_app(shelf, host=host, limits=limits)
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=120)
        listener.close()


def wait_until(happened: Callable[[], bool], patience: float = 120.0) -> None:
    """Returns as soon as something has happened."""
    end = time.monotonic() + patience
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(0.01)


class Client:
    """A player in Python. Every wait ends after `patience` seconds: many, because a busy machine is no failure."""

    def __init__(self, address: str, patience: float = 120.0, world: str = "", **options: Any) -> None:
        self.patience = patience
        address = f"ws://{address}/socket?world={quote(world)}"
        # No pings of its own: a test may leave the socket unread for a while.
        options = {"compression": None, "max_size": None, "ping_interval": None, "open_timeout": patience, **options}
        self.socket = connect_socket(address, **options)
        self.hello = self.until(lambda message: isinstance(message, dict) and message["type"] == "hello")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def receive(self) -> Any:
        """The next message: a dict, or (header, rgb)."""
        data = self.socket.recv(timeout=self.patience)
        return json.loads(data) if isinstance(data, str) else unpack_picture(data)

    def until(self, wanted: Callable[[Any], bool]) -> Any:
        """Drops messages until one is wanted."""
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            message = self.receive()
            if wanted(message):
                return message
        raise TimeoutError("the wanted message did not come")

    def frame(self, stamp: int | None = None, kind: int = FRAME) -> tuple[dict[str, Any], np.ndarray]:
        """The next frame; with a stamp, the first one that answers that input."""
        return self.until(
            lambda message: (
                isinstance(message, tuple) and message[0]["kind"] == kind and (stamp is None or message[0]["stamp"] >= stamp)
            )
        )

    def status(self, **wanted: Any) -> dict[str, Any]:
        """The next status with these values."""
        return self.until(
            lambda message: (
                isinstance(message, dict)
                and message["type"] == "status"
                and all(message[key] == value for key, value in wanted.items())
            )
        )

    def error(self) -> str:
        """The next error message."""
        return self.until(lambda message: isinstance(message, dict) and message["type"] == "error")["message"]
