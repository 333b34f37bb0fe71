"""Step 13, gateway/direct: uvicorn's WebSocket, which also takes a message that is encoded already.

Owns the shortest way of a frame to a client: the bytes of one message, the same for all who watch, straight to the
transport. Handshake, pings, bounds and closing stay with uvicorn and websockets. Must never write to a transport that
is full: it says so, and who writes waits.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import cast

from starlette.types import Scope
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request

EXTENSION = "chatlog.direct"
# What a stalled client holds here, beside its outbox. A healthy one fills the kernel's buffer first, which is larger.
UNWRITTEN_BYTES = 16 * 1024


# A frame goes to all its watchers before the next one comes.
@lru_cache(maxsize=1)
def text_message(text: bytes) -> bytes:
    """A whole WebSocket message. A server masks nothing and nothing is compressed, so it is the same for everybody."""
    return Frame(Opcode.TEXT, text).serialize(mask=False)


def direct_of(scope: Scope) -> DirectProtocol:
    """The connection of a scope. Taken out of it: the two would keep each other alive."""
    return cast(DirectProtocol, scope["extensions"].pop(EXTENSION))


class DirectProtocol(WebSocketsSansIOProtocol):
    """One connection, of uvicorn's. What it is given within one turn of the loop goes out in one write: the system call
    is two thirds of a delivery (measured), and a gateway with much to do has several frames a turn for everybody."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=UNWRITTEN_BYTES)
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.handshake_complete:
            cast(Scope, self.scope)["extensions"][EXTENSION] = self

    def forget_handshake(self) -> None:
        """Once it is accepted nobody reads its headers any more."""
        del self.request, self.response
        self.scope["headers"] = []

    def write_now(self, message: bytes) -> bool:
        """Write a message. False: the client reads too slowly, or has gone; `write` waits, or says so."""
        if not self._unwritten:
            if not self.writable.is_set() or self.close_sent or self.transport.is_closing():
                return False
            self.loop.call_soon(self._flush)
        self._unwritten.append(message)
        self._unwritten_bytes += len(message)
        if self._unwritten_bytes > UNWRITTEN_BYTES:
            self._flush()
        return True

    async def write(self, message: bytes) -> None:
        """Write a message once there is room. Raises ClientDisconnected, an OSError."""
        await self.writable.wait()
        if not self.write_now(message):
            raise ClientDisconnected

    async def send(self, message: ASGISendEvent) -> None:
        """uvicorn's own way, for the close: after what was written before it."""
        self._flush()
        await super().send(message)

    def _flush(self) -> None:
        if self._unwritten and not self.transport.is_closing():
            self.transport.write(b"".join(self._unwritten))
        self._unwritten.clear()
        self._unwritten_bytes = 0
