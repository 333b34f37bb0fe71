"""Off the road, history/tools/verify: the rows beside the events: is each what was written?

Owns the check of the seals of log, cursor, outcomes and parked. Rows of outcomes and parked come and go, and nothing
counts them: that one is gone is not seen here. Must never write.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from services.history.log.earlier import UNSEALED
from services.history.log.reader import read_only
from services.history.log.seals import SEALED_TABLES, holds
from services.history.tools.findings import Findings

# What names a row, by its columns; log and cursor have one row.
_NAMED_BY = {"log": (), "cursor": (), "outcomes": ("user_id", "event_id"), "parked": ("parked_id",)}


def check_tables(connection: sqlite3.Connection, findings: Findings) -> None:
    """Each row of each table; a row of outcomes is told at the position that it names."""
    # Text that is not UTF-8 any more must differ from all that is, and be no error that ends the table.
    connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")
    for table in SEALED_TABLES:
        try:
            _check_rows(connection, table, findings)
        except sqlite3.DatabaseError as error:
            findings.add(0, f"{table} cannot be read to its end: {error}")
    connection.text_factory = str


def made_before_seals(path: Path) -> bool:
    """Whether an earlier version made this log, and no writer of today's has opened it."""
    try:
        with closing(read_only(path)) as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == UNSEALED)
    except sqlite3.DatabaseError:
        return False  # told where it is read


def _check_rows(connection: sqlite3.Connection, table: str, findings: Findings) -> None:
    cursor = connection.execute(f"SELECT * FROM {table}")
    columns = [column[0] for column in cursor.description]
    count = 0
    for row in cursor:
        count += 1
        if not holds(table, *row):
            values = dict(zip(columns, row, strict=True))
            key = "/".join(str(values[column]) for column in _NAMED_BY[table])
            named = f"{table} {key}".strip().encode(errors="replace").decode()
            position = values.get("position")
            findings.add(position if isinstance(position, int) else 0, f"{named}: its seal is not that of its values")
    if count != 1 and not _NAMED_BY[table]:
        findings.add(0, f"{table} has {count} rows, and must have one")
