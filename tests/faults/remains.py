"""Reads what a run left in its data folder: the log's rows and its hash chain, the views and a fresh fold beside them.

Owns the reading, once history has ended. Must never judge: the checker does.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from services.history.log.reader import LogReader
from services.history.views.store import ViewStore
from tests.faults.evidence import Evidence, Link, Row
from tests.faults.journal import Journal

TABLES = ("sessions", "messages", "turns")
CHAINED = (
    *("position", "event_id", "user_id", "session_id", "version", "turn_id", "type", "schema_version"),
    *("recorded_at", "data_hash"),
)


async def read_evidence(data: Path, journal: Journal) -> Evidence:
    """The views may be behind the log, never beside it, so they are folded to its end first."""
    fresh = data / "replayed"
    fresh.mkdir()
    folded, replayed = await _folded(data, data), await _folded(fresh, data)
    rows, chain = _log(data / "log.db")
    return Evidence(journal.entries, rows, chain, folded, replayed)


def unfinished_turns(log: Path) -> int:
    sql = (
        "SELECT count(*) FILTER (WHERE type = 'user_message_submitted') - count(*) FILTER (WHERE type IN"
        " ('answer_completed', 'answer_failed', 'answer_cancelled')) FROM events"
    )
    return int(_asked(log, sql)[0][0])


def versions(log: Path) -> dict[str, int]:
    """Of each session, the latest."""
    return dict(_asked(log, "SELECT session_id, max(version) FROM events GROUP BY session_id"))


def _asked(log: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchall()


def _log(path: Path) -> tuple[list[Row], list[Link]]:
    found = _asked(path, f"SELECT {', '.join(CHAINED)}, body, body_hash, hash FROM events ORDER BY position")
    place, version, body = CHAINED.index("position"), CHAINED.index("version"), len(CHAINED)
    rows = [Row(row[place], row[version], json.loads(row[body])) for row in found]
    return rows, [Link(tuple(row[:body]), *map(bytes, row[body:])) for row in found]


async def _folded(folder: Path, data: Path) -> dict[str, list[Any]]:
    """The tables of the views in folder, after every row of the log."""
    reader = await LogReader.open(data / "log.db")
    try:
        store = await ViewStore.open(folder, reader)
        try:
            while rows := await reader.rows_after(store.position, 256):
                await store.apply(rows)
            return {table: await _table(store, table) for table in TABLES}
        finally:
            await store.close()
    finally:
        await reader.close()


async def _table(store: ViewStore, table: str) -> list[Any]:
    rows = await store.reading.execute_fetchall(f"SELECT * FROM {table}")
    return sorted((list(row) for row in rows), key=repr)
