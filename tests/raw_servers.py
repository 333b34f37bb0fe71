"""A server that sends exactly the bytes that a test gives it, for what no well-behaved server would send."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Reply = Callable[["Wire"], Awaitable[None]]


@dataclass
class Wire:
    """The server's end of one connection, in answer to one request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def head(self, status: str = "200 OK", *headers: str, chunked: bool = True) -> None:
        framing = ["Transfer-Encoding: chunked"] if chunked else []
        await self.send("\r\n".join([f"HTTP/1.1 {status}", *framing, *headers, "", ""]).encode())

    async def chunks(self, *parts: bytes) -> None:
        for part in parts:
            await self.send(b"%x\r\n%b\r\n" % (len(part), part))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def page(self, body: Any, status: str = "200 OK", *headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self.head(status, f"Content-Length: {len(raw)}", *headers, chunked=False)
        await self.send(raw)

    def reset(self) -> None:
        """RST instead of FIN."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def silence(self) -> None:
        """Say nothing until the client hangs up."""
        await self.reader.read()


@dataclass
class Seen:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RawServer:
    """Replies by request line ('POST /api/chat'); counts connections and notes who has hung up."""

    replies: dict[str, Reply]
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    hung_up: int = 0
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def asked(self, line: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.line == line]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (seen := await _request(reader)) is not None:
                self.seen.append(seen)
                await self.replies.get(seen.line, _not_found)(Wire(reader, writer))
        except ConnectionError:
            pass  # the client's hang-up may also show in a write
        finally:
            self.hung_up += 1
            writer.close()


@asynccontextmanager
async def raw_server(replies: dict[str, Reply]) -> AsyncIterator[RawServer]:
    running = RawServer(replies)
    server = await asyncio.start_server(running.accept, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        server.close()
        for task in running.serving:
            task.cancel()
        await asyncio.gather(*running.serving, return_exceptions=True)


def page(body: Any, status: str = "200 OK", *headers: str) -> Reply:
    async def reply(wire: Wire) -> None:
        await wire.page(body, status, *headers)

    return reply


def stream(*parts: bytes) -> Reply:
    """200, each part as one chunk, a clean end."""

    async def reply(wire: Wire) -> None:
        await wire.head()
        await wire.chunks(*parts)
        await wire.end()

    return reply


async def silent(wire: Wire) -> None:
    """Not even a header."""
    await wire.silence()


async def _not_found(wire: Wire) -> None:
    await wire.page(b"404 page not found", "404 Not Found")


async def _request(reader: asyncio.StreamReader) -> Seen | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    line, *rest = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in rest)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(line.removesuffix(" HTTP/1.1"), headers, body)
