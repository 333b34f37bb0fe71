"""Step 13, gateway/outbox: what one connection still has to be written, bounded.

Owns the frames between the relay and a socket. A live frame counts against the bound, a page of the log does not: it is
asked for only once the pages before it were written. Must never keep a task, nor a queue, for a connection that has
nothing to write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

Write = Callable[[bytes], Awaitable[None]]
# Writes at once, or says that it cannot.
WriteNow = Callable[[bytes], bool]


def _never(_item: bytes) -> bool:
    return False


class Outbox:
    """A queue that writes itself while there is something in it. What can be written at once never enters it."""

    def __init__(
        self, write: Write, *, frames: int, size: int, on_overflow: Callable[[], None], write_now: WriteNow = _never
    ) -> None:
        self.closed = False
        self._write = write
        self._write_now = write_now
        self._frames = frames
        self._size = size
        self._on_overflow = on_overflow
        # There while the writer is. A None follows each item that does not count: a flag beside each of 2 000 frames
        # of each stalled client would take eight times the room.
        self._queue: deque[bytes | None] | None = None
        self._counted_frames = 0
        self._counted_size = 0
        self._writer: asyncio.Task[None] | None = None

    @property
    def unwritten(self) -> int:
        return len(self._queue or ())

    def put(self, item: bytes, *, counted: bool = True) -> None:
        """Write an item or queue it. A counted one without room ends it: on_overflow, and nothing more is taken."""
        if self.closed or (self._queue is None and self._write_now(item)):
            return
        if counted:
            self._counted_frames += 1
            self._counted_size += len(item)
            if self._counted_frames > self._frames or self._counted_size > self._size:
                self.close()
                self._on_overflow()
                return
        self._append(item, counted=counted)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything is written. False: not in time."""
        if self._writer is None:
            return True
        done, _ = await asyncio.wait({self._writer}, timeout=timeout_s)
        return bool(done)

    def close(self) -> None:
        """Take nothing more and forget what is queued; an item that is being written goes on."""
        self.closed = True
        if self._queue is not None:
            self._queue.clear()

    async def finish(self, last: list[bytes], timeout_s: float) -> bool:
        """Close, write these in place of what was queued, and wait. False: the client does not read even that."""
        self.close()
        for item in last:
            self._append(item, counted=False)
        if await self.drained(timeout_s):
            return True
        self.abandon()
        return False

    def abandon(self) -> None:
        """The connection is gone or stalled: nothing more will be written."""
        self.close()
        if self._writer is not None:
            self._writer.cancel()

    def _append(self, item: bytes, *, counted: bool) -> None:
        if self._queue is None:
            self._queue = deque()
            self._writer = asyncio.create_task(self._drain(self._queue))
        self._queue.append(item)
        if not counted:
            self._queue.append(None)

    async def _drain(self, queue: deque[bytes | None]) -> None:
        try:
            while queue:
                item = queue.popleft()
                assert item is not None
                if queue and queue[0] is None:
                    queue.popleft()
                else:
                    self._counted_frames -= 1
                    self._counted_size -= len(item)
                await self._write(item)
        except OSError:
            # The client went away (uvicorn's ClientDisconnected is one): its own receive says so to the door.
            self.close()
        finally:
            self._queue = self._writer = None
