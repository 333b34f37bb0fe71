"""Step 8, history/log: the log in SQLite: one writer, one transaction per batch, synced before it is said to be there.

Owns log.db and its lock file. Duplicates are found by SELECT, never by a UNIQUE error. Must never go on after an error
of the disk: a failed commit may be there after reopening (measured), so the caller exits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from services.history.log.earlier import UNSEALED, take_up
from services.history.log.port import (
    FIRST_HASH,
    Cursor,
    LogError,
    LogFenced,
    LogUnreadable,
    ParkedDelivery,
    Stored,
    StoredOutcome,
    Transaction,
    chain_hash,
)
from services.history.log.seals import holds, seal, sealed

SCHEMA_VERSION = 2
# A backup or an operator's look may hold the file for a moment; longer is an error that someone should see.
BUSY_TIMEOUT_MS = 5000
FILE_MODE = 0o600


class LogLocked(LogError):
    """Another process has this log open for writing."""


class SqliteLog:
    """The writer's connection. Opened and used in one thread."""

    def __init__(self, path: Path, new_epoch: str, now: str) -> None:
        self._lock = take_lock(path.with_suffix(".lock"))
        path.touch(mode=FILE_MODE)
        try:
            self._connection = _open(path)
            _make_ready(self._connection, new_epoch, now)
            self.epoch: str = self._connection.execute("SELECT epoch FROM log").fetchone()[0]
        except (sqlite3.Error, LogError) as error:
            self._lock.close()
            raise LogError(f"cannot open {path}: {error}") from error

    def cursor(self) -> Cursor:
        created, sequence = self._connection.execute("SELECT stream_created, sequence FROM cursor").fetchone()
        return Cursor(created, sequence)

    @contextmanager
    def transaction(self, before: Cursor, after: Cursor) -> Iterator[Transaction]:
        with _as_log_error():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                _move_cursor(self._connection, before, after)
                yield SqliteTransaction(self._connection)
            except BaseException:
                self._roll_back()
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def look(self) -> Iterator[Transaction]:
        with _as_log_error():
            self._connection.execute("BEGIN")
            try:
                yield SqliteTransaction(self._connection)
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        """An error of the disk may have ended the transaction by itself."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()
        self._lock.close()


class SqliteTransaction:
    """The verbs of one batch, one statement each. Each raises LogError itself: a failed statement may have ended the
    transaction, so nobody may take its error for one of an event's.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        last = self._all("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1")
        self._position: int = last[0][0] if last else 0
        self._hash: bytes = last[0][1] if last else FIRST_HASH

    def last_position(self) -> int:
        return self._position

    def append(self, stored: Stored) -> None:
        event = stored.event
        if stored.position != self._position + 1:
            raise LogError(f"position {stored.position} does not follow {self._position}")
        data_hash = event.data_hash
        body_hash = hashlib.sha256(event.body).digest()
        self._hash = chain_hash(self._hash, stored, data_hash, body_hash)
        self._position = stored.position
        self._all(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                stored.position,
                event.event_id,
                event.user_id,
                event.session_id,
                stored.version,
                event.turn_id,
                event.type,
                event.envelope.schema_version,
                stored.recorded_at,
                data_hash,
                event.body,
                body_hash,
                self._hash,
            ),
        )

    def session_rows(self, user_id: str, session_id: str) -> Iterator[Stored]:
        """Read row by row: a long session is never held whole."""
        with _as_log_error():
            for row in self._connection.execute(
                "SELECT position, version, recorded_at, body FROM events"
                " WHERE user_id = ? AND session_id = ? ORDER BY version",
                (user_id, session_id),
            ):
                yield stored_row(*row)

    def events_at(self, positions: list[int]) -> dict[int, Event]:
        rows = self._all(
            "SELECT position, body FROM events WHERE position IN (SELECT value FROM json_each(?))",
            (json.dumps(positions),),
        )
        return {position: _read_row(position, body) for position, body in rows}

    def outcome(self, user_id: str, event_id: str) -> StoredOutcome | None:
        rows = self._all(OUTCOME_SQL, outcome_parameters(user_id, event_id))
        return find_outcome(rows[0] if rows else None)

    def owner(self, event_id: str) -> str | None:
        rows = self._all("SELECT user_id FROM events WHERE event_id = ?", (event_id,))
        return rows[0][0] if rows else None

    def put_outcome(self, user_id: str, outcome: StoredOutcome, decided_at: str) -> None:
        self._all(
            "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            sealed(
                "outcomes",
                user_id,
                outcome.event_id,
                outcome.session_id,
                outcome.turn_id,
                outcome.data_hash,
                outcome.code,
                outcome.position,
                outcome.version,
                decided_at,
            ),
        )

    def drop_outcome(self, user_id: str, event_id: str) -> None:
        self._all("DELETE FROM outcomes WHERE user_id = ? AND event_id = ?", (user_id, event_id))

    def drop_outcomes_before(self, decided_at: str) -> None:
        """Forget what was refused, or changed nothing, before this time."""
        self._all("DELETE FROM outcomes WHERE decided_at < ?", (decided_at,))

    def begin_epoch(self, epoch: str) -> None:
        with _as_log_error():
            put_epoch(self._connection, epoch)

    def park(self, parked: ParkedDelivery, parked_at: str) -> None:
        self._all(
            "INSERT INTO parked VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            sealed(
                "parked",
                parked.parked_id or self._next_parked_id(),
                parked.sequence,
                parked.subject,
                json.dumps(parked.headers),
                parked.body,
                parked.reason,
                parked_at,
            ),
        )

    def _next_parked_id(self) -> int:
        [(epoch, created_at, given)] = self._all("SELECT epoch, created_at, parked_ids FROM log")
        self._all(_LOG_SQL, sealed("log", 1, epoch, created_at, given + 1))
        return int(given) + 1

    def unpark(self, parked_id: int) -> ParkedDelivery | None:
        rows = self._all(
            "DELETE FROM parked WHERE parked_id = ? RETURNING sequence, subject, headers, body, reason", (parked_id,)
        )
        if not rows:
            return None
        sequence, subject, headers, body, reason = rows[0]
        return ParkedDelivery(sequence, subject, json.loads(headers), body, reason, parked_id)

    def session_of_turn(self, user_id: str, turn_id: str) -> str | None:
        rows = self._all(
            "SELECT session_id FROM events WHERE type = 'user_message_submitted' AND user_id = ? AND turn_id = ?",
            (user_id, turn_id),
        )
        return rows[0][0] if rows else None

    def open_turns(self) -> list[tuple[str, str, str]]:
        return self._all(OPEN_TURNS_SQL)

    def last_contexts(self, after: int) -> list[tuple[str, int]]:
        return self._all(
            "SELECT user_id, max(position) FROM events WHERE type = 'context_assembled' AND position > ?"
            " GROUP BY user_id",
            (after,),
        )

    def _all(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> list[Any]:
        with _as_log_error():
            return self._connection.execute(sql, parameters).fetchall()


OPEN_TURNS_SQL = """
    SELECT opened.user_id, opened.session_id, opened.turn_id
    FROM events AS opened INDEXED BY turns_opened
    WHERE opened.type = 'user_message_submitted'
      AND NOT EXISTS (SELECT 1 FROM events AS ended
                      WHERE ended.user_id = opened.user_id AND ended.turn_id = opened.turn_id
                        AND ended.type IN ('answer_completed', 'answer_failed', 'answer_cancelled'))
    ORDER BY opened.position
"""

OUTCOME_SQL = """
    SELECT event_id, session_id, turn_id, data_hash, type, NULL, position, version
    FROM events WHERE event_id = :event_id AND user_id = :user_id
    UNION ALL
    SELECT event_id, session_id, turn_id, data_hash, NULL, code, position, version
    FROM outcomes WHERE user_id = :user_id AND event_id = :event_id
    LIMIT 1
"""


_LOG_SQL = "UPDATE log SET (only_row, epoch, created_at, parked_ids, seal) = (?, ?, ?, ?, ?)"
_CURSOR_SQL = "UPDATE cursor SET stream_created = ?, sequence = ?, seal = ?"


def outcome_parameters(user_id: str, event_id: str) -> dict[str, str]:
    return {"user_id": user_id, "event_id": event_id}


def find_outcome(row: Any) -> StoredOutcome | None:
    """The outcome in a row of OUTCOME_SQL."""
    return StoredOutcome(*row) if row else None


def stored_row(position: int, version: int, recorded_at: str, body: bytes) -> Stored:
    return Stored(position, version, recorded_at, _read_row(position, body))


def _read_row(position: int, body: bytes) -> Event:
    try:
        return read_event(body)
    except ContractError as error:
        raise LogUnreadable(f"position {position} of the log: {error.reason}") from error


@contextmanager
def _as_log_error() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise LogError(f"the log failed: {error}") from error


def take_lock(path: Path) -> TextIO:
    """Held until it is closed or the process ends: a second writer is refused, however it was started."""
    handle = path.open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise LogLocked(f"another process writes to this log ({path} is locked)") from error
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    return handle


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1000)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _make_ready(connection: sqlite3.Connection, epoch: str, now: str) -> None:
    """A log of today's schema, to go on from. Raises LogError: it is a later one's, or damaged where it would go on."""
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found == 0:
        _create(connection, epoch, now)
    elif found == UNSEALED:
        take_up(connection)
    elif found != SCHEMA_VERSION:
        raise LogError(f"it has schema {found}; this version reads {SCHEMA_VERSION}")
    # The next write would seal what is there.
    for table in ("log", "cursor"):
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
        if len(rows) != 1 or not holds(table, *rows[0]):
            raise LogError(f"its {table} is not what was written; `chatlog verify` says what else is not")


