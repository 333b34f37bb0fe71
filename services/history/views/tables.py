"""Step 10, history/views/tables: the views' tables in their file, and the one way in which a batch gets into them.

Owns the statements of views-N.db. A batch's rows, their words and the checkpoint are one transaction. Must never take a
batch that does not follow the checkpoint. Used from one thread at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from contracts.events import MESSAGES_PER_EVENT
from services.history.log.port import LogError
from services.history.views.batch import Batch
from services.history.views.fold import KEYS, Drop, Key, Row, Table

# Another number: the tables or the fold changed, and the views are rebuilt under the next N.
VIEWS_VERSION = 6
FILE_MODE = 0o600
_BUSY_TIMEOUT_S = 5.0
# While a long stretch is folded: its indexes stay in memory, the write-ahead log is copied back in large pieces, and
# words are merged sixteen parts at a time (FTS5's most) in place of four: each is then written again less often.
_BULK_CACHE_KIB, _CACHE_KIB = 64 * 1024, 2 * 1024
_BULK_WAL_PAGES, _WAL_PAGES = 8192, 1000
_BULK_MERGED, _MERGED = 16, 4

View = Literal["sessions", "messages", "turns", "words"]
VIEWS: frozenset[View] = frozenset({"sessions", "messages", "turns", "words"})

# A row's words, under the rowid `place`: who owns it as a token that no text of another user can be, its text.
_OWNED = {
    "sessions": ("title", "place, hex(user_id), title FROM sessions"),
    "messages": ("text", "place, hex(user_id), text FROM messages"),
}


class ViewTables:
    """A connection to one file of views."""

    def __init__(self, path: Path) -> None:
        """Makes the tables where there are none. Raises sqlite3.Error."""
        self.path = path
        path.touch(FILE_MODE)
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            self._prepare()
        except sqlite3.Error:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A crash of the machine may lose the tail, which is folded again; the file stays consistent.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        if not self._all("SELECT 1 FROM sqlite_schema WHERE name = 'checkpoint'"):
            script = files("services.history.views").joinpath("schema.sql").read_text()
            self._connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {VIEWS_VERSION};"
                "INSERT INTO checkpoint VALUES (1, 0, NULL); COMMIT;"
            )

    def checkpoint(self) -> tuple[int, bytes | None] | None:
        """The position that is folded and the log's hash there; None: these tables are not today's."""
        try:
            if self._all("PRAGMA user_version") != [(VIEWS_VERSION,)]:
                return None
            [(position, hash_)] = self._all("SELECT position, hash FROM checkpoint")
        except (sqlite3.DatabaseError, ValueError):
            return None
        return position, hash_

    def head_of(self, user_id: str, session_id: str) -> str | None:
        """The answer that the session's next message follows."""
        rows = self._all("SELECT head FROM sessions WHERE user_id = ? AND session_id = ?", (user_id, session_id))
        return rows[0][0] if rows else None

    @contextmanager
    def in_bulk(self) -> Iterator[None]:
        """For as long as a long stretch is written."""
        self._keep(_BULK_CACHE_KIB, _BULK_WAL_PAGES, _BULK_MERGED)
        try:
            yield
        finally:
            self._keep(_CACHE_KIB, _WAL_PAGES, _MERGED)
            self._connection.execute("PRAGMA shrink_memory")

    def _keep(self, cache_kib: int, wal_pages: int, merged: int) -> None:
        self._connection.execute(f"PRAGMA cache_size = -{cache_kib}")
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {wal_pages}")
        self._connection.execute("INSERT INTO words (words, rank) VALUES ('automerge', ?)", (merged,))

    def write(self, batch: Batch, only: frozenset[View] = VIEWS) -> None:
        """The batch and its checkpoint, in one transaction. only: the other views stay as they are."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._move_checkpoint(batch)
            for drop in batch.drops:
                if drop.table in only:
                    self._drop(drop, with_words="words" in only)
            for table in KEYS:
                if table in only:
                    self._set(table, batch.sets[table], with_words="words" in only)
                    self._put(table, batch.puts[table])
            if "words" in only:
                self._add_words(batch)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _move_checkpoint(self, batch: Batch) -> None:
        moved = self._connection.execute(
            "UPDATE checkpoint SET position = ?, hash = ? WHERE position = ?", (batch.position, batch.hash, batch.after)
        )
        if moved.rowcount != 1:
            raise LogError(f"the views are not at {batch.after}: this batch does not follow")

    def _drop(self, drop: Drop, *, with_words: bool) -> None:
        of_session = "user_id = ? AND session_id = ?"
        keys = [(drop.user_id, drop.session_id)]
        if with_words:
            self._forget_words(drop.table, of_session, keys)
        self._connection.executemany(f"DELETE FROM {drop.table} WHERE {of_session}", keys)

    def _set(self, table: Table, rows: dict[Key, Row], *, with_words: bool) -> None:
        this_row = " AND ".join(f"{column} = ?" for column in KEYS[table])
        column, _ = _OWNED.get(table, ("", ""))
        reworded = [key for key, values in rows.items() if with_words and column in values]
        self._forget_words(table, this_row, reworded)
        alike: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
        for key, values in rows.items():
            alike.setdefault(tuple(values), []).append((*values.values(), *key))
        for columns, parameters in alike.items():
            assigned = ", ".join(f"{column} = ?" for column in columns)
            self._connection.executemany(f"UPDATE {table} SET {assigned} WHERE {this_row}", parameters)
        self._learn_words(table, this_row, reworded)

    def _put(self, table: Table, rows: dict[Key, Row]) -> None:
        if not rows:
            return
        columns = list(next(iter(rows.values())))
        sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        self._connection.executemany(sql, map(itemgetter(*columns), rows.values()))

    def _add_words(self, batch: Batch) -> None:
        """Of the new rows: their places lie in this batch. One statement for each table: FTS5 begins each statement by
        writing what it has sorted in memory, as a part of the index that is merged with others later.
        """
        between = "place >= ? AND place < ? ORDER BY place"
        if batch.puts["sessions"]:
            self._learn_words("sessions", between, [(-batch.position, -batch.after)])
        if batch.puts["messages"]:
            places = (MESSAGES_PER_EVENT * (batch.after + 1), MESSAGES_PER_EVENT * (batch.position + 1))
            self._learn_words("messages", between, [places])

    def _learn_words(self, table: Table, which: str, parameters: list[Any]) -> None:
        self._words("INSERT INTO words (rowid, owner, {column}) SELECT {row}", table, which, parameters)

    def _forget_words(self, table: Table, which: str, parameters: list[Any]) -> None:
        """The index holds no text: it is told what stood in the row, before that changes."""
        insert = "INSERT INTO words (words, rowid, owner, {column}) SELECT 'delete', {row}"
        self._words(insert, table, which, parameters)

    def _words(self, insert: str, table: Table, which: str, parameters: list[Any]) -> None:
        if parameters and table in _OWNED:
            column, row = _OWNED[table]
            sql = insert.format(column=column, row=row)
            self._connection.executemany(f"{sql} WHERE coalesce({column}, '') <> '' AND {which}", parameters)

    def _all(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        return self._connection.execute(sql, parameters).fetchall()
