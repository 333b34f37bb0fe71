"""Step 13, gateway/outbox: what one connection still has to be written, bounded.

Owns the frames between the relay and a socket. A live frame counts against the bound, a page of the log does not: it is
asked for only once the pages before it were written. Must never keep a task for a connection that has nothing to write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item", str, bytes)

Write = Callable[[Item], Awaitable[None]]


class Outbox(Generic[Item]):
    """A queue that writes itself while there is something in it."""

    def __init__(self, write: Write[Item], *, frames: int, size: int, on_overflow: Callable[[], None]) -> None:
        self._write: Write[Item] = write
        self._frames = frames
        self._size = size
        self._on_overflow = on_overflow
        self._queue: deque[tuple[Item, bool]] = deque()
        self._counted_frames = 0
        self._counted_size = 0
        self._writer: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.closed = False

    @property
    def unwritten(self) -> int:
        return len(self._queue)

    def put(self, item: Item, *, counted: bool = True) -> None:
        """Queue an item. A counted one that finds no room ends it: on_overflow, and nothing more is taken."""
        if self.closed:
            return
        if counted:
            self._counted_frames += 1
            self._counted_size += len(item)
            if self._counted_frames > self._frames or self._counted_size > self._size:
                self.close()
                self._on_overflow()
                return
        self._queue.append((item, counted))
        if self._writer is None:
            self._empty.clear()
            self._writer = asyncio.create_task(self._drain())

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything is written. False: not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Take nothing more and forget what is queued; an item that is being written goes on."""
        self.closed = True
        self._queue.clear()

    async def finish(self, last: list[Item], timeout_s: float) -> bool:
        """Close, write these in place of what was queued, and wait. False: the client does not read even that."""
        self.close()
        self._queue.extend((item, False) for item in last)
        if self._queue and self._writer is None:
            self._empty.clear()
            self._writer = asyncio.create_task(self._drain())
        if await self.drained(timeout_s):
            return True
        self.abandon()
        return False

    def abandon(self) -> None:
        """The connection is gone or stalled: nothing more will be written."""
        self.close()
        if self._writer is not None:
            self._writer.cancel()

    async def _drain(self) -> None:
        try:
            while self._queue:
                item, counted = self._queue.popleft()
                if counted:
                    self._counted_frames -= 1
                    self._counted_size -= len(item)
                await self._write(item)
        except OSError:
            # The client went away (uvicorn's ClientDisconnected is one): its own receive says so to the door.
            self.close()
        finally:
            self._writer = None
            self._empty.set()
