"""Steps 8 and 9, history/writer: the recorder in its own thread, and after each commit what follows outside, in order.

Owns the log's thread and the order of commits and effects. Must never let an effect out before its commit, nor go on
after a LogError: whether the commit is there is not known, so the process ends and the next one reopens the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from contracts.imports import ImportReply
from contracts.turns import Go, Stop
from services.history.arrivals import Delivery
from services.history.batch import Retried
from services.history.draft import Situation
from services.history.effects import Show
from services.history.importing import Importing
from services.history.log.port import Cursor, LogError
from services.history.publisher import Publisher
from services.history.recorder import Committed, Recorder
from services.history.scheduler import OpenTurn

log = structlog.get_logger(__name__)

T = TypeVar("T")


class LogThread:
    """One thread: SQLite's connection lives in it, and whole batches run in it as one function."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="log")
        self._broken = asyncio.Event()
        self._error: LogError | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """work's result. A caller that is cancelled does not cancel the work: a commit is never left half done."""
        try:
            return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._executor, work))
        except LogError as error:
            self.broke(error)
            raise

    def broke(self, error: LogError) -> None:
        """Whoever met it (a query's handler, a callback of the bus) may swallow it; watch does not."""
        self._error = self._error or error
        self._broken.set()

    async def watch(self) -> None:
        """Raises the first LogError that anybody met: supervised, so that the process ends."""
        await self._broken.wait()
        assert self._error is not None
        raise self._error

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class Writer:
    """All writing goes through here, one transaction at a time."""

    def __init__(
        self, thread: LogThread, recorder: Recorder, publisher: Publisher, situation: Callable[[], Situation]
    ) -> None:
        self._thread = thread
        self._recorder = recorder
        self._publisher = publisher
        self._situation = situation
        self._order = asyncio.Lock()
        self.position = recorder.position
        self.moved = asyncio.Condition()

    @property
    def cursor(self) -> Cursor:
        return self._recorder.cursor

    async def record(self, deliveries: list[Delivery], after: Cursor) -> None:
        """Step 8 for one batch of the intake."""
        situation = self._situation()
        await self._commit(lambda: self._recorder.record(deliveries, after, situation))

    async def start_waiting(self) -> None:
        """Start what waits, if there is room by now: it costs a sync only then."""
        situation = self._situation()
        if await self._thread.run(lambda: self._recorder.may_start(situation)):
            await self._commit(lambda: self._recorder.start_waiting(situation))

    async def end_turns(self, turns: list[tuple[OpenTurn, str]]) -> None:
        situation = self._situation()
        await self._commit(lambda: self._recorder.end_turns(turns, situation))

    async def requeue(self, turns: list[OpenTurn]) -> None:
        situation = self._situation()
        await self._commit(lambda: self._recorder.requeue(turns, situation))

    async def retry_parked(self, parked_id: int) -> Retried | None:
        """A parked event once more; None where it is not parked (any more)."""
        situation = self._situation()
        return (await self._commit(lambda: self._recorder.retry_parked(parked_id, situation))).retried

    async def import_into(self, work: Callable[[Importing], ImportReply]) -> ImportReply:
        """Part of a session from elsewhere."""
        situation = self._situation()
        committed = await self._commit(lambda: self._recorder.import_into(work, situation))
        assert committed.imported is not None
        return committed.imported

    async def discard_parked(self, parked_id: int) -> bool:
        """Forget a parked event for good; whether it was there."""
        async with self._order:
            return await self._thread.run(lambda: self._recorder.discard_parked(parked_id))

    @property
    def epoch(self) -> str:
        return self._recorder.epoch

    async def begin_epoch(self, reason: str) -> None:
        """This log is not the one that clients were shown: cursors of before get a resync."""
        async with self._order:
            await self._thread.run(self._recorder.begin_epoch)
        log.warning("epoch_begun", epoch=self.epoch, reason=reason)

    async def drop_outcomes(self, decided_before: str) -> None:
        """Forget refusals and no-ops that were decided before this time."""
        async with self._order:
            await self._thread.run(lambda: self._recorder.drop_outcomes(decided_before))

    async def word(self, user_id: str, turn_id: str, claimed_at: int = 0) -> Go | Stop | None:
        """The turn's word; None while the log does not say it yet: catching up, or before the claim was consumed."""
        if self._situation().catching_up or self.cursor.sequence < claimed_at:
            return None
        return await self._thread.run(lambda: self._recorder.word(user_id, turn_id))

    async def open_turns(self) -> list[OpenTurn]:
        return await self._thread.run(self._recorder.open_turns)

    async def show(self, frames: Callable[[list[OpenTurn]], list[Show]]) -> None:
        """Frames about the unfinished turns as they are now: no commit comes between looking and telling."""
        async with self._order:
            await self._publisher.carry_out(frames(await self.open_turns()))

    async def _commit(self, work: Callable[[], Committed]) -> Committed:
        async with self._order:
            committed = await self._thread.run(work)
            await self._publisher.carry_out(committed.effects)
        async with self.moved:
            self.position = committed.position
            self.moved.notify_all()
        return committed
