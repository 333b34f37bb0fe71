"""Beside the road: durable appends: how many events a second the log takes from so many writers that wait for each.

Owns the comparison with PyPI's eventsourcing: the same bodies, both with SQLite's synchronous FULL, in turns within one
run. Here each writer waits for the commit of its one event, as a user does: what waits together is committed together.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

from bench.beside import FULL, ask
from bench.figures import Result, run
from bench.generated import SEED, STREAM, Use
from bench.stack import NotMeasured
from services.history.log.port import Cursor, Stored
from services.history.log.sqlite import SqliteLog
from services.history.settings import HistorySettings
from services.history.writer import LogThread

WRITERS = (1, 16, 64, 256)
COMPARED = 16
TIMES = 4.0
EVENTS = 20_000
LASTS_S = 3.0
REPEATS = 3


async def measure(lasts_s: float = LASTS_S, repeats: int = REPEATS) -> Result:
    result = Result(
        "append", f"appends of realistic events, each waited for, {lasts_s:g} s each, {repeats} times in turns"
    )
    rows = list(islice(Use(SEED).rows(), EVENTS))
    bodies = [row.event.body for row in rows]
    for writers in WRITERS:
        ours: list[float] = []
        theirs: list[float] = []
        sizes: list[tuple[float, float]] = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as folder:
                rate, size = await _append(rows, Path(folder), writers, lasts_s)
                said = await asyncio.to_thread(ask, "append", bodies, Path(folder) / "beside", writers, lasts_s)
            ours.append(rate)
            theirs.append(said["per_s"])
            sizes.append((size, said["bytes_per_event"]))
        result.add(f"{writers} writers", "events/s", ours)
        result.add(f"{writers} writers, eventsourcing", "events/s", theirs)
        times = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        result.add(f"{writers} writers, times", "x", times, at_least=TIMES if writers == COMPARED else None)
    result.add("bytes per event", "B", [size for size, _ in sizes])
    result.add("bytes per event, eventsourcing", "B", [size for _, size in sizes])
    result.add("of these the event itself", "B", [sum(map(len, bodies)) / len(bodies)])
    return result


class _GroupCommit:
    """What waits when a commit ends is the next one, as in history's follower: at most a batch."""

    def __init__(self, log: SqliteLog, thread: LogThread, rows: list[Stored]) -> None:
        self._log = log
        self._thread = thread
        self._rows = rows
        self._waiting: list[asyncio.Future[None]] = []
        self._some = asyncio.Event()
        self.committed = 0

    async def append(self) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        self._some.set()
        await mine

    async def commit_for_ever(self) -> None:
        most = HistorySettings().batch_events
        while True:
            await self._some.wait()
            taken, self._waiting = self._waiting[:most], self._waiting[most:]
            if not self._waiting:
                self._some.clear()
            await self._thread.run(partial(self._commit, len(taken)))
            for each in taken:
                each.set_result(None)

    def _commit(self, count: int) -> None:
        before = Cursor(STREAM if self.committed else None, self.committed)
        with self._log.transaction(before, Cursor(STREAM, self.committed + count)) as tx:
            for row in self._rows[self.committed : self.committed + count]:
                tx.append(row)
        self.committed += count


async def _append(rows: list[Stored], folder: Path, writers: int, lasts_s: float) -> tuple[float, float]:
    """Events a second, and the bytes that each takes in the file."""
    path = folder / "log.db"
    thread = LogThread()
    log = await thread.run(lambda: SqliteLog(path, "0" * 32, "2026-01-05T08:00:00.000Z"))
    if await thread.run(lambda: _synchronous(log)) != FULL:
        raise NotMeasured("the log is not durable")
    group = _GroupCommit(log, thread, rows)
    committing = asyncio.create_task(group.commit_for_ever())
    end = time.perf_counter() + lasts_s

    async def write() -> None:
        while time.perf_counter() < end and group.committed + writers < len(rows):
            await group.append()

    began = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(writers)))
    took = time.perf_counter() - began
    committing.cancel()
    await thread.run(log.close)
    thread.close()
    return group.committed / took, path.stat().st_size / group.committed


def _synchronous(log: SqliteLog) -> int:
    return int(log._connection.execute("PRAGMA synchronous").fetchone()[0])


if __name__ == "__main__":
    run(measure).tell()
