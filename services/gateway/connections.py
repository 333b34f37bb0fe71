"""Steps 2 and 13, gateway/connections: the streams and sockets that are open, and how all of them are ended in time.

Owns the set of them, so that a drain can end each with a word and a key that is no longer valid ends what it opened.
Must never wait for one longer than the drain's bound.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

from services.gateway.auth import Caller

# A key that was revoked or has expired closes what it opened within 2 s: this, the bucket's word, and the goodbye.
SWEEP_EVERY_S = 0.5
# How long the goodbye to a client whose key is no longer valid may take to be written.
EXPEL_S = 1.0
# Clients of a stream or socket that is ended come back spread over so long, so that the next gateway is not stormed.
RETRY_MS = (200, 3000)


def retry_ms() -> int:
    """When one client is to come back."""
    return random.randint(*RETRY_MS)


class Connection(Protocol):
    caller: Caller

    async def drain(self) -> None:
        """Tell the client that this gateway goes, and end."""

    def expel(self) -> None:
        """Tell the client that its key is not valid (any more), and end within EXPEL_S."""


class Connections:
    """Every open stream and socket, each there from its start to its end."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)

    async def drain(self, timeout_s: float) -> None:
        """End all of them; who is not ended in time is cut."""
        endings = [asyncio.create_task(connection.drain()) for connection in tuple(self._open)]
        if endings:
            _, late = await asyncio.wait(endings, timeout=timeout_s)
            for task in late:
                task.cancel()

    async def sweep(self, is_live: Callable[[Caller], bool]) -> None:
        """For ever: end whose key is no longer valid. One task for all, so that expiry needs none per client."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            for connection in tuple(self._open):
                if not is_live(connection.caller):
                    connection.expel()
