"""The web player: one page, one socket a player, one address for recordings. Loopback by default."""

import errno
import gc
import logging
import os
import re
import socket
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, cast

import torch
import uvicorn
from fastapi import FastAPI

from dreamloom.play.app import create_app
from dreamloom.play.connection import Limits
from dreamloom.play.shelf import Entry, Shelf
from dreamloom.worldmodels.world import World


def play(
    worlds: tuple[str, ...] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8123,
    no_open: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    max_sessions: int = 32,
) -> None:
    """Plays worlds in the browser; Ctrl-C ends it.

    Of several worlds the page shows a gallery; each is loaded when somebody first plays it. Only programs on this machine can
    reach the page, unless --host says otherwise. Nothing is encrypted and nobody is asked for a password, so listen on other
    addresses only in a network you trust.

    Args:
        worlds: names of bundled worlds, folders made by `dreamloom bundle`, hf://org/name; or checkpoints (or folders of
            runs) of worlds that are trained whole. All the bundled ones by default.
        host: address to listen on; 0.0.0.0 is every address of this machine.
        port: port to listen on.
        no_open: do not open the browser.
        device: where the model runs; auto is a GPU if there is one.
        max_sessions: how many players there can be at once.

    Examples:
        dreamloom play
        dreamloom play worlds/coinrun --port 8200 --no-open
        dreamloom play coinrun runs/coinrun/diffusion_world
        dreamloom play hf://org/name --device cuda

    Raises:
        ValueError: there is no such world, or the port or address cannot be used.
    """
    if max_sessions < 1:
        raise ValueError(f"max-sessions: at least 1 player, got {max_sessions}")
    with _listen(host, port) as listener:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if "OMP_NUM_THREADS" not in os.environ:
            # One core stays free for sockets and browser; threads that wait for each other on busy cores halve the speed.
            torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
        shelf, limits = _shelf(worlds, device), Limits(sessions=max_sessions)
        shelf.load()  # the first one, so that the page opens to a world that is awake
        gc.collect()
        gc.freeze()  # what is loaded by now stays; looking through it again and again would hold frames up
        app = create_app(shelf, host=host, limits=limits)
        address = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        print(f"playing {', '.join(shelf.names)} on {device}: {address}  (Ctrl-C ends it)", flush=True)
        if not no_open:
            threading.Timer(0.3, webbrowser.open, [address]).start()
        serve(app, listener, limits)


def _shelf(worlds: Sequence[str], device: str) -> Shelf:
    """The worlds that were asked for, none of them loaded yet; all are looked for now, so that a mistake shows at once."""
    from dreamloom.worldmodels.bundle import bundled, load_world
    from dreamloom.worldmodels.cover import cover

    def entry(path: str) -> Entry:
        place, name, picture = cover(path)
        return Entry(name, lambda: cast(World, load_world(place, device=device)), picture)

    return Shelf([entry(path) for path in worlds or bundled()])


def serve(app: FastAPI, listener: socket.socket, limits: Limits) -> None:
    """Runs the application on a bound socket until Ctrl-C."""
    with suppress(KeyboardInterrupt):
        make_server(app, limits).run(sockets=[listener])
    gc.unfreeze()  # the warm-up froze what was loaded; a library that finds it alive at the end reports a leak


def make_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """The HTTP server, quiet, with the limits that are its own to keep."""
    logging.getLogger("uvicorn.error").addFilter(_not_by_a_client)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
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


def _not_by_a_client(record: logging.LogRecord) -> bool:
    """Drops the server's traceback for what a client did: text that is no UTF-8, or going away before it is answered.

    The connection is closed by then, whatever was to be sent.
    """
    error = record.exc_info[1] if record.exc_info else None
    protocol = type(error).__name__ == "LocalProtocolError"  # of h11, uvicorn's own
    late = protocol and re.search(r"state=(ERROR|MUST_CLOSE|CLOSED|DONE)\b", str(error))
    return not (late or isinstance(error, UnicodeDecodeError))


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
