"""Step 10, history/views/store: the views that serve: their file among others, written in order, read beside.

Owns which of the files views-N.db serves, and the end of the others. It can be deleted at any time: it is rebuilt from
the log. Must never hold what the log does not have.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class ViewStore:
    """The one connection that writes to the views, and the one that reads them."""

    def __init__(self, tables: ViewTables, reading: aiosqlite.Connection) -> None:
        self.path = tables.path
        self.reading = reading
        self._tables = tables
        self.position = 0
        self._hash: bytes | None = None
        self._ending = False

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

    @contextmanager
    def condemned_if_broken(self) -> Iterator[None]:
        """A damaged file, or rows that are not what the log says, are worth nothing: the next start makes new ones."""
        try:
            yield
        except sqlite3.Error as error:
            if type(error) is sqlite3.DatabaseError or isinstance(error, sqlite3.IntegrityError):
                log.error("views_condemned", file=self.path.name, error=str(error))
                remove_views(self.path)
            raise LogError(f"the views cannot be used: {error}") from error

    async def _write(self, work: Callable[[], None]) -> None:
        """In a thread; one that is cancelled here ends there first: nobody else may use the connection meanwhile."""
        with self.condemned_if_broken():
            running = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                self._ending = True
                await asyncio.wait([running])
                raise

    def _apply(self, rows: Sequence[LogRow]) -> None:
        batch = fold_rows(self.position, rows, Heads(self._tables.head_of, HEADS_KEPT))
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
    numbers = _numbers(folder)
    if not numbers:
        return False
    store = await _open(views_path(folder, numbers[-1]))
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


def views_path(folder: Path, number: int) -> Path:
    return folder / f"views-{number}.db"


def remove_views(path: Path) -> None:
    """The file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _numbers(folder: Path) -> list[int]:
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))
