"""Off the road, history/tools/verify: which event lies on a page that SQLite complains of.

Owns the way from a page to a position, by SQLite's own list of pages (dbstat), which is read once and only where there
is a complaint; a SQLite that is built without it names no positions. Must never write.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import suppress

_NAMED = re.compile(r"\bpage (\d+)", re.IGNORECASE)
_LISTED = "CREATE TEMP TABLE listed AS SELECT pageno, name, path, pagetype, ncell FROM dbstat"
# The tree of a page, and how many of its entries come before it: leaves are in the order of their paths, and between
# two leaves of an index lies one entry more, on a page above them.
_BEFORE = """
    SELECT page.name, (SELECT total(ncell + (page.name <> 'events')) FROM listed AS leaf
     WHERE leaf.name = page.name AND leaf.pagetype = 'leaf' AND leaf.path < page.path)
    FROM listed AS page WHERE page.pageno = ?
"""


class Pages:
    """The pages of the log that this connection reads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        with suppress(sqlite3.DatabaseError):
            connection.execute(_LISTED)

    def position(self, complaint: str) -> int:
        """Of the first event on the page that SQLite names, or of the last entry before those that an index has there;
        0: the page has no events.
        """
        named = _NAMED.search(complaint)
        try:
            row = self._connection.execute(_BEFORE, (int(named[1]),)).fetchone() if named else None
            return self._at(row[0], int(row[1])) if row else 0
        except sqlite3.DatabaseError:
            return 0

    def _at(self, tree: str, before: int) -> int:
        if tree == "events":
            return before + 1
        found = self._connection.execute(
            "SELECT sql FROM sqlite_schema WHERE name = ? AND tbl_name = 'events'", (tree,)
        ).fetchone()
        if found is None:
            return 0
        _, _, where = (found[0] or "").partition("WHERE")
        only = f"WHERE {where}" if where else ""
        sql = f"SELECT position FROM events INDEXED BY {tree} {only} LIMIT 1 OFFSET ?"
        entry = self._connection.execute(sql, (max(before - 1, 0),)).fetchone()
        return int(entry[0]) if entry else 0
