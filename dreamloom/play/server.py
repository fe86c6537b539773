"""The web player: one page, one socket a player, one address for recordings. Loopback by default."""

import asyncio
import errno
import gc
import json
import logging
import os
import socket
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, cast

import torch
import uvicorn
from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect

from dreamloom.play.guard import Guard
from dreamloom.play.messages import PROMPT, pack_picture, read_message, read_picture
from dreamloom.play.real import warm_up_real
from dreamloom.play.record import MEDIA_TYPES, Recording, to_gif, to_hdf5, to_mp4
from dreamloom.play.session import Outbox, Session
from dreamloom.play.worker import Worker
from dreamloom.worldmodels.world import World

PAGE = {
    "": "text/html",
    "style.css": "text/css",
    "player.js": "text/javascript",
    "input.js": "text/javascript",
    "sketch.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
log = logging.getLogger("dreamloom.play")


@dataclass(frozen=True)
class Limits:
    """What a client may use up.

    Attributes:
        sessions: players at once.
        message_bytes: size of one message, an uploaded picture included.
        pixels: size of an uploaded picture.
        messages_per_s: a client that sends more is cut off.
        idle_s: a client that sends nothing for so long is let go.
    """

    sessions: int = 32
    message_bytes: int = 4 * 2**20
    pixels: int = 16 * 2**20
    messages_per_s: int = 240
    idle_s: float = 900.0


class Player:
    """One client's connection: reads what it asks, sends what it is to see.

    Args:
        websocket: accepted.
        worker: steps the sessions.
        limits: what the client may use up.
    """

    def __init__(self, websocket: WebSocket, worker: Worker, limits: Limits) -> None:
        self.websocket, self.worker, self.limits = websocket, worker, limits
        self.outbox, self.loop = Outbox(), asyncio.get_running_loop()
        self.session = Session(worker.world, self.post)

    def post(self, kind: Hashable, payload: Any) -> None:
        """Queues a message to the client; called from any thread."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.outbox.put, kind, payload)

    def complain(self, message: str) -> None:
        """Tells the client what was wrong."""
        self.post("error", {"type": "error", "message": message})

    async def run(self) -> None:
        """Serves the client until it leaves, or is let go."""
        self.post("hello", self.session.hello())
        for index, prompt in enumerate(self.worker.world.prompts):
            rgb = prompt[-1].permute(1, 2, 0).cpu().numpy()
            self.post((PROMPT, index), pack_picture(PROMPT, rgb, index=index))
        self.worker.add(self.session)
        sender = asyncio.create_task(self._send())
        try:
            await self._receive()
        except TimeoutError:
            await _close(self.websocket, 1001, "idle for too long")
        finally:
            sender.cancel()
            self.worker.remove(self.session)

    async def _send(self) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # the client left, or was closed; `_receive` hears of it too
            while True:
                payload = await self.outbox.get()
                if isinstance(payload, bytes):
                    await self.websocket.send_bytes(payload)
                else:
                    await self.websocket.send_text(json.dumps(payload))

    async def _receive(self) -> None:
        second, count = 0, 0
        while True:
            message = await asyncio.wait_for(self.websocket.receive(), self.limits.idle_s)
            if message["type"] == "websocket.disconnect":
                return
            now = int(time.monotonic())
            second, count = now, count + 1 if now == second else 1
            if count > self.limits.messages_per_s:
                return await _close(self.websocket, 1008, "too many messages")
            try:
                await self._handle(message.get("text"), message.get("bytes"))
            except ValueError as error:
                self.complain(str(error))

    async def _handle(self, text: str | None, data: bytes | None) -> None:
        if text is not None:
            return self.worker.apply(self.session, read_message(text))
        _, height, width = self.worker.world.frame_shape
        # Unpacking a large picture takes a while; the other players' messages go on meanwhile.
        rgb = await asyncio.to_thread(read_picture, data or b"", width=width, height=height, max_pixels=self.limits.pixels)
        self.worker.begin(self.session, torch.from_numpy(rgb).permute(2, 0, 1)[None])


def create_app(world: World, *, host: str = "127.0.0.1", limits: Limits | None = None) -> FastAPI:
    """The player of a world as an ASGI application.

    Args:
        world: what is played.
        host: the address it will be reached at; requests to other names are refused.
        limits: what clients may use up.

    Raises:
        ValueError: the world has no pictures to start from.
    """
    if not len(world.prompts):
        raise ValueError(f"world {world.name!r} has no prompts to start from")
    limits, worker = limits or Limits(), Worker(world)
    players: dict[str, Player] = {}
    exporting = asyncio.Semaphore(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        worker.stop()

    app = FastAPI(title="dreamloom", lifespan=lifespan, openapi_url=None)
    app.state.worker = worker
    app.add_middleware(Guard, host=host)

    @app.get("/recording/{key}/{kind}")
    async def recording(key: str, kind: Literal["mp4", "gif", "hdf5"]) -> Response:
        player = players.get(key)
        if player is None or not player.session.recording or not player.session.recording.rows:
            return Response("nothing was recorded\n", 404)
        async with exporting:
            content = await asyncio.to_thread(_export, player.session, kind)
        name = f"{_safe(world.name)}-{time.strftime('%Y%m%d-%H%M%S')}.{kind}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=MEDIA_TYPES[kind], headers=HEADERS | disposition)

    @app.get("/")
    @app.get("/{name}")
    async def page(name: str = "") -> Response:
        if name not in PAGE:
            return Response("there is no such page\n", 404)
        content = files("dreamloom.play").joinpath("static", name or "index.html").read_bytes()
        return Response(content, media_type=PAGE[name], headers=HEADERS)

    @app.websocket("/socket")
    async def connect(websocket: WebSocket) -> None:
        await websocket.accept()
        if len(players) >= limits.sessions:
            return await _close(websocket, 1013, f"all {limits.sessions} places are taken; try again later")
        player = Player(websocket, worker, limits)
        players[player.session.key] = player
        try:
            await player.run()
        finally:
            del players[player.session.key]

    return app


def play(
    world: str = "coinrun",
    *,
    host: str = "127.0.0.1",
    port: int = 8123,
    no_open: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    max_sessions: int = 32,
) -> None:
    """Plays a world in the browser; Ctrl-C ends it.

    Only programs on this machine can reach the page, unless --host says otherwise. Nothing is encrypted and nobody is
    asked for a password, so listen on other addresses only in a network you trust.

    Args:
        world: name of a bundled world, a folder made by `dreamloom bundle`, hf://org/name; or the checkpoint (or folder of
            runs) of a world that is trained whole.
        host: address to listen on; 0.0.0.0 is every address of this machine.
        port: port to listen on.
        no_open: do not open the browser.
        device: where the model runs; auto is a GPU if there is one.
        max_sessions: how many players there can be at once.

    Examples:
        dreamloom play
        dreamloom play worlds/coinrun --port 8200 --no-open
        dreamloom play runs/coinrun/diffusion_world
        dreamloom play hf://org/name --device cuda

    Raises:
        ValueError: there is no such world, or the port or address cannot be used.
    """
    if max_sessions < 1:
        raise ValueError(f"max-sessions: at least 1 player, got {max_sessions}")
    with _listen(host, port) as listener:
        from dreamloom.worldmodels.bundle import load_world

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if "OMP_NUM_THREADS" not in os.environ:
            # One core stays free for sockets and browser; threads that wait for each other on busy cores halve the speed.
            torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
        loaded = cast(World, load_world(world, device=device))
        limits = Limits(sessions=max_sessions)
        app = create_app(loaded, host=host, limits=limits)
        warming = threading.Thread(target=warm_up_real, args=[loaded], daemon=True)
        warming.start()
        app.state.worker.warm_up()
        warming.join()
        address = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        print(f"playing {loaded.name} on {device}: {address}  (Ctrl-C ends it)", flush=True)
        if not no_open:
            threading.Timer(0.3, webbrowser.open, [address]).start()
        serve(app, listener, limits)


def serve(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Runs the application on a bound socket until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        make_server(app, limits).run(sockets=[listener])
    gc.unfreeze()  # the warm-up froze what was loaded; a library that finds it alive at the end reports a leak


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """The HTTP server, quiet, with the limits that are its own to keep."""
    logging.getLogger("uvicorn.error").addFilter(_without_hostile_text)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws_max_size=limits.message_bytes,
            ws_per_message_deflate=False,
            limit_concurrency=4 * limits.sessions + 32,
            timeout_graceful_shutdown=1,
        )
    )


def _without_hostile_text(record: logging.LogRecord) -> bool:
    """Drops the server's traceback for a client whose text is no UTF-8; the socket is closed anyway."""
    return not (record.exc_info and record.exc_info[0] is UnicodeDecodeError)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise ValueError(f"port: {port} is not one of 0..65535")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} on {host} is in use; choose another one with --port") from None
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


def _in_url(host: str) -> str:
    """A host as a browser on this machine can open it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)[:40] or "world"


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # it closed first
        await websocket.close(code, reason)


def _export(session: Session, kind: str) -> bytes:
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
