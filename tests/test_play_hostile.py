"""What a hostile client or page can send to the player: it gets an error or a closed socket, and nobody else notices."""

import io
import json
import logging
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from play_world import Client, ShiftWorld, serving, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from dreamloom.play.connection import Limits
from dreamloom.play.messages import read_message, read_picture

LIMITS = Limits(message_bytes=200_000, pixels=10_000, messages_per_s=100_000)
DEEP = 20_000
MESSAGES = [
    "",
    "null",
    "[]",
    "{}",
    "nonsense",
    "[" * DEEP + "]" * DEEP,
    '{"type":' * DEEP + "1" + "}" * DEEP,
    '{"type":"hold"}',
    '{"type":"hold","action":-1,"id":1}',
    '{"type":"hold","action":99,"id":1}',
    '{"type":"hold","action":1.5,"id":1}',
    '{"type":"hold","action":true,"id":1}',
    '{"type":"hold","action":"1","id":1}',
    '{"type":"hold","action":1,"id":4294967296}',
    '{"type":"hold","action":' + "9" * 5000 + ',"id":1}',
    '{"type":"hold","action":1,"id":1,"__class__":"os"}',
    '{"type":"step","action":99,"id":1}',
    '{"type":"start","prompt":-1}',
    '{"type":"start","prompt":4}',
    '{"type":"start","prompt":"../../etc/passwd"}',
    '{"type":"pause","on":1}',
    '{"type":"mode","real":true}',  # this world has no game
    '{"type":"settings","seed":0,"fps":NaN}',
    '{"type":"settings","seed":0,"fps":Infinity}',
    '{"type":"settings","seed":0,"fps":1e999}',
    '{"type":"settings","seed":0,"fps":0}',
    '{"type":"settings","seed":-1,"fps":10}',
    '{"type":"settings","seed":0,"fps":10,"steps":100000}',
    '{"type":"settings","seed":0,"fps":10,"temperature":-1}',
    '{"type":"record","on":null}',
    '{"type":"\\ud800"}',
    '{"type":"' + "x" * 100_000 + '"}',
]


def picture(kind: str, size: tuple[int, int] = (40, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def damaged() -> Iterator[bytes]:
    """Real pictures with bytes changed, cut off or doubled."""
    drawn = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = picture(kind)
        yield whole[: len(whole) // 2]
        for _ in range(8):
            broken = bytearray(whole)
            for _ in range(drawn.randrange(1, 30)):
                broken[drawn.randrange(len(broken))] = drawn.randrange(256)
            yield bytes(broken)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(ShiftWorld(), LIMITS) as (address, _):
        yield address


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever happens, nothing of it is an error of the server."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "Traceback" not in "".join(capfd.readouterr())


def plays_on(address: str) -> None:
    """Another player can still play."""
    with Client(address) as other:
        other.send(type="step", action=1, id=1)
        assert other.frame(stamp=1)


@pytest.mark.parametrize("text", MESSAGES, ids=range(len(MESSAGES)))
def test_a_wrong_message_gets_an_error_and_the_game_goes_on(address: str, text: str) -> None:
    with Client(address) as player:
        player.frame()
        player.socket.send(text)
        assert 0 < len(player.error()) < 400
        player.send(type="step", action=1, id=7)
        assert player.frame(stamp=7)


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"steps: .*less than or equal to 32"):
        read_message('{"type":"settings","seed":0,"fps":10,"steps":33}')
    with pytest.raises(ValueError, match=r"hold.*action"):
        read_message('{"type":"hold","id":1}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "action", "id", "on", "x"]), inner),
    max_leaves=12,
)
TYPES = st.sampled_from(["hold", "release", "step", "pause", "reset", "start", "settings", "mode", "record", "x"])
NEARLY = st.fixed_dictionaries(
    {"type": TYPES},
    optional={key: JSON for key in ("action", "id", "on", "prompt", "seed", "fps", "steps", "temperature", "real")},
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.binary().map(lambda b: b.decode("latin-1")), JSON.map(json.dumps), NEARLY.map(json.dumps)))
def test_any_text_is_a_message_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert read_message(text)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF"]))
def test_any_bytes_are_a_picture_or_a_value_error(data: bytes, start: bytes) -> None:
    with suppress(ValueError):
        assert read_picture(start + data, width=64, height=64, max_pixels=10_000).shape == (64, 64, 3)


def test_damaged_pictures_are_refused_or_read() -> None:
    for data in damaged():
        with suppress(ValueError):
            rgb = read_picture(data, width=32, height=32, max_pixels=10_000)
            assert (rgb.shape, rgb.dtype) == ((32, 32, 3), np.uint8)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=st.lists(st.one_of(st.text(max_size=50), st.binary(max_size=50), NEARLY.map(json.dumps)), max_size=40))
def test_streams_of_anything_leave_the_server_well(address: str, sent: list[str | bytes]) -> None:
    with Client(address) as player:
        for message in sent:
            player.socket.send(message)
        player.send(type="settings", seed=0, fps=15)
        player.send(type="mode", real=False)
        player.send(type="step", action=0, id=2**32 - 1)
        assert player.frame(stamp=2**32 - 1)


@pytest.mark.parametrize("data", [bomb(60_000, 60_000), bomb(4_000, 4_000), bomb(0, 0), b"", b"GIF89a", b"%!PS"])
def test_a_hostile_picture_gets_an_error(address: str, data: bytes) -> None:
    with Client(address) as player:
        player.frame()
        player.socket.send(data)
        assert "picture" in player.error()
        player.socket.send(picture("WEBP"))
        assert player.frame()


