"""Step 10, history/views/store: the views that serve: their file among others, written in order, read beside.

Owns which of the files views-N.db serves, and the end of the others. It can be deleted at any time: it is rebuilt from
the log. Must never hold what the log does not have.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import aiosqlite
import structlog

from services.history.log.port import LogError
from services.history.log.reader import LogReader, LogRow
from services.history.views.batch import Heads
from services.history.views.filling import HEADS_KEPT, fill, fold_rows
from services.history.views.tables import ViewTables

log = structlog.get_logger(__name__)

_NAME = re.compile(r"views-(\d+)\.db")
# Views that are being rebuilt: no number, so that no start takes them for views.
REBUILD = "rebuild.db"


_ADOPT_WAIT_S = 5.0


class NotFinished(Exception):
    """There are no rebuilt views that could serve."""


class ViewStore:
    """The one connection that writes to the views, and the one that reads them."""

    def __init__(self, tables: ViewTables, reading: aiosqlite.Connection) -> None:
        self.path = tables.path
        self.reading = reading
        self._tables = tables
        self.position = 0
        self._hash: bytes | None = None
        self._ending = False
        self._order = asyncio.Lock()

    @classmethod
    async def open(cls, folder: Path, reader: LogReader) -> ViewStore:
        """The newest views that fit the log; others are replaced by empty ones under the next number."""
        number = max(_numbers(folder), default=1)
        store = await _open(views_path(folder, number))
        if not (await store._is_readable() and await store._follows(reader)):
            await store.close()
            number += 1
            store = await _open(views_path(folder, number))
        for old in _numbers(folder):
            if old < number:
                remove_views(views_path(folder, old))
        return store

    async def close(self) -> None:
        """What is being read is read to its end first."""
        await self.reading.close()
        await asyncio.to_thread(self._tables.close)

    async def apply(self, rows: Sequence[LogRow]) -> None:
        """Fold these rows, which follow the checkpoint, in one transaction with it."""
        await self._write(lambda: self._apply(rows))

    async def fill(self, log_path: Path, last: int) -> None:
        """Fold a long stretch of the log, up to this position."""
        await self._write(lambda: fill(log_path, self._tables, last, self._told))

    async def swap(self, reader: LogReader) -> None:
        """Serve the views that were rebuilt beside these, from one moment to the next: queries that are under way read
        the old ones to their end. Raises NotFinished: all is as it was.
        """
        fresh = await _open(await asyncio.to_thread(adopt, self.path.parent))
        if not (await fresh._is_readable() and await fresh._follows(reader)):
            await fresh.close()
            remove_views(fresh.path)
            raise NotFinished("what was rebuilt does not follow this log")
        await fresh.fill(reader.path, self.position)
        async with self._order:
            # What was folded meanwhile: nobody may see the views go back.
            await fresh.fill(reader.path, self.position)
            old = ViewStore(self._tables, self.reading)
            self.path, self.reading, self._tables = fresh.path, fresh.reading, fresh._tables
            self.position, self._hash = fresh.position, fresh._hash
        await old.close()
        # In a thread: a file of a gigabyte is not gone at once, and people chat.
        await asyncio.to_thread(remove_views, old.path)

    @contextmanager
    def condemned_if_broken(self) -> Iterator[None]:
        """A damaged file, or rows that are not what the log says, are worth nothing: the next start makes new ones."""
        path = self.path
        try:
            yield
        except sqlite3.Error as error:
            if type(error) is sqlite3.DatabaseError or isinstance(error, sqlite3.IntegrityError):
                log.error("views_condemned", file=path.name, error=str(error))
                remove_views(path)
            raise LogError(f"the views cannot be used: {error}") from error

    async def _write(self, work: Callable[[], None]) -> None:
        """In a thread; one that is cancelled here ends there first: nobody else may use the connection meanwhile."""
        async with self._order:
            await self._in_a_thread(work)

    async def _in_a_thread(self, work: Callable[[], None]) -> None:
        with self.condemned_if_broken():
            running = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                self._ending = True
                await asyncio.wait([running])
                running.exception()  # that it ended early was asked for
                raise

    def _apply(self, rows: Sequence[LogRow]) -> None:
        # A swap may have come between their reading and now, to views that have folded some of them.
        rows = [row for row in rows if row.position > self.position]
        batch = fold_rows(self.position, rows, Heads(self._tables.head_of, HEADS_KEPT))
        if rows:
            self._tables.write(batch)
            self._told(batch.position)

    def _told(self, position: int) -> None:
        self.position = position
        if self._ending:
            raise LogError("the service ends; its next start goes on from here")

    async def _is_readable(self) -> bool:
        """Whether these tables are today's."""
        found = await asyncio.to_thread(self._tables.checkpoint)
        if found is not None:
            self.position, self._hash = found
        return found is not None

    async def _follows(self, reader: LogReader) -> bool:
        """Whether what was folded is what the log says, up to the checkpoint."""
        return self.position == 0 or await reader.hash_at(self.position) == self._hash


async def folded_another_log(folder: Path, reader: LogReader) -> bool:
    """Whether the newest views have folded what this log does not say: it was put in another's place, as a backup is
    that is restored. Views that are not there or not readable tell nothing."""
    newest = newest_views(folder)
    if newest is None:
        return False
    store = await _open(newest)
    try:
        return await store._is_readable() and not await store._follows(reader)
    finally:
        await store.close()


async def _open(path: Path) -> ViewStore:
    tables = await asyncio.to_thread(_tables, path)
    reading = await aiosqlite.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    reading.row_factory = sqlite3.Row
    return ViewStore(tables, reading)


def _tables(path: Path) -> ViewTables:
    try:
        return ViewTables(path)
    except sqlite3.DatabaseError:
        # Not a database any more: it is worth nothing, and the log has it all.
        remove_views(path)
        return ViewTables(path)


def adopt(folder: Path) -> Path:
    """Give rebuilt views the next number, under which they serve. Raises NotFinished."""
    rebuilt = folder / REBUILD
    if not rebuilt.exists():
        raise NotFinished("nothing has been rebuilt")
    try:
        with closing(sqlite3.connect(rebuilt, isolation_level=None, timeout=_ADOPT_WAIT_S)) as connection:
            [(finished,)] = connection.execute("SELECT position >= goal FROM checkpoint, rebuild").fetchall()
            if not finished:
                raise NotFinished("the rebuild has not reached its end")
            connection.execute("DROP TABLE rebuild")
    except (sqlite3.Error, ValueError) as error:
        raise NotFinished(f"the rebuilt views cannot be used: {error}") from error
    if Path(f"{rebuilt}-wal").exists():
        raise NotFinished("another process still has the rebuilt views open")
    path = views_path(folder, max(_numbers(folder), default=0) + 1)
    rebuilt.rename(path)
    return path


def newest_views(folder: Path) -> Path | None:
    numbers = _numbers(folder)
    return views_path(folder, numbers[-1]) if numbers else None


def views_path(folder: Path, number: int) -> Path:
    return folder / f"views-{number}.db"


def remove_views(path: Path) -> None:
    """The file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _numbers(folder: Path) -> list[int]:
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))
