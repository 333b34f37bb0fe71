"""Step 10, history/views: the views' own database: folded rows and the checkpoint they belong to, together.

Owns views-N.db. It can be deleted at any time: it is rebuilt from the log. Must never hold what the log does not have.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiosqlite
import structlog

from contracts.envelope import read_event
from services.history.log.port import LogError
from services.history.log.reader import LogReader, LogRow
from services.history.views.fold import Change, Put, Recorded, Value, fold

log = structlog.get_logger(__name__)

# Another number: the tables or the fold changed, and the views are rebuilt under the next N.
VIEWS_VERSION = 3
_NAME = re.compile(r"views-(\d+)\.db")
_BUSY_TIMEOUT_S = 5.0


class ViewStore:
    """The one connection that writes to the views, and the one that reads them."""

    def __init__(self, path: Path, writing: aiosqlite.Connection, reading: aiosqlite.Connection) -> None:
        self.path = path
        self.reading = reading
        self._writing = writing
        self.position = 0
        self._hash: bytes | None = None

    @classmethod
    async def open(cls, folder: Path, reader: LogReader) -> ViewStore:
        """The newest views that fit the log; others are replaced by empty ones under the next number."""
        number = max(_numbers(folder), default=1)
        store = await _open(folder / f"views-{number}.db")
        if not (await store._is_readable() and await store._follows(reader)):
            await store.close()
            number += 1
            store = await _open(folder / f"views-{number}.db")
        for old in _numbers(folder):
            if old < number:
                remove_views(folder / f"views-{old}.db")
        return store

    async def close(self) -> None:
        await self._writing.close()
        await self.reading.close()

    async def apply(self, rows: Sequence[LogRow]) -> None:
        """Fold these rows, which follow the checkpoint, in one transaction with it."""
        with self.condemned_if_broken():
            await self._apply(rows)

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

    async def _apply(self, rows: Sequence[LogRow]) -> None:
        recorded = [Recorded(r.position, r.version, r.recorded_at, read_event(r.body)) for r in rows]
        heads = await self._heads(recorded)
        await self._writing.execute("BEGIN IMMEDIATE")
        try:
            for each in recorded:
                for change in fold(each, lambda user, session: heads.get((user, session)), json.dumps):
                    await self._write(change)
                    _keep_head(heads, change)
            await self._writing.execute(
                "UPDATE checkpoint SET position = ?, hash = ?", (rows[-1].position, rows[-1].hash)
            )
        except BaseException:
            await self._writing.execute("ROLLBACK")
            raise
        await self._writing.execute("COMMIT")
        self.position, self._hash = rows[-1].position, rows[-1].hash

    async def _heads(self, recorded: list[Recorded]) -> dict[tuple[str, str], str | None]:
        keys = {(each.event.user_id, each.event.session_id) for each in recorded}
        found: dict[tuple[str, str], str | None] = {}
        for user_id, session_id in keys:
            rows = await self._writing.execute_fetchall(
                "SELECT head FROM sessions WHERE user_id = ? AND session_id = ?", (user_id, session_id)
            )
            for (head,) in rows:
                found[(user_id, session_id)] = head
        return found

    async def _write(self, change: Change) -> None:
        if isinstance(change, Put):
            columns = ", ".join(change.row)
            marks = ", ".join("?" * len(change.row))
            sql, values = f"INSERT INTO {change.table} ({columns}) VALUES ({marks})", [*change.row.values()]
        else:
            assigned = ", ".join(f"{column} = ?" for column in change.values)
            where = " AND ".join(f"{column} = ?" for column in change.key)
            sql = f"UPDATE {change.table} SET {assigned} WHERE {where}"
            values = [*change.values.values(), *change.key.values()]
        await self._writing.execute(sql, values)

    async def _is_readable(self) -> bool:
        """Whether these tables are today's."""
        try:
            version = (await _row(self._writing, "PRAGMA user_version"))[0]
            if version != VIEWS_VERSION:
                return False
            self.position, self._hash = await _row(self._writing, "SELECT position, hash FROM checkpoint")
        except (sqlite3.DatabaseError, IndexError):
            return False
        return True

    async def _follows(self, reader: LogReader) -> bool:
        """Whether what was folded is what the log says, up to the checkpoint."""
        return self.position == 0 or await reader.hash_at(self.position) == self._hash


async def folded_another_log(folder: Path, reader: LogReader) -> bool:
    """Whether the newest views have folded what this log does not say: it was put in another's place, as a backup is
    that is restored. Views that are not there or not readable tell nothing."""
    numbers = _numbers(folder)
    if not numbers:
        return False
    store = await _open(folder / f"views-{numbers[-1]}.db")
    try:
        return await store._is_readable() and not await store._follows(reader)
    finally:
        await store.close()


def _keep_head(heads: dict[tuple[str, str], str | None], change: Change) -> None:
    """A later event of the same batch follows the head that this one left."""
    if change.table != "sessions":
        return
    values: dict[str, Value] = change.row if isinstance(change, Put) else {**change.key, **change.values}
    if "head" in values:
        head = values["head"]
        heads[(str(values["user_id"]), str(values["session_id"]))] = None if head is None else str(head)


async def _open(path: Path) -> ViewStore:
    try:
        writing = await _writing(path)
    except sqlite3.DatabaseError:
        # Not a database any more: it is worth nothing, and the log has it all.
        remove_views(path)
        writing = await _writing(path)
    return ViewStore(path, writing, await _reading(path))


async def _writing(path: Path) -> aiosqlite.Connection:
    await asyncio.to_thread(path.touch, 0o600)
    connection = await aiosqlite.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S)
    try:
        await _prepare(connection)
    except sqlite3.Error:
        await connection.close()  # its thread would keep the process from ending
        raise
    return connection


async def _prepare(connection: aiosqlite.Connection) -> None:
    await connection.execute("PRAGMA journal_mode = WAL")
    # A crash of the machine may lose the tail, which is folded again; the file stays consistent.
    await connection.execute("PRAGMA synchronous = NORMAL")
    if not await connection.execute_fetchall("SELECT 1 FROM sqlite_schema WHERE name = 'checkpoint'"):
        script = files("services.history.views").joinpath("schema.sql").read_text()
        await connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {VIEWS_VERSION};"
            "INSERT INTO checkpoint VALUES (1, 0, NULL); COMMIT;"
        )


async def _reading(path: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


async def _row(connection: aiosqlite.Connection, sql: str) -> Any:
    rows = list(await connection.execute_fetchall(sql))
    return rows[0]


def remove_views(path: Path) -> None:
    """The file and what SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _numbers(folder: Path) -> list[int]:
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))
