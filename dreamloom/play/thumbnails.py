"""What each action would do from here, imagined a few frames ahead, in pieces small enough to make no player wait."""

from collections.abc import Iterator, Sequence
from time import perf_counter

import numpy as np
import torch

from dreamloom.play.messages import THUMBNAIL, pack_picture
from dreamloom.play.session import Session
from dreamloom.worldmodels.world import World, stack_states

AHEAD = 4  # frames


class Thumbnails:
    """Imagines for one session at a time; every `advance` is one step of the model.

    Attributes:
        piece_s: how long a piece takes, in seconds (a running mean).
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.piece_s = 0.0
        self._session: Session | None = None
        self._pieces: Iterator[tuple[int, np.ndarray] | None] = iter(())

    def choose(self, sessions: Sequence[Session], now: float) -> bool:
        """Finds whom to imagine for: goes on with the same one, else takes who has waited longest. False: nobody."""
        going_on = self._session in sessions and self._session is not None and self._session.resting(now)
        if not going_on:
            curious = [session for session in sessions if session.curious(now)]
            self._session = min(curious, key=lambda session: session.imagined[1], default=None)
            if self._session:
                self._session.imagined = (self._session.sequence, now)
                self._pieces = self._imagine(self._session)
        return self._session is not None

    def advance(self) -> None:
        """Runs one piece, and sends what is finished."""
        assert self._session is not None
        began = perf_counter()
        try:
            picture = next(self._pieces)
        except BaseException as end:
            self._session = None  # the work is done, or it failed
            if isinstance(end, StopIteration):
                return
            raise
        took = perf_counter() - began
        self.piece_s = took if not self.piece_s else 0.8 * self.piece_s + 0.2 * took
        if picture:
            action, rgb = picture
            self._session.post((THUMBNAIL, action), pack_picture(THUMBNAIL, rgb, index=action))

    def _imagine(self, session: Session) -> Iterator[tuple[int, np.ndarray] | None]:
        """Yields after every step: None, or an action and what it shows. All in one batch where that is free."""
        actions = torch.tensor([choice.action for choice in session.choices])
        state, sampling = session.state, session.sampling
        for some in actions.split(len(actions) if self.world.device.type == "cuda" else 1):
            imagined = stack_states([state] * len(some))
            generators = [torch.Generator(self.world.device).manual_seed(session.seed) for _ in some]
            for _ in range(AHEAD):
                imagined, outcome = self.world.step(imagined, some.to(self.world.device), generators, sampling)
                yield None
            yield from zip(some.tolist(), outcome.frame.permute(0, 2, 3, 1).cpu().numpy(), strict=True)
