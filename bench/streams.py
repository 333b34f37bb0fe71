"""Beside the road: the one client of the relay's figures: it sends a request and notes when each token came.

Owns the clock on the client's side; the other moment is in the token itself. The same code reads the model server, the
naive relay and Chatlog, so that what differs between them is not the client. Must never leave an answer out that did
not end: it raises.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, cast

STAMP = re.compile(rb"@(\d+)")
# An answer of 60 tokens takes 1.3 s; one that takes so long is not a slow one, it is lost.
ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Door:
    """How to ask one of the three, and how its lines look: what ends a token's line, and what is in the last line."""

    name: str
    port: int
    path: str
    token: bytes
    end: bytes
    broken: tuple[bytes, ...] = (b'"answer_failed"', b'"type":"error"', b'"error":')

    def request(self, path: str, body: dict[str, Any]) -> bytes:
        raw = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(raw)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + raw


@dataclass
class Heard:
    """One answer as a client heard it. hops: from the token's own moment to ours, in seconds."""

    ttft_s: float = 0.0
    hops: list[float] = field(default_factory=list)
    frames: int = 0


class Listener(asyncio.Protocol):
    """Reads one answer. `ended` gives what was heard, or raises."""

    def __init__(self, door: Door, request: bytes) -> None:
        self._door = door
        self._request = request
        self._rest = b""
        self._heard = Heard()
        self.ended: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._sent_ns = time.monotonic_ns()
        self._transport.write(self._request)

    def data_received(self, received: bytes) -> None:
        now_ns = time.monotonic_ns()
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            if line.endswith(self._door.token):
                self._token(line, now_ns)
            elif self._door.end in line:
                self._transport.close()
                if not self.ended.done():
                    self.ended.set_result(self._heard)
            elif any(word in line for word in self._door.broken):
                self._fail(line.decode())

    def connection_lost(self, _error: Exception | None) -> None:
        self._fail(f"the connection ended: {self._rest.decode(errors='replace')[-200:]}")

    def _token(self, line: bytes, now_ns: int) -> None:
        heard = self._heard
        if not heard.frames:
            heard.ttft_s = (now_ns - self._sent_ns) / 1e9
        heard.frames += 1
        heard.hops += [(now_ns - int(stamp)) / 1e9 for stamp in STAMP.findall(line)]

    def _fail(self, words: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(RuntimeError(f"{self._door.name}: {words}"))
            self._transport.close()


async def hear(door: Door, path: str, body: dict[str, Any], after_s: float = 0.0) -> Heard:
    """Send one request, after a while, and listen to its answer."""
    await asyncio.sleep(after_s)  # pace: starts that are spread
    loop = asyncio.get_running_loop()
    _, listener = await loop.create_connection(lambda: Listener(door, door.request(path, body)), "127.0.0.1", door.port)
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await listener.ended


def model_server(port: int) -> Door:
    return Door("direct", port, "/api/chat", b'"done":false}', b'"done":true')


def naive(port: int) -> Door:
    return Door("naive", port, "/chats/{chat}", b'"}', b"[DONE]")


def chatlog(port: int) -> Door:
    return Door("chatlog", port, "/v1/sessions/{chat}/messages", b'"type":"token"}', b'"type":"answer_completed"')


async def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer to a POST. Raises RuntimeError for a refusal."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = json.dumps(body).encode()
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode() + raw)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answer = await reader.read()
    finally:
        writer.close()
    found, _, said = answer.partition(b"\r\n\r\n")
    if found.split()[1] not in (b"200", b"201"):
        raise RuntimeError(f"POST {path}: {said.decode()}")
    parsed: dict[str, Any] = json.loads(said)
    return parsed
