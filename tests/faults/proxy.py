"""A TCP proxy between two parts, with the troubles that a network makes: delay, slices, cuts, resets, silence.

Owns the listener and its connections. It must never look at what it carries, nor change a byte of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

CHUNK_BYTES = 64 * 1024
CONNECT_TIMEOUT_S = 5.0
# SO_LINGER with a time of 0: the close sends RST in place of FIN.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Condition:
    """How the network is now. delay_s: before each piece; slice_bytes: the longest piece; closed: nobody gets in."""

    delay_s: float = 0.0
    slice_bytes: int = CHUNK_BYTES
    closed: bool = False


FINE = Condition()


class Proxy:
    """Listens on a port of its own and carries each connection to target, which may come and go."""

    def __init__(self, name: str, target: int) -> None:
        self.name = name
        self.condition = FINE
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CONNECT_TIMEOUT_S)

    def cut(self) -> int:
        """FIN to both ends of each connection; how many there were."""
        return self._end(abort=False)

    def reset(self) -> int:
        """RST to both ends of each connection; how many there were."""
        return self._end(abort=True)

    def half_open(self) -> int:
        """Carry nothing more on the connections of now, and say nothing: their ends must find out by themselves."""
        for link in self._links:
            link.carries.clear()
        return len(self._links)

    def _end(self, *, abort: bool) -> int:
        links = list(self._links)
        for link in links:
            link.end(abort=abort)
        return len(links)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.condition.closed:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # also a timeout: nobody is there
            writer.transport.abort()
            return
        link = _Link(self, writer, far_writer)
        self._links.add(link)
        pumps = [
            asyncio.create_task(link.pump(reader, far_writer)),
            asyncio.create_task(link.pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            self._links.discard(link)
            link.end(abort=False)
            for pump in pumps:
                pump.cancel()


class _Link:
    """One connection, as its two sockets."""

    def __init__(self, proxy: Proxy, *writers: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writers = writers
        self.carries = asyncio.Event()
        self.carries.set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until either end closes or breaks."""
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                await self.carries.wait()
                await self._write(writer, piece)
            await self.carries.wait()
            if writer.can_write_eof():
                writer.write_eof()
                return
        self.end(abort=True)

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        now = self._proxy.condition
        if now.delay_s:
            await asyncio.sleep(now.delay_s)  # pace: the delay is what is injected
        for start in range(0, len(piece), now.slice_bytes):
            writer.write(piece[start : start + now.slice_bytes])
            await writer.drain()

    def end(self, *, abort: bool) -> None:
        self.carries.set()  # whoever waits on a silent way finds it closed
        for writer in self._writers:
            if abort:
                connection = writer.get_extra_info("socket")
                if connection is not None and connection.fileno() >= 0:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()
            else:
                writer.close()


@asynccontextmanager
async def proxied(name: str, target: int) -> AsyncIterator[Proxy]:
    """A proxy that listens, before the port target."""
    proxy = Proxy(name, target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
