"""Who may talk to the server: requests that were addressed to it, and pages that it served itself."""

import ipaddress
import socket
from urllib.parse import urlsplit

from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send


class Guard:
    """Turns away requests that are not addressed to this server, or come from another site's page.

    A page elsewhere must neither drive a server on the player's own machine, nor reach it through a name that was made
    to point there. Programs that are no browser send no Origin; they may connect.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self.app = app
        self.names = {"localhost", host, *(["127.0.0.1", "::1"] if _is_loopback(host) else [])}
        self.any_address = not _is_loopback(host)
        if self.any_address:
            self.names |= {socket.gethostname(), f"{socket.gethostname()}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what is well addressed."""
        if scope["type"] == "lifespan" or self._welcome(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await Response("wrong Host or Origin\n", 403)(scope, receive, send)

    def _welcome(self, scope: Scope) -> bool:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        known = name in self.names or (self.any_address and _is_address(name))
        return known and (origin is None or origin in (f"http://{host}", f"https://{host}"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
