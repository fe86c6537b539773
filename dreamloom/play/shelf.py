"""The worlds that can be played: each is loaded when somebody first enters it, and put away when room is needed."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from dreamloom.play.real import warm_up_real
from dreamloom.play.worker import Worker
from dreamloom.worldmodels.world import World

LOADED = 4  # worlds at once

log = logging.getLogger("dreamloom.play")


@dataclass(frozen=True)
class Entry:
    """A world on the shelf.

    Attributes:
        name: what the gallery calls it; unique on a shelf.
        load: loads it.
        cover: a picture of it, or None.
    """

    name: str
    load: Callable[[], World]
    cover: UInt8[np.ndarray, "h w c"] | None = None

    @classmethod
    def of(cls, world: World) -> "Entry":
        """The entry of a world that is loaded already."""
        return cls(world.name, lambda: world)


class Shelf:
    """Holds the workers of loaded worlds. All but `load` and `close` belong to one event loop.

    Args:
        entries: the worlds; the first is entered where none is named.
        loaded: worlds that may be loaded at once.

    Raises:
        ValueError: there is none.
    """

    def __init__(self, entries: Sequence[Entry], *, loaded: int = LOADED) -> None:
        if not entries:
            raise ValueError("there is no world to play")
        self.entries = _told_apart(entries)
        self.most = loaded
        self._workers: dict[str, Worker] = {}  # the longest unused first
        self._players: Counter[str] = Counter()
        self._entering = asyncio.Lock()
        self._changing = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of all worlds, in the gallery's order."""
        return [entry.name for entry in self.entries]

    @property
    def loaded(self) -> list[str]:
        """Names of the worlds that are loaded, the longest unused first."""
        return list(self._workers)

    async def enter(self, name: str = "") -> tuple[str, Worker]:
        """A player comes: the world's full name and its worker, loaded if it was not. `leave` takes the name.

        Raises:
            ValueError: there is no such world, or no room for one more.
        """
        name = name or self.entries[0].name
        if name not in self.names:
            raise ValueError(f"there is no world {name[:40]!r} here")
        async with self._entering:
            worker = await asyncio.to_thread(self.load, name)
            self._players[name] += 1
        return name, worker

    def leave(self, name: str) -> None:
        """A player has left."""
        self._players[name] -= 1

    def load(self, name: str = "") -> Worker:
        """The running worker of a world, the first one by default.

        Raises:
            ValueError: as many worlds as there may be are being played, or it cannot be started from anything.
        """
        name = name or self.entries[0].name
        with self._changing:
            worker = self._workers.pop(name, None)
            if worker is None:
                self._make_room()
                worker = _started(next(entry for entry in self.entries if entry.name == name))
            self._workers[name] = worker
            return worker

    def _make_room(self) -> None:
        idle = [name for name in self._workers if not self._players[name]]
        while len(self._workers) >= self.most:
            if not idle:
                raise ValueError(
                    f"{len(self._workers)} worlds are being played, and no more are loaded at once; try again later"
                )
            self._workers.pop(idle.pop(0)).stop()

    def close(self) -> None:
        """Ends all workers."""
        with self._changing:
            while self._workers:
                self._workers.popitem()[1].stop()


def _started(entry: Entry) -> Worker:
    world = entry.load()
    if not len(world.prompts):
        raise ValueError(f"world {world.name!r} has no prompts to start from")
    warming = threading.Thread(target=_warm_up_real, args=[world], daemon=True)
    warming.start()
    worker = Worker(world)
    worker.warm_up()
    warming.join()
    worker.start()
    return worker


def _warm_up_real(world: World) -> None:
    with suppress(ValueError):  # the page says so when the real game is asked for
        warm_up_real(world)


def _told_apart(entries: Sequence[Entry]) -> list[Entry]:
    """Entries with a number behind a name that another one has too."""
    found: dict[str, Entry] = {}
    for entry in entries:
        name, number = entry.name, 1
        while name in found:
            number += 1
            name = f"{entry.name} {number}"
        found[name] = Entry(name, entry.load, entry.cover)
    return list(found.values())
