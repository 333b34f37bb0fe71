"""Step 10, history/views: what the views answer: sessions, messages, turns, in pages.

Owns the reading side of the views. Every question names its user. Must never be asked by the write side: it decides
from the log.
"""

from __future__ import annotations

from typing import Any

from contracts.queries import MessageRow, MessagesQuery, SessionRow, SessionsQuery, TurnRow
from services.history.views.pages import NoSession, message_page, session_row
from services.history.views.store import ViewStore

_SESSION = """
    SELECT session_id, name, title, model, system, on_busy, head, version, position, created_at, updated_at, deleted_at,
           (SELECT turn_id FROM turns WHERE turns.user_id = sessions.user_id
              AND turns.session_id = sessions.session_id AND status IN ('waiting', 'running')
            ORDER BY position LIMIT 1) AS active_turn_id
    FROM sessions
"""
_MESSAGE = """
    SELECT message_id, parent_id, role, text, thinking, turn_id, status, code, end, model, usage, position, version,
           created_at, place
    FROM messages
"""
_TURN = """
    SELECT turn_id, session_id, event_id, message_id, answer_id, status, attempt, model, code, version, created_at,
           ended_at
    FROM turns
"""


class ViewReader:
    def __init__(self, store: ViewStore) -> None:
        self._store = store

    async def sessions(self, query: SessionsQuery) -> tuple[list[SessionRow], str | None]:
        """A page, the latest activity first, and where the next one begins."""
        before = int(query.before) if query.before and query.before.isdigit() else 2**62
        rows = await self._all(
            f"{_SESSION} WHERE user_id = ? AND position < ? AND deleted_at IS NULL ORDER BY position DESC LIMIT ?",
            (query.user_id, before, query.limit + 1),
        )
        page = [session_row(row) for row in rows[: query.limit]]
        return page, str(page[-1].position) if len(rows) > query.limit else None

    async def session(self, user_id: str, session_id: str) -> SessionRow | NoSession:
        """The session, or why there is none."""
        rows = await self._all(f"{_SESSION} WHERE user_id = ? AND session_id = ?", (user_id, session_id))
        if not rows:
            return "session_unknown"
        return session_row(rows[0]) if rows[0]["deleted_at"] is None else "session_deleted"

    async def messages(self, query: MessagesQuery) -> tuple[list[MessageRow], int | None]:
        """A page in order, and where the next one begins."""
        rows = await self._all(
            f"{_MESSAGE} WHERE user_id = ? AND session_id = ? AND place > ? ORDER BY place LIMIT ?",
            (query.user_id, query.session_id, query.after, query.limit + 1),
        )
        return message_page(rows, query.limit)

    async def turn(self, user_id: str, turn_id: str) -> TurnRow | None:
        rows = await self._all(f"{_TURN} WHERE user_id = ? AND turn_id = ?", (user_id, turn_id))
        return TurnRow(**rows[0]) if rows else None

    async def _all(self, sql: str, parameters: tuple[str | int, ...]) -> list[dict[str, Any]]:
        with self._store.condemned_if_broken():
            return [dict(row) for row in await self._store.reading.execute_fetchall(sql, parameters)]
