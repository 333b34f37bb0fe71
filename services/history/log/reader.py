"""Steps 5 and 10, history/log: reading the log beside its writer: for attach, outcomes and the views' fold.

Owns a read-only connection (aiosqlite). What it reads is committed. Must never write.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite

from contracts.frames import event_frame
from contracts.queries import PAGE_BYTES, At
from services.history.log.port import LogError, StoredOutcome
from services.history.log.sqlite import OUTCOME_SQL, find_outcome, outcome_parameters


def read_only(path: Path) -> sqlite3.Connection:
    """A connection to the log, or to views, that cannot write, for who does not wait in an event loop."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


class LogRow(NamedTuple):
    """A stored row: its place, the bytes, and the chain's hash up to it."""

    position: int
    version: int
    recorded_at: str
    body: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """A parked event, without its bytes."""

    parked_id: int
    sequence: int
    subject: str
    headers: dict[str, str]
    reason: str
    parked_at: str
    size: int


ROW_SQL = "SELECT position, version, recorded_at, body, hash FROM events"
_PARKED_SQL = "SELECT parked_id, sequence, subject, headers, reason, parked_at, length(body) FROM parked"


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Frames after a version, as far as a page goes; version is the session's latest, 0 where there is none."""

    version: int
    more: bool
    running_turn_id: str | None
    running_attempt: int
    frames: tuple[bytes, ...]


