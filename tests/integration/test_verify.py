"""`chatlog verify` on real logs: whole ones pass; each damage, and each lie of a writer, is found at its position.

Owns one lived log, made by the recorder once for all tests; each test spoils its own copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bench.generated import write_log
from contracts.base import compact, data_hash
from services.history.log.port import FIRST_HASH, link
from services.history.log.reader import LogReader
from services.history.tools.findings import Finding
from services.history.tools.verify import Report, VerifyFailed, verify
from services.history.tools.verify_rows import Walk
from services.history.views import store
from tests.conversing import completed, make_event, message, new_id, session_started
from tests.environments import plain_environment
from tests.operated import ROOT
from tests.recording import Scene, begin, cancel, ended, scene

SESSIONS = 6
FLIPS = 80
VERIFY_TIMEOUT_S = 120


def live(on: Scene) -> None:
    """Several sessions side by side: answers, failures, stops, attempts, a refusal, a parked event, texts of pages."""
    sessions = [begin(on, f"user-{number % 2}") for number in range(SESSIONS)]
    for turn in range(4):
        for number, session_id in enumerate(sessions):
            user_id = f"user-{number % 2}"
            said, _ = on.running(session_id, f"{turn} " + "long " * 400 * (number == 1), user_id=user_id)
            if turn == 1 and number == 2:
                on.take(ended(said, "answer_failed", 1))
            elif turn == 2 and number == 3:
                on.take(cancel(said))
                on.take(ended(said, "answer_cancelled", 1, text="so far"))
            elif turn == 3 and number == 4:
                on.claim(said, new_id())
                on.take(completed(session_id, str(said.turn_id), 2, user_id=user_id))
            else:
                on.take(completed(session_id, str(said.turn_id), text="hi " * 50, user_id=user_id))
    on.take(message(new_id()))
    on.take(session_started(sessions[0], user_id="user-0"))
    on.take(make_event("session_renamed", sessions[0], {"title": "späť 你好"}, user_id="user-0"))


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lived")
    with scene(folder) as on:
        live(on)
    return folder


@pytest.fixture
def copy(lived: Path, tmp_path: Path) -> Path:
    shutil.copy(lived / "log.db", tmp_path / "log.db")
    return tmp_path


def checked(folder: Path) -> Report:
    return verify(folder, lambda done, of: None, processes=1)


def first(folder: Path) -> Finding:
    report = checked(folder)
    assert not report.holds
    return report.findings[0]


def change(folder: Path, sql: str, *parameters: Any) -> None:
    with closing(sqlite3.connect(folder / "log.db")) as connection, connection:
        connection.execute(sql, parameters)


def forge(folder: Path, position: int, lie: Callable[[dict[str, Any]], None], *, body: bool = True) -> None:
    """What a writer with a fault leaves: a row that says something else, under hashes that hold. The lie is told to the
    parsed body, or else to the columns.
    """
    with closing(sqlite3.connect(folder / "log.db")) as connection, connection:
        connection.row_factory = sqlite3.Row
        previous = FIRST_HASH
        for each in connection.execute("SELECT * FROM events ORDER BY position").fetchall():
            row = dict(each)
            if row["position"] == position and body:
                said = json.loads(row["body"])
                lie(said)
                row["body"], row["data_hash"] = compact(said), data_hash(said["data"])
                row["schema_version"] = said["schema_version"]
            elif row["position"] == position:
                lie(row)
            row["body_hash"] = hashlib.sha256(row["body"]).digest()
            chained = ("position", "event_id", "user_id", "session_id", "version", "turn_id", "type", "schema_version")
            fields = [row[name] for name in (*chained, "recorded_at", "data_hash")]
            raw = [None if value is None else str(value).encode() for value in fields]
            row["hash"] = previous = link(previous, raw, row["body_hash"])
            connection.execute(
                f"UPDATE events SET ({', '.join(row)}) = ({', '.join('?' * len(row))}) WHERE position = {each[0]}",
                [*row.values()],
            )


def position_of(folder: Path, event_type: str, number: int = 1) -> int:
    """The position of the n-th event of a type, in the second session: neither at the beginning nor at the end."""
    with closing(sqlite3.connect(folder / "log.db")) as connection:
        sql = "SELECT position FROM events WHERE type = ? ORDER BY position LIMIT 1 OFFSET ?"
        return int(connection.execute(sql, (event_type, number)).fetchone()[0])


def test_a_lived_log_holds(lived: Path) -> None:
    report = checked(lived)
    assert (report.holds, report.findings) == (True, ())
    assert report.position > 100, report.position


def test_a_generated_log_holds_in_two_processes(tmp_path: Path) -> None:
    """As the command runs it; and the same seed makes the same log."""
    write_log(tmp_path / "log.db", 1500)
    again = tmp_path / "again"
    again.mkdir()
    write_log(again / "log.db", 1500)
    code, said = command(tmp_path)
    assert (code, said["holds"], said["findings"], said["position"]) == (0, True, [], 1500)
    assert said["hash"] == checked(again).hash


def command(folder: Path) -> tuple[int, dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-m", "services.operator", "verify", "--json", "--data-dir", str(folder)],
        cwd=ROOT, env=plain_environment(), capture_output=True, timeout=VERIFY_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert ran.stdout, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    return ran.returncode, said


def test_the_command_fails_and_names_the_first_position(copy: Path) -> None:
    change(copy, "DELETE FROM events WHERE position IN (40, 60)")
    code, said = command(copy)
    assert code == 1
    assert said["first_bad_position"] == 40
    assert said["findings"][0] == {"position": 40, "what": "is missing"}


COLUMNS = ["event_id", "user_id", "session_id", "version", "turn_id", "type", "schema_version", "recorded_at",
           "data_hash", "body", "body_hash", "hash"]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
def test_a_changed_column_is_found(copy: Path, column: str) -> None:
    value = "version + 100" if column in ("version", "schema_version") else f"CAST({column} || 'x' AS TEXT)"
    if column in ("body", "body_hash", "hash"):
        value = f"CAST(substr({column}, 1, 30) AS BLOB)"
    at = position_of(copy, "answer_started")
    change(copy, f"UPDATE events SET {column} = {value} WHERE position = ?", at)
    assert first(copy).position == at


def test_a_deleted_row_is_found(copy: Path) -> None:
    change(copy, "DELETE FROM events WHERE position = 50")
    assert first(copy) == Finding(50, "is missing")


def test_a_swapped_pair_is_found(copy: Path) -> None:
    for was, becomes in ((50, -1), (51, 50), (-1, 51)):
        change(copy, "UPDATE events SET position = ? WHERE position = ?", becomes, was)
    assert first(copy).position == 50


def test_a_cut_tail_is_found_by_the_views_head(copy: Path) -> None:
    keep_head(copy, 100)
    assert checked(copy).kept == ("views-2.db",)
    change(copy, "DELETE FROM events WHERE position > 80")
    assert first(copy) == Finding(81, "is missing to 100: views-2.db has seen it, the log ends at 80")


def keep_head(folder: Path, position: int) -> None:
    """What the views keep once they have folded so far."""
    schema = Path(store.__file__).with_name("schema.sql").read_text()
    with closing(sqlite3.connect(folder / "log.db")) as log, closing(sqlite3.connect(folder / "views-2.db")) as views:
        found = log.execute("SELECT hash FROM events WHERE position = ?", (position,)).fetchone()
        views.executescript(schema)
        views.execute("INSERT INTO checkpoint VALUES (1, ?, ?)", (position, found[0]))
        views.commit()


def test_a_cut_tail_is_found_by_the_backup_s_head(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "log.db")) as log:
        head = log.execute("SELECT hash FROM events WHERE position = 95").fetchone()[0]
    note = {"file": "b.db", "sequence": 1, "position": 95, "hash": head.hex(), "made_at": "2026-11-21T10:00:00.000Z"}
    (copy / "backup.json").write_text(json.dumps(note))
    assert checked(copy).holds
    change(copy, "DELETE FROM events WHERE position > 94")
    assert first(copy).position == 95


def test_another_log_in_its_place_is_found(copy: Path) -> None:
    """Hashes that hold, all of them, and not the ones that were seen."""
    keep_head(copy, 100)
    forge(copy, position_of(copy, "user_message_submitted"), lambda body: body["data"].update(text="never said"))
    assert first(copy) == Finding(100, "is not the one that views-2.db has seen")


FOREIGN = "01900000-0000-7000-8000-000000000000"
LIES: list[tuple[str, int, Callable[[dict[str, Any]], None], str]] = [
    ("answer_started", 3, lambda body: body.update(causation_id=FOREIGN), "no earlier event of its session"),
    ("answer_started", 3, lambda body: body["data"].update(attempt=2), "attempt 2 where 1 follows"),
    ("answer_completed", 3, lambda body: body["data"].update(text=5), "today's models do not read it"),
    ("answer_completed", 3, lambda body: body.update(schema_version=99), "unknown schema_version"),
    ("user_message_submitted", 3, lambda body: body["data"].update(parent_id=FOREIGN), "parent"),
    ("context_assembled", 3, lambda body: body["data"]["message_ids"].append(FOREIGN), "of its context"),
    ("session_renamed", 0, lambda body: body.update(user_id="mallory"), "user_id is not what its body says"),
    ("session_renamed", 0, lambda body: body.update(event_id=FOREIGN), "event_id is not what its body says"),
    ("session_renamed", 0, lambda body: body.update(session_id=FOREIGN), "session_id is not what its body says"),
    ("session_renamed", 0, lambda body: body.update(type="session_started"), "type is not what its body says"),
    ("answer_started", 3, lambda body: body.update(turn_id=FOREIGN), "turn_id is not what its body says"),
]  # fmt: skip


@pytest.mark.parametrize(("event_type", "number", "lie", "words"), LIES)
def test_a_writer_s_lie_is_found(
    copy: Path, event_type: str, number: int, lie: Callable[[dict[str, Any]], None], words: str
) -> None:
    at = position_of(copy, event_type, number)
    forge(copy, at, lie)
    found = first(copy)
    assert found.position == at
    assert words in found.what


COLUMN_LIES: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    ("answer_started", lambda row: row.update(version=row["version"] + 50), "version"),
    ("answer_started", lambda row: row.update(data_hash="0" * 64), "data_hash"),
    ("answer_started", lambda row: row.update(turn_id=FOREIGN), "turn_id is not what its body says"),
    ("answer_started", lambda row: row.update(body=b"{}"), "do not read it"),
    ("answer_started", lambda row: row.update(body=row["body"].replace(b",", b" ,")), ""),
]


@pytest.mark.parametrize(("event_type", "lie", "words"), COLUMN_LIES)
def test_a_writer_s_wrong_column_is_found(
    copy: Path, event_type: str, lie: Callable[[dict[str, Any]], None], words: str
) -> None:
    at = position_of(copy, event_type, 3)
    forge(copy, at, lie, body=False)
    if words:
        found = first(copy)
        assert (found.position, words in found.what) == (at, True)
    else:
        assert checked(copy).holds, "bytes that say the same are not a fault: they are what was received"


def test_a_second_end_is_found(copy: Path) -> None:
    """Its unique index is gone, so nothing else would have kept it out."""
    change(copy, "DROP INDEX one_terminal_per_turn")
    at = position_of(copy, "session_renamed", 0)
    with closing(sqlite3.connect(copy / "log.db")) as log:
        sql = "SELECT user_id, session_id, turn_id, body FROM events WHERE type = 'answer_completed' AND user_id ="
        sql += " (SELECT user_id FROM events WHERE position = ?) AND session_id ="
        sql += " (SELECT session_id FROM events WHERE position = ?) LIMIT 1"
        _, _, turn_id, body = log.execute(sql, (at, at)).fetchone()
    again = json.loads(body) | {"event_id": FOREIGN}
    forge(copy, at, lambda row: row.update(
        event_id=FOREIGN, turn_id=turn_id, type="answer_completed", body=compact(again),
        data_hash=data_hash(again["data"])), body=False)  # fmt: skip
    assert Finding(at, "its turn has ended before") in checked(copy).findings


def test_an_index_that_leaves_out_rows_is_found(copy: Path) -> None:
    change(copy, "DROP INDEX turns_opened")
    change(copy, "CREATE INDEX turns_opened ON events (user_id, turn_id, session_id, position) WHERE type = 'x'")
    assert "turns_opened" in first(copy).what


def test_each_lost_page_is_found(lived: Path, copy: Path) -> None:
    whole = (lived / "log.db").read_bytes()
    size = int.from_bytes(whole[16:18], "big")
    for page in range(1, len(whole) // size):
        spoiled = bytearray(whole)
        spoiled[page * size : (page + 1) * size] = bytes(size)
        (copy / "log.db").write_bytes(spoiled)
        with suppress(VerifyFailed):
            assert not checked(copy).holds, f"page {page + 1}"


def test_flipped_bits_are_found_or_change_nothing(lived: Path, copy: Path) -> None:
    """What verify does not see is proven harmless: every row and every index reads as before."""
    whole, random = (lived / "log.db").read_bytes(), Random(10)
    told = everything(lived / "log.db")
    for _ in range(FLIPS):
        at, bit = random.randrange(len(whole)), random.randrange(8)
        spoiled = bytearray(whole)
        spoiled[at] ^= 1 << bit
        (copy / "log.db").write_bytes(spoiled)
        try:
            held = checked(copy).holds
        except VerifyFailed:
            continue
        assert not held or everything(copy / "log.db") == told, f"byte {at}, bit {bit}"


def everything(path: Path) -> list[Any]:
    """What a reader can learn: each table's rows, and each index's order of them."""
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name").fetchall()
        read: list[Any] = [names]
        for kind, name, table, sql in names:
            if kind == "table":
                read.append(connection.execute(f"SELECT * FROM {name}").fetchall())
            elif table == "events":
                _, _, where = (sql or "").partition("WHERE")
                only = f"WHERE {where}" if where else ""
                read.append(connection.execute(f"SELECT position FROM events INDEXED BY {name} {only}").fetchall())
        return read


@pytest.fixture(scope="module")
def folded(lived: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lived log and the views of it."""
    folder = tmp_path_factory.mktemp("folded")
    shutil.copy(lived / "log.db", folder / "log.db")
    asyncio.run(fold(folder))
    return folder


