"""The page, its socket, recordings and pictures of worlds, as an ASGI application."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Literal

import numpy as np
from fastapi import FastAPI, Response, WebSocket
from PIL import Image

from dreamloom.play.connection import Connection, Limits, close
from dreamloom.play.guard import Guard
from dreamloom.play.record import MEDIA_TYPES
from dreamloom.play.session import export_recording
from dreamloom.play.shelf import Shelf

PAGE = {
    "": "text/html",
    "style.css": "text/css",
    "player.js": "text/javascript",
    "input.js": "text/javascript",
    "sketch.js": "text/javascript",
    "settings.js": "text/javascript",
    "worlds.js": "text/javascript",
    "pixels.js": "text/javascript",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_app(shelf: Shelf, *, host: str = "127.0.0.1", limits: Limits | None = None) -> FastAPI:
    """The player of some worlds as an ASGI application.

    Args:
        shelf: what is played.
        host: the address it will be reached at; requests to other names are refused.
        limits: what clients may use up.
    """
    limits = limits or Limits()
    connections: dict[str, Connection] = {}  # by the key of their recordings
    present: set[WebSocket] = set()
    exporting = asyncio.Semaphore(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        shelf.close()

    app = FastAPI(title="dreamloom", lifespan=lifespan, openapi_url=None)
    app.add_middleware(Guard, host=host)

    @app.get("/recording/{key}/{kind}")
    async def recording(key: str, kind: Literal["mp4", "gif", "hdf5"]) -> Response:
        connection = connections.get(key)
        if connection is None or not connection.session.recording or not connection.session.recording.rows:
            return Response("nothing was recorded\n", 404)
        async with exporting:
            content = await asyncio.to_thread(export_recording, connection.session, kind)
        name = f"{_safe(connection.session.world.name)}-{time.strftime('%Y%m%d-%H%M%S')}.{kind}"
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=MEDIA_TYPES[kind], headers=HEADERS | disposition)

    _add_pages(app, shelf)

    @app.websocket("/socket")
    async def connect(websocket: WebSocket, world: str = "") -> None:
        await websocket.accept()
        if len(present) >= limits.sessions:
            return await close(websocket, 1013, f"all {limits.sessions} places are taken; try again later")
        present.add(websocket)
        try:
            await seat(websocket, world)
        finally:
            present.remove(websocket)

    async def seat(websocket: WebSocket, world: str) -> None:
        """Lets a client play a world until it leaves."""
        try:
            name, worker = await shelf.enter(world)
        except ValueError as error:
            return await close(websocket, 1008, str(error))
        connection = Connection(websocket, worker, limits)
        connections[connection.session.key] = connection
        try:
            await connection.run()
        finally:
            del connections[connection.session.key]
            shelf.leave(name)

    return app


def _add_pages(app: FastAPI, shelf: Shelf) -> None:
    """What is only to be read: the list of worlds, their pictures, the page."""

    @app.get("/worlds")
    async def worlds() -> Response:
        listed = [{"name": entry.name, "cover": entry.cover is not None} for entry in shelf.entries]
        return Response(json.dumps(listed), media_type="application/json", headers=HEADERS)

    @app.get("/cover/{index}")
    async def cover(index: int) -> Response:
        picture = shelf.entries[index].cover if 0 <= index < len(shelf.entries) else None
        if picture is None:
            return Response("there is no such picture\n", 404)
        return Response(_png(picture), media_type="image/png", headers=HEADERS)

    @app.get("/")
    @app.get("/{name}")
    async def page(name: str = "") -> Response:
        if name not in PAGE:
            return Response("there is no such page\n", 404)
        content = files("dreamloom.play").joinpath("static", name or "index.html").read_bytes()
        return Response(content, media_type=PAGE[name], headers=HEADERS)


def _png(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)[:40] or "world"
