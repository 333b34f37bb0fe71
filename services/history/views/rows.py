"""Step 10, history/views (core): the views' rows of some sessions in memory, made by the same fold as the stored ones.

Owns what a session looked like at a version, what verify and a rebuild compare with, and the hash of a session's state.
Must never do I/O, nor hold what the fold did not say.
"""

from __future__ import annotations

from contracts.base import data_hash
from services.history.views.fold import KEY_OF, Change, Drop, Key, Put, Recorded, Row, Table, fold

# What depends on the log that a session lies in: the same session has other ones after an export and import.
_OF_THE_LOG = ("position", "place")


class Rows:
    """Fold a session's events from its first version on, in order; then its rows are what the views store."""

    def __init__(self) -> None:
        self._tables: dict[Table, dict[Key, Row]] = {"sessions": {}, "messages": {}, "turns": {}}

    def fold(self, recorded: Recorded) -> None:
        """The changes of the next event."""
        for change in fold(recorded, self.head_of):
            self.apply(change)

    def apply(self, change: Change) -> None:
        """As the views' tables take it."""
        rows = self._tables[change.table]
        if isinstance(change, Put):
            rows[KEY_OF[change.table](change.row)] = dict(change.row)
        elif isinstance(change, Drop):
            of = change.user_id, change.session_id
            for key in [key for key, row in rows.items() if (row["user_id"], row["session_id"]) == of]:
                del rows[key]
        elif (row := rows.get(change.key)) is not None:
            row.update(change.values)

    def head_of(self, user_id: str, session_id: str) -> str | None:
        """The answer that the session's next message follows."""
        session = self._tables["sessions"].get((user_id, session_id))
        head = session["head"] if session else None
        return None if head is None else str(head)

    def of(self, table: Table, user_id: str, session_id: str) -> list[Row]:
        """A session's rows of this table, in the order of its events."""
        place = "place" if table == "messages" else "position"
        found = (
            row for row in self._tables[table].values() if (row["user_id"], row["session_id"]) == (user_id, session_id)
        )
        return sorted(found, key=lambda row: int(str(row[place])))

    def state_hash(self, user_id: str, session_id: str) -> str:
        """SHA-256 in hex of the session's rows, without what depends on the log that they lie in."""
        tables: tuple[Table, ...] = ("sessions", "messages", "turns")
        return data_hash(
            {
                table: [
                    {column: value for column, value in row.items() if column not in _OF_THE_LOG}
                    for row in self.of(table, user_id, session_id)
                ]
                for table in tables
            }
        )
