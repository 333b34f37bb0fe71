"""Off the road, history/tools/verify: log.db as a file: is it the database that this version makes, and is it whole?

Owns what is not a row of the log: the file's header, the schema, SQLite's own check of every page, row and index entry.
Must never write, and never trust an index to find what is missing from it.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from services.history.log.sqlite import SCHEMA_VERSION
from services.history.tools.findings import MOST_TOLD, Findings
from services.history.tools.verify_pages import Pages

# What SQLite writes for us and would not always miss: (offset, bytes, what). The rest of the header is counters, which
# may have any value, or SQLite looks at it itself.
_HEADER = (
    (0, b"SQLite format 3\0", "the file's first words"),
    (18, b"\2\2\0\x40\x20\x20", "the write-ahead log's marks"),
    (44, b"\0\0\0\4\0\0\0\0\0\0\0\0\0\0\0\1", "the schema's format"),
    (60, SCHEMA_VERSION.to_bytes(4, "big"), "the schema's version"),
    (64, bytes(28), "what is reserved"),
)
_MISSING = re.compile(r"row (\d+) missing from index (\w+)|(?:NULL value in|non-\w+ value in) events\.(\w+)")
_OF_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"


def check_file(path: Path, connection: sqlite3.Connection, findings: Findings) -> None:
    """All of it; the connection reads this file."""
    _check_header(path, findings)
    try:
        _check_schema(connection, findings)
        _check_pages(connection, findings)
    except sqlite3.DatabaseError as error:
        findings.add(0, f"SQLite could not check the file: {error}")
        with suppress(sqlite3.DatabaseError):
            _find_breaks(connection, findings)


def _check_header(path: Path, findings: Findings) -> None:
    with path.open("rb") as file:
        header = file.read(100)
    # The first tables of a log are in its -wal until a checkpoint: its first page does not know of any yet.
    unchecked = (44, 60) if header[40:44] == bytes(4) and Path(f"{path}-wal").exists() else ()
    for offset, expected, what in _HEADER:
        if offset in unchecked:
            continue
        if header[offset : offset + len(expected)] != expected:
            findings.add(0, f"the file's header: {what} are not as SQLite and Chatlog write them")


def _check_schema(connection: sqlite3.Connection, findings: Findings) -> None:
    """Tables and indexes say what they always said: a partial index may have come to leave rows out."""
    fresh = sqlite3.connect(":memory:")
    fresh.executescript(files("services.history.log").joinpath("schema.sql").read_text())
    try:
        wanted = set(fresh.execute(_OF_SCHEMA))
    finally:
        fresh.close()
    for _, name, _, _ in sorted(wanted - set(connection.execute(_OF_SCHEMA))):
        findings.add(0, f"the schema: {name} is not there as this version makes it")


def _check_pages(connection: sqlite3.Connection, findings: Findings) -> None:
    of_events = {name for (name,) in connection.execute("SELECT name FROM pragma_index_list('events')")}
    told = [line for (line,) in connection.execute(f"PRAGMA integrity_check({MOST_TOLD})")]
    if told == ["ok"]:
        return
    pages = Pages(connection)
    for line in told:
        for each in line.splitlines():
            missing = _MISSING.search(each)
            position = int(missing[1]) if missing and missing[2] in of_events else pages.position(each)
            findings.add(position, f"SQLite: {each}")
    _find_breaks(connection, findings)


def _find_breaks(connection: sqlite3.Connection, findings: Findings) -> None:
    """Where each index of events stops being readable: SQLite names only its page."""
    for name, sql in connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE tbl_name = 'events'"
                                        " AND type = 'index'").fetchall():  # fmt: skip
        _, _, where = sql.partition("WHERE")
        reached = 0
        try:
            only = f"WHERE {where}" if where else ""
            for (position,) in connection.execute(f"SELECT position FROM events INDEXED BY {name} {only}"):
                reached = position
        except sqlite3.DatabaseError as error:
            findings.add(reached, f"index {name} cannot be read behind this position's entry: {error}")
