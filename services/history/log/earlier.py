"""Step 8, history/log: a log that an earlier version made becomes today's, when its writer opens it.

Owns the step from one schema to the next: one transaction, so that a log is of one version whoever dies. Must never
change an event's row: what was received stays as it is, and the chain with it.
"""

from __future__ import annotations

import sqlite3
from importlib.resources import files

from services.history.log.seals import SEALED_TABLES, sealed

# The schema of before, in which rows beside the events had no seal (docs/adr/0012), and of after.
UNSEALED, SEALED = 1, 2


def take_up(connection: sqlite3.Connection) -> None:
    """From the first schema to the second: the tables beside the events are made anew, and their rows sealed as they
    are found. Which ids were given to parked events goes from SQLite's own table, which no seal can hold, into the
    log's row. Raises sqlite3.Error: nothing has changed.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        given = connection.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence").fetchone()
        connection.execute("DROP INDEX outcomes_by_age")
        made = _made_today()
        for table in SEALED_TABLES:
            _seal_rows(connection, table, made[table], given if table == "log" else ())
        connection.execute(made["outcomes_by_age"])
        connection.execute(f"PRAGMA user_version = {SEALED}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _seal_rows(connection: sqlite3.Connection, table: str, made: str, more: tuple[int, ...]) -> None:
    """more: the values of columns that the table gains."""
    connection.execute(f"ALTER TABLE {table} RENAME TO earlier")
    connection.execute(made)
    marks = ", ".join("?" for _ in connection.execute(f"SELECT name FROM pragma_table_info('{table}')"))
    rows = (sealed(table, *row, *more) for row in connection.execute("SELECT * FROM earlier"))
    connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    connection.execute("DROP TABLE earlier")


def _made_today() -> dict[str, str]:
    """What makes each table and index: the very text, for verify compares it."""
    fresh = sqlite3.connect(":memory:")
    try:
        fresh.executescript(files("services.history.log").joinpath("schema.sql").read_text())
        return dict(fresh.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
    finally:
        fresh.close()