def _create(connection: sqlite3.Connection, epoch: str, now: str) -> None:
    """All tables or none: user_version is set in the same transaction."""
    script = files("services.history.log").joinpath("schema.sql").read_text()
    connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {SCHEMA_VERSION};")
    connection.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", sealed("log", 1, epoch, now, 0))
    connection.execute("INSERT INTO cursor VALUES (?, ?, ?, ?)", sealed("cursor", 1, None, 0))
    connection.execute("COMMIT")


def put_epoch(connection: sqlite3.Connection, epoch: str) -> None:
    """Name what the log says from now on. Raises sqlite3.Error."""
    [kept] = connection.execute("SELECT created_at, parked_ids FROM log").fetchall()
    connection.execute(_LOG_SQL, sealed("log", 1, epoch, *kept))


def put_cursor(connection: sqlite3.Connection, cursor: Cursor) -> None:
    """Wherever it was before. Raises sqlite3.Error."""
    connection.execute(_CURSOR_SQL, _cursor_values(cursor))


def _cursor_values(cursor: Cursor) -> tuple[Any, ...]:
    created, sequence = cursor.stream_created, cursor.sequence
    return created, sequence, seal("cursor", 1, created, sequence)


def _move_cursor(connection: sqlite3.Connection, before: Cursor, after: Cursor) -> None:
    moved = connection.execute(
        f"{_CURSOR_SQL} WHERE stream_created IS ? AND sequence = ?",
        (*_cursor_values(after), before.stream_created, before.sequence),
    )
    if moved.rowcount != 1:
        raise LogFenced("the cursor is not where this process left it: another one writes to the log")
