"""One client's socket: what it asks is read and checked, what it is to see is sent, and what it may use up is bounded."""

import asyncio
import json
import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import WebSocket, WebSocketDisconnect

from dreamloom.play.messages import PROMPT, pack_picture, read_message, read_picture
from dreamloom.play.session import Outbox, Session
from dreamloom.play.worker import Worker

REASON_BYTES = 123  # of a close frame (RFC 6455, section 5.5)


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


class Connection:
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
            await close(self.websocket, 1001, "idle for too long")
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
                return await close(self.websocket, 1008, "too many messages")
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


async def close(websocket: WebSocket, code: int, reason: str) -> None:
    """Closes a socket, and says why as far as a close frame has room."""
    with suppress(WebSocketDisconnect, RuntimeError):  # it closed first
        await websocket.close(code, reason.encode()[:REASON_BYTES].decode(errors="ignore"))
