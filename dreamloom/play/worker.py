"""The one thread that runs the model: all players whose frame is due are stepped in one batch.

Order of work: starts, then frames that are due, then, in the time that is left, thumbnails, one small piece at a time.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import torch

from dreamloom.play.gauge import Gauge, Watch
from dreamloom.play.messages import FRAME, Message, pack_picture
from dreamloom.play.real import RealGame
from dreamloom.play.session import Session, Turn
from dreamloom.play.thumbnails import Thumbnails
from dreamloom.worldmodels.world import World, split_state, stack_states

JOIN = 0.25  # a frame due within this part of its interval joins the batch: players fall into step with each other

log = logging.getLogger("dreamloom.play")


class Worker:
    """Steps the sessions of a world.

    Args:
        world: what is played.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: list[Session] = []
        self.thumbnails = Thumbnails(world)
        self.gauge = Gauge.of(world.prompts)
        self._changed = threading.Condition()
        self._running = False
        self._thread = threading.Thread(target=self._run, name="worlds", daemon=True)
        self._stacked: tuple[list[Any], Any] = ([], None)
        self._gallery: list[Any] = []

    def start(self) -> None:
        """Begins to step sessions."""
        self._running = True
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._running = False
            self._changed.notify()
        self._thread.join(timeout=10)

    def add(self, session: Session) -> None:
        """A player came."""
        with self._changed:
            self.sessions.append(session)
            self._changed.notify()

    def remove(self, session: Session) -> None:
        """A player left."""
        with self._changed:
            self.sessions.remove(session)

    def apply(self, session: Session, message: Message) -> None:
        """Does what a client asks; raises ValueError where that cannot be."""
        with self._changed:
            session.apply(message, perf_counter())
            self._changed.notify()

    def begin(self, session: Session, prompt: torch.Tensor) -> None:
        """Starts a session from a picture, (t, c, h, w) uint8."""
        with self._changed:
            session.start(prompt)
            self._changed.notify()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Does everything once, alone and in a batch, so that no player waits for first-time costs."""
        self._gallery = split_state(self.world.reset(self.world.prompts))
        for states in ([self._gallery[0]], self._gallery):
            batch = stack_states(states)
            actions = torch.zeros(len(states), dtype=torch.int64, device=self.world.device)
            generators = [torch.Generator(self.world.device).manual_seed(0) for _ in states]
            for _ in range(2):
                batch, outcome = self.world.step(batch, actions, generators)
                outcome.frame.cpu()
                self.gauge.learn(outcome.uncertainty)

    @torch.inference_mode()
    def _run(self) -> None:
        while self._running:
            with self._changed:
                now = perf_counter()
                fresh = [session for session in self.sessions if session.fresh]
                turns = _turns([session for session in self.sessions if not session.fresh], now)
                busy = bool(fresh or turns)
                if not busy and not self._has_time_to_imagine(now):
                    continue
            for session in fresh:
                self._guarded([session], self._begin, session)
            for group in _groups(turns):
                self._guarded([turn.session for turn in group], self._step, group)
            if not busy:
                self._guarded([], lambda _: self.thumbnails.advance(), None)

    def _has_time_to_imagine(self, now: float) -> bool:
        """Whether a thumbnail's next piece ends before any frame is due; else waits for something to happen."""
        due = min((session.due(now) for session in self.sessions), default=inf)
        if now + self.thumbnails.piece_s < due and self.thumbnails.choose(self.sessions, now):
            return True
        spare = now + self.thumbnails.piece_s < due
        until = min(due, *(session.renewal(now) for session in self.sessions if spare), inf) - now
        self._changed.wait(None if until == inf else max(until, 0.0005))
        return False

    def _guarded(self, sessions: list[Session], work: Callable[[Any], None], what: Any) -> None:
        """A world that fails pauses the players of that batch; the server and the others go on."""
        try:
            work(what)
        except Exception:
            log.exception("the world failed")  # the players are not told what only concerns whoever runs the server
            with self._changed:
                for session in sessions:
                    session.fail("the world failed; the server's log says why")

    def _begin(self, session: Session) -> None:
        with self._changed:
            session.fresh = False
            prompt, real, seed = session.prompt, session.real, session.seed
        session.game = session.state = None
        if session.recording:
            session.recording.cut()
        if real:
            session.game = RealGame(self.world, seed=seed)
            frame = session.game.frame()
        else:
            session.state = self._start(prompt)
            session.generator.manual_seed(seed)
            frame = _pixels(session.state.frame)[0]
        session.recent.clear()
        session.watch = Watch.over(frame, self.gauge)
        self._show(Turn(session, 0, session.answered), frame, 0.0)

    def _start(self, prompt: int | torch.Tensor) -> Any:
        """The state after a prompt; the gallery's are kept, so that a reset makes nobody wait."""
        if not isinstance(prompt, int):
            return self.world.reset(prompt[None].to(self.world.device))
        self._gallery = self._gallery or split_state(self.world.reset(self.world.prompts))
        return self._gallery[prompt]

    def _step(self, group: list[Turn]) -> None:
        if group[0].session.game:
            for turn in group:
                self._play(turn)
        else:
            self._dream(group)

    def _play(self, turn: Turn) -> None:
        """One frame of a real game."""
        game, began = turn.session.game, perf_counter()
        assert game is not None
        level = game.level_seed
        frame, reward, terminal = game.step(turn.action)
        self._record(turn, frame, reward=reward, terminal=terminal, level_seed=level, real=True)
        if terminal:
            turn.session.recent.clear()
        self._show(turn, frame, perf_counter() - began)

    def _dream(self, group: list[Turn]) -> None:
        """One frame of several dreams that are drawn alike, in one batch."""
        began = perf_counter()
        state = self._stack([turn.session.state for turn in group])
        actions = torch.tensor([turn.action for turn in group], device=self.world.device)
        generators = [turn.session.generator for turn in group]
        state, outcome = self.world.step(state, actions, generators, group[0].session.sampling)
        frames, parts = _pixels(outcome.frame), split_state(state)
        self._stacked = (parts, state)
        rewards = [0.0] * len(group) if outcome.reward is None else outcome.reward.tolist()
        terminals = [False] * len(group) if outcome.terminal is None else outcome.terminal.tolist()
        unsure = [None] * len(group) if outcome.uncertainty is None else outcome.uncertainty.tolist()
        took = perf_counter() - began
        for turn, part, frame, reward, terminal, doubt in zip(group, parts, frames, rewards, terminals, unsure, strict=True):
            turn.session.state = part
            turn.session.watch.see(frame, self.gauge.doubt(doubt))
            self._record(turn, frame, reward=reward, terminal=terminal, level_seed=-1, real=False)
            self._show(turn, frame, took)

    def _stack(self, states: list[Any]) -> Any:
        """Joins states; where they are the last batch's, in its order, that is at hand already."""
        parts, state = self._stacked
        same = len(parts) == len(states) and all(a is b for a, b in zip(parts, states, strict=True))
        return state if same else stack_states(states)

    def _record(self, turn: Turn, frame: np.ndarray, **row: Any) -> None:
        session = turn.session
        with self._changed:
            if session.recording and session.recording.on and session.view is not None:
                session.recording.add(session.view, turn.action, frame, **row)
                if not session.recording.on:
                    session.post("status", session.status())

    def _show(self, turn: Turn, frame: np.ndarray, took_s: float) -> None:
        session = turn.session
        with self._changed:
            session.view, session.sequence = frame, session.sequence + 1
            session.recent.append(frame)
        sure = {"doubt": session.watch.level, "index": int(session.watch.lost)}
        packed = pack_picture(FRAME, frame, sequence=session.sequence, stamp=turn.stamp, model_ms=1000 * took_s, **sure)
        session.post(FRAME, packed)


def _turns(sessions: list[Session], now: float) -> list[Turn]:
    """Takes the turns that are due, with those that are nearly so; nothing where none is due yet."""
    if not any(session.due(now) <= now for session in sessions):
        return []
    near = [session for session in sessions if session.due(now) <= now + JOIN / session.fps]
    return [session.take(now) for session in near]


def _groups(turns: list[Turn]) -> list[list[Turn]]:
    """Turns that can be one batch: real games, and dreams with the same sampling settings."""
    groups: dict[Any, list[Turn]] = defaultdict(list)
    for turn in turns:
        groups[turn.session.game is not None, turn.session.sampling].append(turn)
    return list(groups.values())


def _pixels(frames: torch.Tensor) -> np.ndarray:
    """(b, c, h, w) to (b, h, w, c), on the CPU."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())
