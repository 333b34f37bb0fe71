"""Off the road, history/tools/verify: do the serving views hold what the fold makes of the log?

Owns the comparison, session by session: a session's events are folded in memory and compared with its stored rows, at
the position that the views have folded. What a person sees in a list is then what the log says; and the check of the
views' file, so that what is found through an index is what the rows say. Must never write, nor hold more than one
session.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.events import MESSAGES_PER_EVENT
from services.history.log.reader import read_only
from services.history.tools.compare import MOST_OF_A_KIND
from services.history.tools.findings import MOST_TOLD, Findings
from services.history.views.fold import KEYS, Recorded, Row, Table
from services.history.views.rows import Rows

_BEGUN = "SELECT user_id, session_id FROM events WHERE version = 1 AND position BETWEEN ? AND ? AND position <= ?"
_EVENTS = (
    "SELECT position, version, recorded_at, body FROM events"
    " WHERE user_id = ? AND session_id = ? AND position <= ? ORDER BY version"
)
# For SQLite's check, which looks for each row in every index.
_CACHE_KIB = 16_384
# What the index of words has: a row for each message with a text and each session with a title, under its place.
_WITH_WORDS = """
    SELECT place FROM messages WHERE text <> '' UNION ALL SELECT place FROM sessions WHERE coalesce(title, '') <> ''
"""
_INDEXED = "SELECT id FROM words_docsize"
# A row of a session that the log does not know.
_FOREIGN = """
    SELECT {keys} FROM {table} AS stored WHERE NOT EXISTS
    (SELECT 1 FROM log.events AS begun WHERE begun.user_id = stored.user_id
     AND begun.session_id = stored.session_id AND begun.version = 1) LIMIT 10
"""

_STORED: dict[Table, str] = {
    "sessions": "SELECT * FROM sessions WHERE user_id = ? AND session_id = ?",
    "messages": "SELECT * FROM messages WHERE user_id = ? AND session_id = ? ORDER BY place",
    "turns": "SELECT * FROM turns WHERE user_id = ? AND session_id = ? ORDER BY position",
}

Session = tuple[str, str]


class ViewsCheck:
    """The sessions that began in a stretch of the log. path: the views that serve."""

    def __init__(self, log: sqlite3.Connection, path: Path, findings: Findings) -> None:
        self._log = log
        self._path = path
        self._findings = findings

    def compare(self, first: int, last: int, told: Callable[[int], None]) -> None:
        """Every session whose first event is from first to last. told: is called with how many events are folded."""
        with self._views() as views:
            views.execute("BEGIN")
            folded = views.execute("SELECT position FROM checkpoint").fetchone()[0]
            for user_id, session_id in self._log.execute(_BEGUN, (first, last, folded)):
                told(self._compare_session(views, (user_id, session_id), folded))

    def check_file(self, log_path: Path) -> None:
        """What the comparison of sessions does not see: pages and indexes, which rows have words, foreign rows."""
        with self._views() as views:
            views.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._check_pages(views)
            self._check_words(views)
            self._check_foreign(views, log_path)

    def _check_pages(self, views: sqlite3.Connection) -> None:
        for (line,) in views.execute(f"PRAGMA integrity_check({MOST_TOLD})"):
            if line != "ok":
                self._findings.add(0, f"{self._path.name}: SQLite: {line}")

    def _check_words(self, views: sqlite3.Connection) -> None:
        """Every row's words themselves are compared by a rebuild only: nothing cheaper makes them again."""
        for rows, but, what in (
            (_WITH_WORDS, _INDEXED, "has words that the index does not know"),
            (_INDEXED, _WITH_WORDS, "is in the index of words, and has none"),
        ):
            for (place,) in views.execute(f"{rows} EXCEPT SELECT * FROM ({but}) LIMIT {MOST_OF_A_KIND}"):
                # A title's place is its event's position, negated.
                position = -place if place < 0 else place // MESSAGES_PER_EVENT
                self._findings.add(position, f"{self._path.name}: the row at place {place} {what}")

    def _check_foreign(self, views: sqlite3.Connection, log_path: Path) -> None:
        """Rows of sessions that the log does not have."""
        views.execute("ATTACH ? AS log", (f"file:{log_path}?mode=ro",))
        for table, keys in KEYS.items():
            for row in views.execute(_FOREIGN.format(keys=", ".join(keys), table=table)):
                self._findings.add(0, f"{self._path.name}: {table} {_named(row)} is of no session of the log")

    @contextmanager
    def _views(self) -> Iterator[sqlite3.Connection]:
        """A connection to the views; what cannot be read of them is told."""
        try:
            with closing(read_only(self._path)) as views:
                views.row_factory = sqlite3.Row
                yield views
        except (sqlite3.DatabaseError, TypeError) as error:
            self._findings.add(0, f"{self._path.name} cannot be read: {error}; `chatlog replay` rebuilds it")

    def _compare_session(self, views: sqlite3.Connection, session: Session, folded: int) -> int:
        rows, events, position = Rows(), 0, 0
        try:
            for position, version, recorded_at, body in self._log.execute(_EVENTS, (*session, folded)):
                rows.fold(Recorded(position, version, recorded_at, read_event(body)))
                events += 1
        except (ContractError, KeyError, sqlite3.DatabaseError) as error:
            self._findings.add(position, f"cannot be folded: {error or type(error).__name__}")
            return events
        for table in KEYS:
            stored = views.execute(_STORED[table], session)
            self._compare_rows(table, rows.of(table, *session), [dict(row) for row in stored])
        return events

    def _compare_rows(self, table: Table, wanted: list[Row], stored: list[Row]) -> None:
        if wanted == stored:
            return
        by_key = {tuple(row[column] for column in KEYS[table]): row for row in stored}
        for row in wanted:
            key = tuple(row[column] for column in KEYS[table])
            found = by_key.pop(key, None)
            if found != row:
                columns = [name for name in row if found is None or found.get(name) != row[name]]
                what = f"differs from the fold in {', '.join(columns)}" if found else "is missing"
                self._tell(table, row, what)
        for row in by_key.values():
            self._tell(table, row, "is not what the fold makes")

    def _tell(self, table: Table, row: Row, what: str) -> None:
        key = _named(row[column] for column in KEYS[table])
        self._findings.add(int(str(row["position"])), f"{self._path.name}: {table} {key} {what}")


def _named(key: Iterable[object]) -> str:
    return "/".join(str(part) for part in key)
