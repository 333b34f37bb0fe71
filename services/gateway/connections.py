"""Step 13, gateway/connections: the streams and sockets that are open, so that a drain can end each with a word.

Owns the set of them. Must never wait for one longer than the drain's bound.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Connection(Protocol):
    async def drain(self) -> None:
        """Tell the client that this gateway goes, and end."""


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
