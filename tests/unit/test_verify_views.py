"""`chatlog verify --views` on the views' file: its pages and indexes, and which rows the index of words has.

What the rows themselves say is tests/integration/test_verify.py's.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.history.tools.findings import Finding, Findings
from services.history.tools.verify_views import ViewsCheck
from services.history.views.store import newest_views
from tests.conversing import completed, make_event, new_id, session_started
from tests.recording import scene
from tests.viewing import opened


@pytest.fixture
async def views(tmp_path: Path) -> Path:
    """Those of two sessions: titles, messages with and without a text, open and ended turns."""
    with scene(tmp_path) as on:
        for title in ("one", None):
            session_id = new_id()
            on.take(session_started(session_id, **({"title": title} if title else {})))
            said, _ = on.running(session_id, "what was asked")
            on.take(completed(session_id, str(said.turn_id), text="what was answered"))
            on.running(session_id, "asked again")
        on.take(make_event("session_renamed", session_id, {"title": "two"}))
        async with opened(on) as (store, reader):
            await store.apply(await reader.rows_after(0, 100))
    path = newest_views(tmp_path)
    assert path is not None
    return path


def found(views: Path) -> list[Finding]:
    findings, log = Findings(), views.with_name("log.db")
    with closing(sqlite3.connect(log)) as connection:
        ViewsCheck(connection, views, findings).check_file(log)
    return findings.told()


async def test_a_flipped_bit_in_any_index_is_found(views: Path) -> None:
    assert found(views) == []
    with closing(sqlite3.connect(views)) as connection:
        indexes = connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'index'").fetchall()
        [(size,)] = connection.execute("PRAGMA page_size").fetchall()
    assert len(indexes) >= 5
    for name, page in indexes:
        with views.open("r+b") as file:
            file.seek(page * size - 1)  # the end of a page is the end of an entry: its row
            whole = file.read(1)
            file.seek(page * size - 1)
            file.write(bytes([whole[0] ^ 1]))
            file.flush()
            told = found(views)
            file.seek(page * size - 1)
            file.write(whole)
        assert told, name
        assert all(each.what.startswith(f"{views.name}: SQLite: ") for each in told)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("INSERT INTO words (words, rowid, owner, text) SELECT 'delete', place, hex(user_id), text FROM messages"
         " WHERE text = 'what was answered'", "has words that the index does not know"),
        ("INSERT INTO words (words, rowid, owner, title) SELECT 'delete', place, hex(user_id), title FROM sessions"
         " WHERE title = 'two'", "has words that the index does not know"),
        ("INSERT INTO words (rowid, owner, text) SELECT place, hex(user_id), 'x' FROM messages WHERE text = ''",
         "is in the index of words, and has none"),
    ],
)  # fmt: skip
async def test_rows_and_the_index_of_their_words_are_the_same_ones(views: Path, sql: str, words: str) -> None:
    with closing(sqlite3.connect(views)) as connection:
        connection.execute(sql)
        connection.commit()
    told = found(views)
    assert told
    assert all(each.position > 0 and words in each.what for each in told), told
