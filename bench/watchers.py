"""Beside the road: the clients of the sockets' figures: many websockets of one process that is not the gateway.

Owns as little work per frame as Python allows, so that the gateway is what is measured: a watcher counts the tokens of
what it receives and answers pings, but decodes nothing; a stalled client is a plain socket that is never read. Must
never take a part of a frame for a whole one: the end of what came is looked at again with what comes next.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import cast

from bench.streams import STAMP

HOST = "127.0.0.1"
OPEN_S = 60.0
HANDSHAKE = (
    "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat.v1\r\n"
    "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
UPGRADED = b"HTTP/1.1 101 "
ATTACHED = b'"type":"attached"'
TOKEN = b'"type":"token"}'
END = b'"type":"answer_completed"'
BROKEN = (b'"type":"error"', b'"type":"refused"', b'"type":"resync"', b'"answer_failed"')
# A token's frame is some 250 bytes; of a longer one, which is another's, the end will do.
LONGEST_REST = 4096
# The gateway's pings carry four bytes. No text of ours holds the first of these, which is not ASCII.
PING = b"\x89\x04"
PING_LENGTH = 6
PONG = b"\x8a\x84\0\0\0\0"
SHORT = 125
# /proc/net/tcp: columns of a row, and the state of a connection that both sides hold.
LOCAL, REMOTE, STATE, ESTABLISHED = 1, 2, 3, "01"
# What the kernel keeps for a stalled client is not the gateway's memory: little, so that its buffers fill soon.
STALLED_RECEIVE_BYTES = 4096


def handshake(port: int) -> bytes:
    return HANDSHAKE.format(port=port).encode()


def client_frame(frame: dict[str, str]) -> bytes:
    """A text frame of a client, under a mask of zeros: masked, as it must be, by the bytes themselves."""
    body = json.dumps(frame).encode()
    assert len(body) <= SHORT
    return bytes([0x81, 0x80 | len(body)]) + b"\0\0\0\0" + body


class Watcher(asyncio.Protocol):
    """One healthy client, attached to one session."""

    def __init__(self, port: int, session: str) -> None:
        loop = asyncio.get_running_loop()
        self._handshake = handshake(port)
        self._attach = client_frame({"type": "attach", "session": session})
        self._rest = b""
        self.attached: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.frames = 0
        self.first_at = 0.0
        self.last_at = 0.0
        # From the token's own moment to ours, in seconds: only where they are asked for.
        self.hops: list[float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._handshake)

    def connection_lost(self, _error: Exception | None) -> None:
        for waiting in (self.attached, self.ended):
            if not waiting.done():
                waiting.set_exception(RuntimeError(f"a watcher was cut: {self._rest.decode(errors='replace')}"))
                waiting.exception()

    def data_received(self, received: bytes) -> None:
        if self._attach and received.startswith(UPGRADED):
            self._transport.write(self._attach)
            self._attach = b""
        seen = self._rest + received
        if (ping := seen.find(PING)) >= 0 and len(seen) >= ping + PING_LENGTH:
            self._transport.write(PONG + seen[ping + 2 : ping + PING_LENGTH])
        after_tokens = seen.rfind(TOKEN) + len(TOKEN)
        if after_tokens >= len(TOKEN):
            self._tokens(seen, after_tokens)
            self._rest = seen[after_tokens:]
        else:
            self._rest = seen[-LONGEST_REST:]
        if self._rest:
            self._others(seen)

    def close(self) -> None:
        self._transport.abort()

    def listen_anew(self) -> None:
        """Forget what was counted: another answer comes."""
        self.ended = asyncio.get_running_loop().create_future()
        self.frames = 0
        self.first_at = 0.0
        self._rest = b""

    def _tokens(self, seen: bytes, end: int) -> None:
        self.last_at = time.monotonic()
        self.first_at = self.first_at or self.last_at
        self.frames += seen.count(TOKEN)
        if self.hops is not None:
            now_ns = time.monotonic_ns()
            self.hops += [(now_ns - int(stamp)) / 1e9 for stamp in STAMP.findall(seen, 0, end)]

    def _others(self, seen: bytes) -> None:
        if not self.attached.done() and ATTACHED in seen:
            self.attached.set_result(None)
        if END in seen and not self.ended.done():
            self.ended.set_result(None)
        for word in BROKEN:
            if word in seen:
                self._rest = seen[-500:]
                self._transport.abort()


async def watch(port: int, session: str) -> Watcher:
    """A watcher that is attached."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(OPEN_S):
        _, watcher = await loop.create_connection(lambda: Watcher(port, session), HOST, port)
        await watcher.attached
    return watcher


class Stalled:
    """A client that attaches and from then on never reads, nor answers a ping."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()


def held_by(port: int) -> set[int]:
    """The ports of those whose connection the server at this port still holds. A client that is cut while it does not
    read goes on to look connected on its own side (measured): the word of the end has no room there.
    """
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    held = (row for row in rows if row[STATE] == ESTABLISHED and _port(row[LOCAL]) == port)
    return {_port(row[REMOTE]) for row in held}


def _port(address: str) -> int:
    return int(address.partition(":")[2], 16)


async def stall(port: int, session: str) -> Stalled:
    """A client that reads until it is attached, and stalls."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_RECEIVE_BYTES)
    async with asyncio.timeout(OPEN_S):
        await loop.sock_connect(sock, (HOST, port))
        await loop.sock_sendall(sock, handshake(port))
        if not (await loop.sock_recv(sock, STALLED_RECEIVE_BYTES)).startswith(UPGRADED):
            raise RuntimeError("a client was turned away")
        await loop.sock_sendall(sock, client_frame({"type": "attach", "session": session}))
        seen = b""
        while ATTACHED not in seen:
            received = await loop.sock_recv(sock, STALLED_RECEIVE_BYTES)
            if not received:
                raise RuntimeError("a client was cut before it stalled")
            seen = seen[-LONGEST_REST:] + received
    return Stalled(sock)
