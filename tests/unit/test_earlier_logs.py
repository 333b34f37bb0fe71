"""A log of the first schema, whose rows beside the events had no seal: taken up whole, or told of clearly."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.history.log.port import Cursor, LogError
from services.history.log.sqlite import SqliteLog
from services.history.tools.backup import back_up, read_backup
from services.history.tools.restore import Continuation, prepared, put_in_place
from services.history.tools.verify import Report, VerifyFailed, verify
from tests.conversing import completed, message, new_id, session_started
from tests.recording import NOW, STREAM, begin, delivered, scene

FIRST_SCHEMA = Path(__file__).parents[1] / "golden/log-1/schema.sql"
TABLES = ("log", "cursor", "events", "outcomes", "parked")


def quietly(done: int, of: int) -> None:
    """Nobody looks at the bar."""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder whose log the first version left: a turn, a refusal, what changed nothing, and a parked event after
    another one that was discarded, as the last one was.
    """
    made = tmp_path / "made"
    made.mkdir()
    with scene(made) as on:
        session_id = begin(on)
        said, _ = on.running(session_id)
        on.take(completed(session_id, str(said.turn_id)))
        on.take(message(new_id()), session_started(session_id))
        on.take(*(replace(delivered(message(session_id)), body=body) for body in (b"{}", b"\xff\xfe", b"")))
        for parked_id in (1, 3):
            assert on.recorder.discard_parked(parked_id)
    folder = tmp_path / "data"
    folder.mkdir()
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as log:
        log.executescript(f"PRAGMA journal_mode = WAL; {FIRST_SCHEMA.read_text()} PRAGMA user_version = 1;")
        log.execute("ATTACH ? AS made", (str(made / "log.db"),))
        for table in TABLES:
            log.execute(f"INSERT INTO main.{table} SELECT {columns(log, table)} FROM made.{table}")
        log.execute("UPDATE sqlite_sequence SET seq = 3")
    return folder


def columns(log: sqlite3.Connection, table: str) -> str:
    return ", ".join(name for (name,) in log.execute(f"SELECT name FROM pragma_table_info('{table}', 'main')"))


def rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What was there before there were seals."""
    with closing(sqlite3.connect(path)) as log:
        log.text_factory = bytes
        first = sqlite3.connect(":memory:")
        first.executescript(FIRST_SCHEMA.read_text())
        return {table: log.execute(f"SELECT {columns(first, table)} FROM {table}").fetchall() for table in TABLES}


def checked(folder: Path) -> Report:
    return verify(folder, quietly, processes=1)


def test_it_is_taken_up_with_all_its_rows_when_its_writer_opens_it(earlier: Path) -> None:
    before = rows(earlier / "log.db")
    assert [len(before[table]) > 0 for table in TABLES] == [True] * 5
    log = SqliteLog(earlier / "log.db", "f" * 32, NOW)
    assert (log.epoch, log.cursor()) == ("e" * 32, Cursor(STREAM, 9))
    log.close()
    assert rows(earlier / "log.db") == before
    assert checked(earlier).findings == ()
    with scene(earlier) as on:
        on.take(replace(delivered(message(new_id())), body=b"null"))
        assert on.sql("SELECT parked_id FROM parked ORDER BY 1") == [(2,), (4,)], "no id is given twice"
    assert checked(earlier).holds


def test_it_is_taken_up_whole_or_not_at_all(earlier: Path) -> None:
    with closing(sqlite3.connect(earlier / "log.db")) as log, log:
        log.execute("UPDATE parked SET reason = CAST(x'ff' AS TEXT)")
    before = rows(earlier / "log.db")
    with pytest.raises(LogError, match="UTF-8"):
        SqliteLog(earlier / "log.db", "f" * 32, NOW)
    assert rows(earlier / "log.db") == before
    with closing(sqlite3.connect(earlier / "log.db")) as log:
        assert log.execute("PRAGMA user_version").fetchone() == (1,)


def test_verify_says_what_it_is(earlier: Path) -> None:
    with pytest.raises(VerifyFailed, match="earlier version"):
        checked(earlier)


def test_its_backup_is_one_of_today_s_and_one_of_its_own_time_is_restored(earlier: Path, tmp_path: Path) -> None:
    before = rows(earlier / "log.db")
    made = back_up(earlier / "log.db", tmp_path / "backup.db", quietly)
    assert rows(made.file) == before == rows(earlier / "log.db")
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(earlier / "log.db", isolation_level=None)) as log:
        log.execute("VACUUM INTO ?", (str(old),))
        log.execute("ATTACH ? AS old", (str(old),))
        log.execute("ATTACH ? AS made", (str(made.file),))
        log.execute("CREATE TABLE old.backup AS SELECT * FROM made.backup")
        log.execute("PRAGMA old.user_version = 1")
    backup = read_backup(old)
    with prepared(earlier, Continuation(backup, backup.cursor, None), quietly) as new:
        put_in_place(new, earlier, backup.note())
    after = rows(earlier / "log.db")
    assert (after.pop("log"), before.pop("log")) != ([], [])
    assert after == before
    assert checked(earlier).findings == ()
