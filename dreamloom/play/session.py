"""One player: what is held, what is asked for, what was seen. Only the worker touches `state`, `game`, `view`."""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import numpy as np
import torch

from dreamloom.play import messages as m
from dreamloom.play.choices import choices
from dreamloom.play.gauge import Watch
from dreamloom.play.keys import idle_action
from dreamloom.play.real import RealGame, has_real_game
from dreamloom.play.record import Recording, kinds, to_gif, to_hdf5, to_mp4
from dreamloom.worldmodels.world import Sampling, World

REST_S = 4.0  # after this long without a key a world keeps still whose idle action is not to go on
AWAY_S = 60.0  # and any other one: nobody is watching
PLAY_FPS = 15.0  # worlds of slower video play faster than it: a key that waits longer for its frame feels dead
QUIET_S = 0.3  # thumbnails are imagined only when the hands have been off the keys for this long
RENEW_S = 2.0  # and not more often than this

Post = Callable[[Hashable, Any], None]


class Turn(NamedTuple):
    """One session's next frame: the action, and the newest input that it answers."""

    session: "Session"
    action: int
    stamp: int


class Outbox:
    """What waits to be sent to one client: the newest of each kind, so it is bounded however slow the client is."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Any] = {}
        self._filled = asyncio.Event()

    def put(self, kind: Hashable, payload: Any) -> None:
        """Adds a message in place of an older one of its kind."""
        self._waiting[kind] = payload
        self._filled.set()

    async def get(self) -> Any:
        """Waits for the next message."""
        await self._filled.wait()
        payload = self._waiting.pop(next(iter(self._waiting)))
        if not self._waiting:
            self._filled.clear()
        return payload


@dataclass(eq=False)
class Session:
    """A player of a world.

    Attributes:
        post: takes (kind, payload) for this client, from any thread: a dict goes as JSON, bytes as they are.
        key: what the download address of this session's recording holds; cannot be guessed.
        prompt: what to start from: a picture of the gallery, or uint8 frames (t, c, h, w).
        fresh: the worker is to start from `prompt` before anything else.
        tapped: an action to be taken as soon as possible, held or not.
        stamp: the newest input.
        answered: the newest input that a frame has answered.
        last: when the newest frame was begun, or was to begin.
        touched: when the player last acted, since the start.
        idles: whether the world goes on by its idle action while no key is held; None is the world's own default.
        watch: tells whether the dream has lost itself.
    """

    world: World
    post: Post
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    seed: int = 0
    fps: float = 0.0
    sampling: Sampling = field(default_factory=Sampling)
    paused: bool = False
    real: bool = False
    prompt: int | torch.Tensor = 0
    fresh: bool = True
    held: int | None = None
    tapped: int | None = None
    taken: int = 0
    stamp: int = 0
    answered: int = 0
    last: float = -inf
    touched: float = -inf
    idles: bool | None = None
    watch: Watch = field(default_factory=Watch)
    sequence: int = 0
    imagined: tuple[int, float] = (-1, -inf)
    recording: Recording | None = None
    state: Any = None
    game: RealGame | None = None
    view: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.fps = self.fps or max(PLAY_FPS, float(self.world.fps))
        self.idle = idle_action(self.world.action_names)
        self.choices = choices(self.world.action_names, self.world.game)
        self.generator = torch.Generator(self.world.device)
        self.recent: deque[np.ndarray] = deque(maxlen=self.world.prompts.shape[1])

    def hello(self) -> dict[str, Any]:
        """What the page has to know of the world."""
        return {
            "type": "hello",
            "world": self.world.name,
            "game": self.world.game,
            "key": self.key,
            "fps": self.fps,
            "shape": self.world.frame_shape[1:],
            "actions": [choice._asdict() for choice in self.choices],
            "idle": self.idle,
            "idles": self.moves_by_itself,
            "prompts": len(self.world.prompts),
            "real": has_real_game(self.world.game),
            "downloads": kinds(),
        }

    @property
    def moves_by_itself(self) -> bool:
        """Whether time goes on while no key is held, unless the player says otherwise.

        It does where the actions are the game's own: to do nothing was learned there. An idle action that was inferred is a
        guess, and a world that is led by guesses is worn out before the player has looked around.
        """
        return self.idle is not None and getattr(self.world, "latent_actions", None) is None

    def status(self) -> dict[str, Any]:
        """What the page shows of this session."""
        recording = self.recording
        return {
            "type": "status",
            "paused": self.paused,
            "real": self.real,
            "recording": bool(recording and recording.on),
            "recorded": len(recording.rows) if recording else 0,
        }

    def apply(self, message: m.Message, now: float) -> None:
        """Does what a client asks.

        Raises:
            ValueError: the world has no such action or picture, or no real game.
        """
        match message:
            case m.Hold(action=action, id=stamp):
                self.held = self.tapped = self._checked(action)
                self.stamp, self.touched = stamp, now
            case m.Release():
                self.held, self.touched = None, now
            case m.Step(action=action, id=stamp):
                quiet = self.taken if self.idle is None else self.idle
                self.tapped = quiet if action is None else self._checked(action)
                self.stamp, self.touched = stamp, now
            case m.Pause(on=on):
                self.paused, self.touched = on, now
            case m.Record(on=on):
                self._record(on)
            case _:
                self._arrange(message)
        self.post("status", self.status())

    def _arrange(self, message: m.Message) -> None:
        """The messages that say where to start and how frames are drawn."""
        match message:
            case m.Settings(seed=seed, fps=fps, steps=steps, temperature=temperature, idle=idle):
                self.seed, self.fps, self.idles = seed, fps, idle
                self.sampling = Sampling(steps=steps, temperature=temperature)
            case m.Reset():
                self._restart()
            case m.Start(prompt=prompt):
                if not 0 <= prompt < len(self.world.prompts):
                    raise ValueError(f"prompt: {prompt} is not one of 0..{len(self.world.prompts) - 1}")
                self.start(prompt)
            case m.Mode(real=real):
                self._switch(real)

    def start(self, prompt: int | torch.Tensor) -> None:
        """Dreams from a picture of the gallery, or from frames, (t, c, h, w) uint8."""
        self.prompt, self.real = prompt, False
        self._restart()
        self.post("status", self.status())

    def _switch(self, real: bool) -> None:
        if real and not has_real_game(self.world.game):
            raise ValueError("mode: this world names no game, or Procgen is not installed")
        if self.real and not real and self.recent:
            self.prompt = torch.from_numpy(np.stack(list(self.recent))).permute(0, 3, 1, 2)
        if real != self.real:
            self.real = real
            self._restart()

    def _restart(self) -> None:
        self.fresh, self.tapped, self.touched = True, None, -inf  # nothing moves before the first key

    def _record(self, on: bool) -> None:
        if on:
            self.recording = Recording()
        elif self.recording:
            self.recording.on = False

    def _checked(self, action: int) -> int:
        actions = len(self.world.action_names)
        if not 0 <= action < actions:
            raise ValueError(f"action: {action} is not one of 0..{actions - 1}")
        return action

    def wants(self, now: float) -> int | None:
        """The action of the next frame, or None to keep still."""
        if self.state is None and self.game is None:
            return None
        if self.tapped is not None or self.paused:
            return self.tapped
        if self.held is not None:
            return self.held
        idles = self.moves_by_itself if self.idles is None else self.idles
        return self.idle if now - self.touched < (AWAY_S if idles else REST_S) else None

    def due(self, now: float) -> float:
        """When the next frame is to begin. A new key is answered at twice the pace, so that it is seen sooner."""
        if self.wants(now) is None:
            return inf
        return self.last + (0.5 if self.tapped is not None else 1.0) / self.fps

    def take(self, now: float) -> Turn:
        """Takes the next frame's action."""
        action = self.wants(now)
        assert action is not None
        beat = self.last + 1 / self.fps
        # A frame that begins a little late does not make all later ones late, or the pace would never quite be reached.
        self.last = beat if beat <= now < beat + 0.5 / self.fps else now
        self.tapped, self.taken, self.answered = None, action, self.stamp
        return Turn(self, action, self.stamp)

    def fail(self, message: str) -> None:
        """Pauses, and says why."""
        self.paused, self.held, self.tapped, self.fresh = True, None, None, False
        self.post("error", {"type": "error", "message": message})
        self.post("status", self.status())

    def resting(self, now: float) -> bool:
        """Whether the hands are off the keys of a dream."""
        quiet = self.held is None and self.tapped is None and now - self.touched > QUIET_S
        return quiet and self.state is not None and not self.fresh

    def curious(self, now: float) -> bool:
        """Whether thumbnails are worth imagining now."""
        sequence, at = self.imagined
        return self.resting(now) and sequence != self.sequence and now - at > RENEW_S

    def renewal(self, now: float) -> float:
        """When thumbnails may be worth imagining again; infinite where nothing new is to be seen."""
        if self.state is None or self.held is not None or self.imagined[0] == self.sequence:
            return inf
        return max(self.touched + QUIET_S, self.imagined[1] + RENEW_S) + 0.001


def export_recording(session: Session, kind: str) -> bytes:
    """A session's recording as a file."""
    recording, world = session.recording, session.world
    assert recording is not None
    recording = Recording(list(recording.rows), recording.last)
    if kind != "hdf5":
        return (to_mp4 if kind == "mp4" else to_gif)(recording.film(), session.fps)
    attrs = {"fps": session.fps, "action_names": list(world.action_names)}
    if world.game:
        attrs["game"] = world.game
    attrs["source"] = {"command": "dreamloom play", "world": world.name, "policy": "player", "seed": session.seed}
    return to_hdf5(recording, attrs)
