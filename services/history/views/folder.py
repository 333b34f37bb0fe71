"""Step 10, history/views: keep the views in step with the log, from wherever they are.

Owns the loop that reads the log after the checkpoint and folds it, live and after a delete alike. Must never be waited
for by the write side.
"""

from __future__ import annotations

import asyncio

from services.history.log.reader import LogReader
from services.history.views.filling import FAR_EVENTS
from services.history.views.store import ViewStore
from services.history.writer import Writer

# A batch is one transaction: more than comes while one is folded, small enough that readers see it move.
FOLD_ROWS = 256
# How long a query waits for the views to reach what its client has seen recorded.
MIN_POSITION_WAIT_S = 1.0


class ViewFolder:
    """One task; queries wait here for a position."""

    def __init__(self, store: ViewStore, log: LogReader, writer: Writer) -> None:
        self._store = store
        self._log = log
        self._writer = writer
        self._moved = asyncio.Condition()

    @property
    def position(self) -> int:
        return self._store.position

    @property
    def file(self) -> str:
        """The name of the file that serves."""
        return self._store.path.name

    async def swap(self) -> None:
        """Serve the views that were rebuilt beside these. Raises NotFinished."""
        await self._store.swap(self._log)
        await self._tell()

    async def catch_up(self) -> None:
        """At the start: all that is in the log now, a long stretch of it as a rebuild does."""
        last = await self._log.last_position()
        if last - self._store.position >= FAR_EVENTS:
            await self._store.fill(self._log.path, last)
        await self._fold_committed()

    async def run(self) -> None:
        """Fold what is committed, for ever."""
        while True:
            await self._fold_committed()
            async with self._writer.moved:
                await self._writer.moved.wait_for(lambda: self._writer.position > self._store.position)

    async def _fold_committed(self) -> None:
        while rows := await self._log.rows_after(self._store.position, FOLD_ROWS):
            await self._store.apply(rows)
            await self._tell()

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def reach(self, position: int) -> bool:
        """Whether the views have folded this position, now or within MIN_POSITION_WAIT_S."""
        try:
            async with asyncio.timeout(MIN_POSITION_WAIT_S), self._moved:
                await self._moved.wait_for(lambda: self._store.position >= position)
        except TimeoutError:
            return False
        return True
