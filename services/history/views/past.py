"""Step 10, history/views (core): one session as it was, folded from its events up to some version.

Owns what is kept of the folded rows: the session's own, the unfinished turns, and one page of the messages, so that a
long session is not held whole. Must never fold otherwise than the views do.
"""

from __future__ import annotations

from contracts.queries import MessageRow, SessionRow
from services.history.views.fold import Change, Drop, Put, Set, Value
from services.history.views.pages import NoSession, message_page, session_row
from services.history.views.rows import Rows


class Past(Rows):
    """Fold the session's events in order; then ask. limit, after: the page of messages, as of the views."""

    def __init__(self, user_id: str, session_id: str, limit: int = 0, after: int = 0) -> None:
        super().__init__()
        self._of = user_id, session_id
        self._limit = limit
        self._after = after
        self._kept = 0
        self._unfinished: dict[Value, None] = {}  # in the order they came

    def apply(self, change: Change) -> None:
        if change.table == "turns":
            self._note_turn(change)
        elif change.table != "messages" or not isinstance(change, Put):
            if isinstance(change, Drop):
                self._kept = 0
            super().apply(change)
        elif self._kept <= self._limit and int(str(change.row["place"])) > self._after:
            self._kept += 1
            super().apply(change)

    def session(self) -> SessionRow | NoSession:
        """The session after the last event that was folded, or why there was none."""
        rows = self.of("sessions", *self._of)
        if not rows:
            return "session_unknown"
        if rows[0]["deleted_at"] is not None:
            return "session_deleted"
        return session_row({**rows[0], "active_turn_id": next(iter(self._unfinished), None)})

    def messages(self) -> tuple[list[MessageRow], int | None]:
        """The page of its messages, and where the next one begins."""
        return message_page(self.of("messages", *self._of), self._limit)

    def _note_turn(self, change: Change) -> None:
        if isinstance(change, Put):
            self._unfinished[change.row["turn_id"]] = None
        elif isinstance(change, Drop):
            self._unfinished.clear()
        elif isinstance(change, Set) and change.values.get("ended_at") is not None:
            _, turn_id = change.key
            self._unfinished.pop(turn_id, None)