async def fold(folder: Path) -> None:
    reader = await LogReader.open(folder / "log.db")
    views = await store.ViewStore.open(folder, reader)
    while rows := await reader.rows_after(views.position, 50):
        await views.apply(rows)
    await views.close()
    await reader.close()


VIEW_DAMAGES = [
    ("UPDATE messages SET text = 'never said' WHERE status = 'completed'", "differs from the fold in text"),
    ("UPDATE sessions SET title = 'another' WHERE user_id = 'user-1'", "differs from the fold in title"),
    ("UPDATE turns SET status = 'running' WHERE user_id = 'user-1'", "differs from the fold in status"),
    ("DELETE FROM messages WHERE role = 'user' AND user_id = 'user-1'", "is missing"),
    ("DELETE FROM turns WHERE user_id = 'user-1'", "is missing"),
    (
        "UPDATE turns SET turn_id = 'another' WHERE turn_id = (SELECT min(turn_id) FROM turns)",
        "is not what the fold makes",
    ),
    ("UPDATE turns SET session_id = 'foreign' WHERE position < 30", "is of no session of the log"),
]


@pytest.mark.parametrize(("sql", "words"), VIEW_DAMAGES)
def test_views_that_are_not_the_fold_are_found(folded: Path, tmp_path: Path, sql: str, words: str) -> None:
    for path in folded.iterdir():
        shutil.copy(path, tmp_path / path.name)
    assert compared(tmp_path).holds
    [views] = tmp_path.glob("views-*.db")
    with closing(sqlite3.connect(views)) as connection, connection:
        assert connection.execute(sql).rowcount > 0
    assert checked(tmp_path).holds, "the log is as it was"
    report = compared(tmp_path)
    assert any(words in found.what and found.what.startswith(views.name) for found in report.findings), report.findings


def compared(folder: Path) -> Report:
    return verify(folder, lambda done, of: None, views=True, processes=1)


def test_views_that_are_behind_are_compared_where_they_are(lived: Path, copy: Path) -> None:
    """The stack runs: they have folded less than the log holds."""
    keep_head(copy, 1)
    with closing(sqlite3.connect(copy / "log.db")) as log:
        user_id, session_id = log.execute("SELECT user_id, session_id FROM events WHERE position = 1").fetchone()
    report = compared(copy)
    assert [found.position for found in report.findings] == [1]
    assert f"sessions {user_id}/{session_id} is missing" in report.findings[0].what


def test_no_log_is_no_pass(tmp_path: Path) -> None:
    with pytest.raises(VerifyFailed, match="no log"):
        checked(tmp_path)


def test_the_short_way_takes_what_the_long_way_takes(lived: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a whole log passes by the short way: the long one is never asked."""
    monkeypatch.setattr(Walk, "_explain", lambda self, row: pytest.fail(f"position {row[6]} took the long way"))
    assert checked(lived).holds
