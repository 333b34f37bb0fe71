"""Beside the road: HTTP/1.1 by hand, so that the stand-in decides every byte and every way a connection can end.

It owns the sockets: requests are read with h11, answers are written raw (header order, chunked framing, byte splits,
a FIN in mid-chunk, a reset), and a client that hangs up cancels the handler of its request at once. It knows neither
models nor wires' formats and must never decide what is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

import h11

MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""The largest request body: the 1 MB message of the recordings many times over, yet no way to fill the memory."""

READ_BYTES: Final = 64 * 1024
MAX_PIPELINED_BYTES: Final = 1024 * 1024
"""What a client may send ahead of its answer. More than that and it is cut off: nothing honest does it."""

RESET_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing then sends RST instead of FIN."""

MALFORMED: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
)
PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """One request, read whole. Header names are lower case; `reused` says that its connection served one before."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    reused: bool
    closes: bool


@dataclass
class Departure:
    """When the client of a connection was seen to hang up (monotonic seconds), if it was."""

    at: float | None = None


class Reply:
    """The answer to one request: whole, or as a chunked stream, or one of the ways in which an answer breaks."""

    def __init__(self, writer: asyncio.StreamWriter, request: Request, departure: Departure) -> None:
        self._writer = writer
        self._request = request
        self.departure = departure
        self.split_bytes: int | None = None
        self.split_pause_s = 0.0
        self.started = False
        self.finished = False
        self.broken = False

    async def whole(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Status line, headers, Content-Length and the body (left out for HEAD)."""
        self._head(status, [*headers, ("Content-Length", str(len(body)))])
        if self._request.method != "HEAD":
            self._writer.write(body)
        self.finished = True
        await self._writer.drain()

    async def start(self, status: int, headers: Headers) -> None:
        """Status line and headers of a chunked answer; they leave at once."""
        self._head(status, [*headers, ("Transfer-Encoding", "chunked")])
        await self._writer.drain()

    async def write(self, body: bytes) -> None:
        """One chunk; or several, if a fault asked for splits. Each split is a chunk of its own, so that a client
        meets it even where the kernel joins the packets."""
        if not self.split_bytes:
            self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))
            await self._writer.drain()
            return
        for at in range(0, len(body), self.split_bytes):
            part = body[at : at + self.split_bytes]
            self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await self._writer.drain()
            await asyncio.sleep(self.split_pause_s)

    async def end(self) -> None:
        """The last chunk: a clean end."""
        self._writer.write(b"0\r\n\r\n")
        self.finished = True
        await self._writer.drain()

    def reset(self) -> None:
        """RST: what a killed machine or a middlebox leaves behind. What the kernel had not sent yet is lost."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)
        self._writer.transport.abort()
        self.broken = True

    async def cut(self, body: bytes) -> None:
        """FIN in the middle of a chunk: its size is announced, half of it is sent, then the connection is closed."""
        if self.started:
            self._writer.write(b"%x\r\n%b" % (len(body), body[: len(body) // 2]))
            with contextlib.suppress(ConnectionError):
                await self._writer.drain()
        self.broken = True

    def _head(self, status: int, headers: Headers) -> None:
        phrase = PHRASES.get(status, f"status code {status}")
        closing = [("Connection", "close")] if self._request.closes else []
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in [*headers, *closing])]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self.started = True


Handler = Callable[[Request, Reply], Awaitable[None]]


class _Connection:
    """One client's connection: a pump that reads for as long as it lives, and requests served one after another."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = h11.Connection(h11.SERVER)
        self._arrived = asyncio.Event()
        self._gone = asyncio.Event()
        self._departure = Departure()
        self._ahead_bytes = 0

    async def serve(self, handler: Handler) -> None:
        pump = asyncio.create_task(self._pump())
        try:
            async for request in self._requests():
                reply = Reply(self._writer, request, self._departure)
                await self._handle(handler, request, reply)
                if reply.broken or not reply.finished or request.closes:
                    break
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            self._writer.close()

    async def _handle(self, handler: Handler, request: Request, reply: Reply) -> None:
        """Runs the handler until it has answered or its client has gone, whichever is first."""
        handling = asyncio.ensure_future(handler(request, reply))
        leaving = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({handling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            handling.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await handling

    async def _pump(self) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await self._reader.read(READ_BYTES):
                self._ahead_bytes += len(received)
                if self._ahead_bytes > MAX_BODY_BYTES + MAX_PIPELINED_BYTES:
                    break
                self._parser.receive_data(received)
                self._arrived.set()
        self._departure.at = time.monotonic()
        self._gone.set()
        self._arrived.set()

    async def _requests(self) -> AsyncIterator[Request]:
        served = 0
        while (request := await self._next_request(reused=served > 0)) is not None:
            yield request
            served += 1
            left_over, _ = self._parser.trailing_data
            self._parser = h11.Connection(h11.SERVER)
            if left_over:
                self._parser.receive_data(left_over)
            self._ahead_bytes = len(left_over)

    async def _next_request(self, *, reused: bool) -> Request | None:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError:
                self._writer.write(MALFORMED)
                return None
            if event is h11.NEED_DATA:
                if self._gone.is_set():
                    return None
                self._arrived.clear()
                await self._arrived.wait()
            elif isinstance(event, h11.Request):
                head = event
                if self._parser.they_are_waiting_for_100_continue:
                    self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body), reused=reused)
            else:
                return None


def _request(head: h11.Request, body: bytes, *, reused: bool) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    target = urlsplit(head.target.decode("latin-1"))
    return Request(
        method=head.method.decode("latin-1"),
        path=unquote(target.path),
        query=target.query,
        headers=headers,
        body=body,
        reused=reused,
        closes="close" in headers.get("connection", "").lower() or head.http_version == b"1.0",
    )


async def listen(handler: Handler, host: str, port: int) -> asyncio.Server:
    """A listening server; port 0 picks a free one (see `port_of`)."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(reader, writer).serve(handler)

    return await asyncio.start_server(connected, host, port, backlog=1024)


def port_of(server: asyncio.Server) -> int:
    port = server.sockets[0].getsockname()[1]
    assert isinstance(port, int)
    return port