def told(closed: ConnectionClosed, code: int | None = None, reason: str = "") -> bool:
    """Whether the server said why it closes. It may get no hearing: closing on unread bytes resets the connection."""
    said = closed.rcvd
    return said is None or (code in (None, said.code) and reason in said.reason)


def send_and_listen(player: Client, messages: list[str | bytes]) -> None:
    """Sends until the server closes the socket, which it may do at any moment, then listens for that."""
    for message in messages:
        player.socket.send(message)
    player.until(lambda _: False)


def test_a_long_message_closes_the_socket(address: str) -> None:
    with Client(address) as player, pytest.raises(ConnectionClosed) as closed:
        send_and_listen(player, [bytes(LIMITS.message_bytes + 1)])
    assert told(closed.value, code=1009)
    plays_on(address)


def test_a_flood_closes_the_socket() -> None:
    with serving(ShiftWorld(), Limits(messages_per_s=20)) as (address, _):
        with Client(address) as player, pytest.raises(ConnectionClosed) as closed:
            send_and_listen(player, 10_000 * ['{"type":"hold","action":0,"id":1}'])
        assert told(closed.value, reason="too many messages")
        plays_on(address)


def test_an_idle_client_is_let_go() -> None:
    with serving(ShiftWorld(), Limits(idle_s=0.3)) as (address, worker):
        with Client(address) as player, pytest.raises(ConnectionClosed, match="idle"):
            player.until(lambda _: False)
        wait_until(lambda: not worker.sessions)


@pytest.mark.parametrize(
    ("headers", "welcome"),
    [
        ({}, True),
        ({"Origin": "http://{}"}, True),
        ({"Origin": "http://elsewhere.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:1"}, False),
        ({"Host": "elsewhere.example"}, False),
        ({"Host": "elsewhere.example", "Origin": "http://elsewhere.example"}, False),
        ({"Host": "[::"}, False),
        ({"Host": "192.168.1.7:80"}, False),
        ({"Host": "localhost"}, True),
    ],
)
def test_only_its_own_page_may_drive_it(address: str, headers: dict[str, str], welcome: bool) -> None:
    headers = {name: value.format(address) for name, value in headers.items()}
    page = httpx.get(f"http://{address}/", headers=headers, timeout=300)
    assert page.status_code == (200 if welcome else 403)
    host, port = address.split(":")
    asked = {"Host": address, **headers}
    with socket.create_connection((host, int(port)), timeout=300) as raw:
        lines = [f"{name}: {value}" for name, value in asked.items()]
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        upgrade = ["GET /socket HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", key, "Sec-WebSocket-Version: 13"]
        raw.sendall("\r\n".join([*upgrade, *lines, "", ""]).encode())
        assert raw.recv(4096).split()[1] == (b"101" if welcome else b"403")


def test_an_open_address_takes_addresses_but_no_foreign_names() -> None:
    with serving(ShiftWorld(), host="0.0.0.0") as (address, _):
        for host, status in {"192.168.1.7:80": 200, "[fe80::1]:80": 200, "elsewhere.example": 403, "": 403}.items():
            assert httpx.get(f"http://{address}/", headers={"Host": host}, timeout=300).status_code == status


def test_the_page_allows_nothing_from_elsewhere(address: str) -> None:
    page = httpx.get(f"http://{address}/", timeout=300)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for name in ("player.js", "input.js", "pixels.js", "settings.js", "sketch.js", "worlds.js", "style.css"):
        assert httpx.get(f"http://{address}/{name}", timeout=300).status_code == 200
    for name in ("server.py", "..%2fserver.py", "%2e%2e/server.py", "static", "openapi.json", "docs"):
        assert httpx.get(f"http://{address}/{name}", timeout=300).status_code == 404


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 4000,
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /socket HTTP/1.1\r\nHost: \xff\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\nHost: elsewhere.example\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_bytes_that_are_no_http(address: str, garbage: bytes) -> None:
    host, port = address.split(":")
    # Closed, or left waiting for the rest.
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=1) as raw:
        raw.sendall(garbage)
        raw.recv(4096)
    plays_on(address)


def raw_frames() -> list[bytes]:
    drawn = random.Random(1)
    mask = b"\x00\x00\x00\x00"
    return [
        b"\x81\x84" + mask + b"\xff\xfe\xfd\xfc",  # text that is no UTF-8
        b"\x81\x04abcd",  # not masked
        b"\x83\x80" + mask,  # unknown kind
        b"\x80\x80" + mask,  # a continuation of nothing
        b"\x88\x81" + mask + b"\x01",  # a close that is cut off
        b"\x89\xfe\x01\x00" + mask + bytes(256),  # a ping that is too long
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff" + mask,
        *(drawn.randbytes(200) for _ in range(5)),
    ]


@pytest.mark.parametrize("frame", raw_frames(), ids=range(12))
def test_frames_that_are_no_websocket(address: str, frame: bytes) -> None:
    with Client(address, close_timeout=1) as player:
        player.patience = 1  # it is closed, or left waiting for the rest
        player.socket.socket.sendall(frame)
        with pytest.raises((ConnectionClosed, TimeoutError)):
            player.until(lambda _: False)
    plays_on(address)


def test_sockets_that_vanish(address: str) -> None:
    for _ in range(5):
        client: Any = Client(address)
        client.send(type="hold", action=1, id=1)
        client.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.socket.close()
    plays_on(address)


def test_there_is_one_socket_address(address: str) -> None:
    with pytest.raises(InvalidStatus):
        connect(f"ws://{address}/elsewhere")
