"""One simulated history: the real recorder, writer, queries, deadlines and liveness on a real SQLite log.

Owns what the real process does in loops and tasks: following the intake, the order of its start, and looking at the
clock. It may be killed before a commit and before each effect of one (SteppedBus.publish_live pauses there).
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from contracts import subjects
from contracts.base import dump, time_text
from contracts.queries import Failure, read_query
from contracts.turns import Cancel, read_presence
from services.history.arrivals import Delivery
from services.history.continuity import Stream, check_stream
from services.history.deadlines import Deadlines, Patience
from services.history.draft import Situation
from services.history.effects import Queue, Unqueue
from services.history.liveness import Liveness
from services.history.log.port import Cursor, LogError, Stored
from services.history.log.reader import LogReader
from services.history.log.sqlite import SqliteLog, SqliteTransaction
from services.history.publisher import Publisher
from services.history.queries import Queries, QueryFailed
from services.history.recorder import Recorder
from services.history.scheduler import OpenTurn
from services.history.writer import Writer
from tests.recording import BOUNDS as UNBOUNDED
from tests.simulation.server import CREATED, Connection, Server, Work
from tests.simulation.stepping import SteppedBus, at_once

T = TypeVar("T")

EPOCH = "e" * 32
# Small, so that they are met: states leave the cache, turns wait for room, a page is not the whole.
CACHED_SESSIONS = 2
BOUNDS = replace(UNBOUNDED, active_per_user=2)
PAGE_ROWS = 4
PATIENCE = Patience(no_worker_s=120.0, requeue_s=60.0, cancel_s=5.0)
BEGAN = datetime(2026, 11, 20, tzinfo=UTC)


class History:
    """From its start to its death."""

    def __init__(self, folder: Path, server: Server, new_id: Callable[[], str]) -> None:
        self.connection = Connection(server, "history", self._reconnected)
        self._server = server
        self.log = SqliteLog(folder / "log.db", EPOCH, self._now_text())
        # What dies here is a process, not the machine: nothing is lost that was not synced.
        self.log._connection.execute("PRAGMA synchronous = OFF")
        self._reading = sqlite3.connect(f"file:{folder / 'log.db'}?mode=ro", uri=True, isolation_level=None)
        self.recorder = Recorder(self.log, BOUNDS, new_id, CACHED_SESSIONS)
        self._liveness = Liveness(server.now())
        self._deadlines = Deadlines(PATIENCE, server.now())
        bus = cast(Any, SteppedBus(self.connection))
        self._publisher = _Publisher(bus, self.connection)
        self._writer = Writer(cast(Any, _Thread()), self.recorder, self._publisher, self._situation)
        reader = LogReader(Path(), cast(Any, _Rows(self._reading)))
        self._queries = Queries(EPOCH, reader, cast(Any, None), cast(Any, None), cast(Any, None), self._writer)
        self._fetched: deque[Delivery] = deque()
        self._work: Coroutine[Any, Any, object] | None = None  # a commit, and what of its effects is not out yet
        self._jobs: deque[Callable[[], Coroutine[Any, Any, object]]] = deque()
        self._begun = False
        self.disk_fails_after: int | None = None  # so many rows of the next batch
        self.connection.subscribe(subjects.PRESENCE_ALL, self._hear)
        self._prepare()

    def _prepare(self) -> None:
        """The follower's own start."""
        stream = Stream(CREATED, 1 if self._server.intake else 0, len(self._server.intake), 0)
        self._target = stream.last_sequence
        cursor = check_stream(stream, self.recorder.cursor, accept_gap=False)
        if cursor != self.recorder.cursor:
            at_once(self._writer.record([], cursor))
        self._follow()

    def _follow(self) -> None:
        self._fetched.clear()
        self._server.follow(self.connection, self.recorder.cursor.sequence + 1, self._fetched.append)

    @property
    def catching_up(self) -> bool:
        return self.recorder.cursor.sequence < self._target

    def steps(self) -> Iterator[Work]:
        """One transaction at a time, and its effects before the next."""
        if self._work is not None:
            yield self._go_on
            return
        if self._fetched:
            yield lambda: self._record(len(self._fetched))
            if len(self._fetched) > 1:
                yield lambda: self._record(1)
        if self._jobs:
            yield lambda: self._begin(self._jobs.popleft()())
        if not self._begun and not self.catching_up and self.connection.connected:
            yield self._dispatch

    def tick(self) -> None:
        """Once a second: the upkeep's look at the unfinished turns."""
        self.connection.expire()
        if not self._begun:
            return
        if not self.connection.connected:
            self._deadlines.reset()
            return
        workers = self._liveness.at(self._server.now())
        due = self._deadlines.look(self._server.now(), self.recorder.open_turns(), workers, workers.first_model())
        for turn in due.cancelling:
            self.connection.publish(subjects.turn(turn.user_id, turn.turn_id), dump(Cancel(turn_id=turn.turn_id)))
        if due.over:
            self._jobs.append(lambda: self._writer.end_turns(due.over))
        if due.silent:
            self._jobs.append(lambda: self._writer.requeue(due.silent))
        self._jobs.append(self._writer.start_waiting)

    def close(self) -> None:
        """It dies: what was not committed is rolled back, what was not published never is."""
        if self._work is not None:
            self._work.close()
        self._server.close(self.connection)
        self._reading.close()
        self.log.close()

    # What it does.

    def _record(self, count: int) -> None:
        batch = [self._fetched.popleft() for _ in range(count)]
        after = Cursor(self.recorder.cursor.stream_created, batch[-1].sequence)
        fails_after, self.disk_fails_after = self.disk_fails_after, None
        try:
            with _disk(fails_after):
                self._begin(self._writer.record(batch, after))
        except LogError:
            # The real process exits. It goes on here with what it has in memory: nothing of the batch may be left.
            self._work = None
            self._follow()

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        self._work = work
        self._go_on()

    def _go_on(self) -> None:
        assert self._work is not None
        work, self._work = self._work, None
        try:
            work.send(None)
        except StopIteration:
            return
        self._work = work

    def _dispatch(self) -> None:
        """All was followed that was there at the start: from here on turns are started and questions answered."""
        self._begun = True
        for query in ("events", "turn", "outcome"):
            self.connection.subscribe(f"chat.history.{query}.*", lambda raw, to, q=query: self._answer(q, raw, to))  # type: ignore[misc]
        self._deadlines.reset()
        self._jobs.extend((self._publisher.hello, self._writer.start_waiting, self._requeue))

    async def _requeue(self) -> None:
        turns: list[OpenTurn] = await self._writer.open_turns()
        await self._writer.requeue([turn for turn in turns if turn.active and not turn.cancelling])

    def _reconnected(self) -> None:
        self._liveness.back(self._server.now())
        self._deadlines.reset()
        self._follow()
        if self._begun:
            self._jobs.extend((self._publisher.hello, self._requeue))

    def _hear(self, payload: bytes, _reply: str) -> None:
        self._liveness.heard(read_presence(payload), self._server.now())

    def _answer(self, name: str, payload: bytes, reply: str) -> None:
        query = read_query(name, payload)
        if name == "events":
            query = query.model_copy(update={"limit": PAGE_ROWS})
        try:
            answer: bytes = at_once(getattr(self._queries, name)(query))
        except QueryFailed as failed:
            answer = dump(Failure(error=failed.code))
        self.connection.publish(reply, answer)

    def _situation(self) -> Situation:
        workers = self._liveness.at(self._server.now())
        return Situation(
            now=self._now_text(),
            catching_up=self.catching_up,
            alive=workers.alive,
            default_model=workers.first_model(),
            window_of=lambda model: workers.window_of(model) or 4096,
            digest_of=workers.digest_of,
            full_name=workers.full_name,
            room_of=lambda model: max(1, workers.slots_of(model) // 2),
        )

    def _now_text(self) -> str:
        return time_text(BEGAN + timedelta(seconds=self._server.now()))


@contextmanager
def _disk(fails_after: int | None) -> Iterator[None]:
    """A disk that is full after so many rows."""
    real = SqliteTransaction.append
    rows = itertools.count()

    def append(tx: SqliteTransaction, stored: Stored) -> None:
        if fails_after is not None and next(rows) >= fails_after:
            raise LogError("disk full")
        real(tx, stored)

    SqliteTransaction.append = append  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        SqliteTransaction.append = real  # type: ignore[method-assign]


class _Publisher(Publisher):
    """The real one, but for the tasks in which it queues contexts."""

    def __init__(self, bus: Any, connection: Connection) -> None:
        super().__init__(bus)
        self._connection = connection
        self._on_the_way: dict[str, Queue] = {}

    def _start_queueing(self, effect: Queue) -> None:
        if effect.turn_id not in self._on_the_way:
            self._on_the_way[effect.turn_id] = effect
            self._put(effect)

    def _put(self, effect: Queue) -> None:
        """Until the queue has it."""

        def answered(number: int | None) -> None:
            if self._on_the_way.get(effect.turn_id) is effect:
                if number is None:
                    self._put(effect)
                else:
                    del self._on_the_way[effect.turn_id]

        subject = subjects.context("answer", effect.model, effect.turn_id)
        server = self._connection.server
        self._connection.store(lambda: server.put_context(subject, effect.payload), answered)

    def _start_unqueueing(self, effect: Unqueue) -> None:
        """Behind what is on its way: a publish that came after the purge would stay."""
        self._on_the_way.pop(effect.turn_id, None)
        subject = subjects.context("answer", effect.model, effect.turn_id)
        self._connection.tell(lambda: self._connection.server.purge_context(subject))


class _Thread:
    """The log's thread: a batch is atomic for everybody else anyway."""

    async def run(self, work: Callable[[], T]) -> T:
        return work()


class _Rows:
    """aiosqlite's connection without its thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def execute_fetchall(self, sql: str, parameters: Any) -> list[Any]:
        return self._connection.execute(sql, parameters).fetchall()