class LogReader:
    """Shared by all readers of one process: its statements run one after the other."""

    def __init__(self, path: Path, connection: aiosqlite.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    async def open(cls, path: Path) -> LogReader:
        return cls(path, await aiosqlite.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None))

    async def close(self) -> None:
        await self._connection.close()

    async def rows_after(self, position: int, limit: int) -> list[LogRow]:
        """The next rows of the whole log."""
        rows = await self._all(f"{ROW_SQL} WHERE position > ? ORDER BY position LIMIT ?", (position, limit))
        return [LogRow(*row) for row in rows]

    async def session_rows(self, user_id: str, session_id: str, versions: tuple[int, int], limit: int) -> list[LogRow]:
        """The next rows of a session: after the first version, up to the second."""
        rows = await self._all(
            f"{ROW_SQL} WHERE user_id = ? AND session_id = ? AND version > ? AND version <= ? ORDER BY version LIMIT ?",
            (user_id, session_id, *versions, limit),
        )
        return [LogRow(*row) for row in rows]

    async def session_of_turn(self, user_id: str, turn_id: str) -> str | None:
        rows = await self._all(
            "SELECT session_id FROM events WHERE type = 'user_message_submitted' AND user_id = ? AND turn_id = ?",
            (user_id, turn_id),
        )
        return rows[0][0] if rows else None

    async def turn_rows(self, user_id: str, session_id: str, turn_id: str) -> list[LogRow]:
        """A turn's own rows, in order: its message first."""
        rows = await self._all(
            f"{ROW_SQL} WHERE user_id = ? AND session_id = ? AND turn_id = ? ORDER BY version",
            (user_id, session_id, turn_id),
        )
        return [LogRow(*row) for row in rows]

    async def rows_at(self, positions: list[int]) -> list[LogRow]:
        """The rows at these positions, in the log's order."""
        rows = await self._all(
            f"{ROW_SQL} WHERE position IN (SELECT value FROM json_each(?)) ORDER BY position", (json.dumps(positions),)
        )
        return [LogRow(*row) for row in rows]

    async def hash_at(self, position: int) -> bytes | None:
        """The chain's hash there: the same one means the same log up to there."""
        rows = await self._all("SELECT hash FROM events WHERE position = ?", (position,))
        return rows[0][0] if rows else None

    async def last_position(self) -> int:
        rows = await self._all("SELECT coalesce(max(position), 0) FROM events", ())
        return int(rows[0][0])

    async def parked(self) -> int:
        rows = await self._all("SELECT count(*) FROM parked", ())
        return int(rows[0][0])

    async def parked_after(self, parked_id: int, limit: int) -> list[ParkedEvent]:
        """The next parked events, oldest first, without their bytes."""
        rows = await self._all(f"{_PARKED_SQL} WHERE parked_id > ? ORDER BY parked_id LIMIT ?", (parked_id, limit))
        return [_parked_event(row) for row in rows]

    async def parked_event(self, parked_id: int) -> ParkedEvent | None:
        rows = await self._all(f"{_PARKED_SQL} WHERE parked_id = ?", (parked_id,))
        return _parked_event(rows[0]) if rows else None

    async def parked_bytes(self, parked_id: int) -> bytes:
        """As they were received; empty where there is no such event (any more)."""
        rows = await self._all("SELECT body FROM parked WHERE parked_id = ?", (parked_id,))
        return bytes(rows[0][0]) if rows else b""

    async def outcome(self, user_id: str, event_id: str) -> StoredOutcome | None:
        rows = await self._all(OUTCOME_SQL, outcome_parameters(user_id, event_id))
        return find_outcome(rows[0] if rows else None)

    async def session_page(self, user_id: str, session_id: str, after: int, limit: int) -> SessionPage:
        """A page of one session's frames, at most PAGE_BYTES unless its first is larger."""
        latest = await self._all(
            "SELECT coalesce(max(version), 0) FROM events WHERE user_id = ? AND session_id = ?",
            (user_id, session_id),
        )
        version = int(latest[0][0])
        rows = await self._all(
            "SELECT version, position, recorded_at, body FROM events"
            " WHERE user_id = ? AND session_id = ? AND version > ? AND version <= ? ORDER BY version LIMIT ?",
            (user_id, session_id, after, version, limit),
        )
        frames: list[bytes] = []
        reached, size = after, 0
        for row_version, position, recorded_at, body in rows:
            size += len(body)
            if frames and size > PAGE_BYTES:
                break
            frames.append(event_frame(body, session_id, position, row_version, recorded_at))
            reached = row_version
        turn_id, attempt = await self._running(user_id, session_id, version)
        return SessionPage(version, bool(rows) and reached < version, turn_id, attempt, tuple(frames))

    async def version_at(self, user_id: str, session_id: str, at: At) -> int:
        """The session's last version up to this one, or that was recorded by this time; 0: it was not there yet."""
        until = "version <= ?" if isinstance(at, int) else "recorded_at <= ?"
        rows = await self._all(
            f"SELECT coalesce(max(version), 0) FROM events WHERE user_id = ? AND session_id = ? AND {until}",
            (user_id, session_id, at),
        )
        return int(rows[0][0])

    async def deleted_after(self, user_id: str, session_id: str, version: int) -> str | None:
        """When what was there at this version was deleted for good: not restored, but perhaps begun again since."""
        rows = await self._all(
            "SELECT type, json_extract(body, '$.occurred_at') FROM events"
            " WHERE user_id = :user AND session_id = :session AND version > :version AND version <"
            " (SELECT coalesce(min(version), 9e18) FROM events WHERE user_id = :user AND session_id = :session"
            " AND version > :version AND type = 'session_started')"
            " AND type IN ('session_deleted', 'session_restored') ORDER BY version DESC LIMIT 1",
            {"user": user_id, "session": session_id, "version": version},
        )
        return rows[0][1] if rows and rows[0][0] == "session_deleted" else None

    async def session_is_deleted(self, user_id: str, session_id: str) -> bool:
        rows = await self._all(
            "SELECT type FROM events WHERE user_id = ? AND session_id = ?"
            " AND type IN ('session_started', 'session_deleted', 'session_restored') ORDER BY version DESC LIMIT 1",
            (user_id, session_id),
        )
        return bool(rows) and rows[0][0] == "session_deleted"

    async def _running(self, user_id: str, session_id: str, version: int) -> tuple[str | None, int]:
        """The turn that was started last and has no end yet, and its attempt."""
        rows = await self._all(
            "SELECT started.turn_id, json_extract(started.body, '$.data.attempt') FROM events AS started"
            " WHERE started.user_id = :user AND started.session_id = :session AND started.version <= :version"
            " AND started.type = 'answer_started'"
            " AND NOT EXISTS (SELECT 1 FROM events AS ended WHERE ended.user_id = :user"
            " AND ended.turn_id = started.turn_id AND ended.version <= :version"
            " AND ended.type IN ('answer_completed', 'answer_failed', 'answer_cancelled'))"
            " ORDER BY started.version DESC LIMIT 1",
            {"user": user_id, "session": session_id, "version": version},
        )
        return (rows[0][0], int(rows[0][1])) if rows else (None, 0)

    async def _all(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            rows = await self._connection.execute_fetchall(sql, parameters)
        except sqlite3.Error as error:
            raise LogError(f"the log cannot be read: {error}") from error
        return [tuple(row) for row in rows]


def _parked_event(row: tuple[Any, ...]) -> ParkedEvent:
    parked_id, sequence, subject, headers, reason, parked_at, size = row
    return ParkedEvent(parked_id, sequence, subject, json.loads(headers), reason, parked_at, size)
