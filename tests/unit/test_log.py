"""The log in SQLite: one writer, whole batches, dense places, a chain over all rows (D3, contracts "Log")."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.envelope import Envelope, read_event, write_event
from contracts.queries import PAGE_BYTES
from services.history.log.port import FIRST_HASH, Cursor, LogError, LogFenced, Stored, StoredOutcome, chain_hash
from services.history.log.reader import LogReader
from services.history.log.sqlite import LogLocked, SqliteLog
from services.history.tools.verify import verify
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import NOW, STREAM, begin, scene

START = Cursor(None, 0)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = SqliteLog(tmp_path / "log.db", "e" * 32, NOW)
    yield made
    made.close()


def started(session_id: str, position: int, version: int) -> Stored:
    return Stored(position, version, NOW, session_started(session_id))


def test_a_batch_is_there_whole_or_not_at_all(log: SqliteLog) -> None:
    def half_a_batch() -> None:
        with log.transaction(START, Cursor(STREAM, 5)) as tx:
            tx.append(started(new_id(), 1, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_a_batch()
    assert log.cursor() == START
    with log.transaction(START, Cursor(STREAM, 5)) as tx:
        assert tx.last_position() == 0
        tx.append(started(new_id(), 1, 1))
    assert log.cursor() == Cursor(STREAM, 5)
    with log.look() as tx:
        assert tx.last_position() == 1


def test_a_position_that_does_not_follow_is_an_error(log: SqliteLog) -> None:
    with pytest.raises(LogError, match="does not follow"), log.transaction(START, START) as tx:
        tx.append(started(new_id(), 2, 1))


@pytest.mark.parametrize("before", [Cursor(None, 1), Cursor(STREAM, 0), Cursor("another", 7)])
def test_a_batch_begins_only_where_this_process_left_the_cursor(log: SqliteLog, before: Cursor) -> None:
    with pytest.raises(LogFenced), log.transaction(before, Cursor(STREAM, 9)):
        pytest.fail("the batch has begun")
    assert log.cursor() == START


def append_all(log: SqliteLog, rows: list[Stored]) -> None:
    with log.transaction(START, START) as tx:
        for row in rows:
            tx.append(row)


def test_the_unique_keys_are_a_belt(log: SqliteLog) -> None:
    """decide never lets it come so far; if it did, nothing of the batch would be there."""
    session_id, event = new_id(), message(new_id())
    end = completed(event.session_id, str(event.turn_id)), completed(event.session_id, str(event.turn_id))
    for rows in (
        [Stored(1, 1, NOW, event), Stored(2, 2, NOW, event)],
        [started(session_id, 1, 1), started(session_id, 2, 1)],
        [Stored(1, 1, NOW, end[0]), Stored(2, 2, NOW, end[1])],
    ):
        with pytest.raises(LogError, match="UNIQUE"):
            append_all(log, rows)
        with log.look() as tx:
            assert tx.last_position() == 0


def test_a_second_writer_is_refused_and_the_first_keeps_its_pid_in_the_lock(log: SqliteLog, tmp_path: Path) -> None:
    with pytest.raises(LogLocked, match="another process"):
        SqliteLog(tmp_path / "log.db", "f" * 32, NOW)
    assert (tmp_path / "log.lock").read_text() == f"{os.getpid()}\n"


def test_another_process_is_refused_too_and_may_open_it_once_the_first_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from services.history.log.sqlite import SqliteLog\n"
        f"log = SqliteLog(Path({str(tmp_path / 'log.db')!r}), 'e' * 32, 'now'); "
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(LogLocked):
            SqliteLog(tmp_path / "log.db", "f" * 32, NOW)
        holder.kill()
    reopened = SqliteLog(tmp_path / "log.db", "f" * 32, NOW)
    assert reopened.epoch == "e" * 32, "the log's own id stays"
    reopened.close()


def test_it_is_synced_strict_and_private(log: SqliteLog, tmp_path: Path) -> None:
    pragma = {name: log._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")}
    assert pragma == {"synchronous": 2, "journal_mode": "wal"}
    tables = log._connection.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'").fetchall()
    assert {name for name, strict in tables if not strict} <= {"sqlite_schema", "sqlite_sequence"}
    assert {path.stat().st_mode & 0o077 for path in tmp_path.glob("log.db*")} == {0}


def test_a_file_that_is_no_database_or_a_later_schema_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)
    with pytest.raises(LogError, match=r"cannot open .*log\.db"):
        SqliteLog(path, "e" * 32, NOW)
    path.unlink()
    SqliteLog(path, "e" * 32, NOW).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(LogError, match="schema 99"):
        SqliteLog(path, "e" * 32, NOW)


@pytest.mark.parametrize(
    "damage", ["UPDATE cursor SET sequence = sequence + 1", "UPDATE log SET epoch = 'another'", "DELETE FROM cursor"]
)
def test_nobody_goes_on_from_a_damaged_cursor_or_epoch(log: SqliteLog, tmp_path: Path, damage: str) -> None:
    """The next write would seal it."""
    log.close()
    connection = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
    connection.execute(damage)
    connection.close()
    for _ in range(2):
        with pytest.raises(LogError, match=r"its (cursor|log) is not what was written"):
            SqliteLog(tmp_path / "log.db", "f" * 32, NOW)


def golden(position: int, version: int, event_type: str, turn_id: str | None, data: dict[str, object]) -> Stored:
    envelope = Envelope(
        event_id=f"00000000-0000-7000-8000-00000000000{position}",
        type=event_type,
        schema_version=1,
        user_id="zoë",
        session_id="00000000-0000-7000-8000-0000000000aa",
        turn_id=turn_id,
        occurred_at=NOW,
        data=data,
    )
    return Stored(position, version, NOW, write_event(envelope))


def test_a_golden_chain_of_three_rows(log: SqliteLog) -> None:
    """Pinned for ever: a log written today must verify with any later version. The first row has a NULL."""
    turn = "00000000-0000-5000-8000-0000000000bb"
    rows = [
        golden(1, 1, "session_started", None, {"title": "tea ☕"}),
        golden(2, 2, "session_renamed", None, {"title": ""}),
        golden(3, 3, "answer_started", turn, {"run": "00000000-0000-7000-8000-0000000000cc", "attempt": 1}),
    ]
    append_all(log, rows)
    assert [(stored.hex(), made.hex()) for stored, made in by_hand(log._connection)] == [(h, h) for h in GOLDEN_CHAIN]


GOLDEN_CHAIN = [
    "924ee66dc4f0aa62f8a46b85b4d47455cc90b9f70d66cc5515cebe4a8e5c5043",
    "2ee6d0352064f4865257c1812e8acfdbe157c431bba77cb41755d203f1a0517f",
    "dd7b362c4972c3ab7c11c7b4e0a743c199bc42051d62c00b0db613a1e5e42e6f",
]


def by_hand(connection: sqlite3.Connection) -> Iterator[tuple[bytes, bytes]]:
    """Each row's hash as it is stored and as contracts' recipe makes it, from the columns alone."""
    previous = bytes(32)
    for *fields, body, body_hash, stored in connection.execute(
        "SELECT position, event_id, user_id, session_id, version, turn_id, type, schema_version, recorded_at,"
        " data_hash, body, body_hash, hash FROM events ORDER BY position"
    ):
        assert hashlib.sha256(body).digest() == body_hash
        digest = previous
        for value in fields:
            raw = b"" if value is None else str(value).encode()
            digest += b"\xff\xff\xff\xff" if value is None else len(raw).to_bytes(4, "big")
            digest += raw
        previous = hashlib.sha256(digest + body_hash).digest()
        yield stored, previous


def test_the_chain_holds_over_batches_and_restarts(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        session_id = begin(on)
        for _ in range(3):
            said, _ = on.running(session_id)
            on.take(completed(session_id, str(said.turn_id)))
            on.reopen()
        with on.look() as connection:
            assert len([stored == made for stored, made in by_hand(connection) if stored == made]) == 13
    assert bytes(32) == FIRST_HASH


def test_text_and_null_stay_apart_in_the_chain() -> None:
    plain = golden(1, 1, "session_started", None, {})
    data_hash, body_hash = plain.event.data_hash, bytes(32)
    other = Stored(1, 1, "", plain.event)
    assert chain_hash(FIRST_HASH, plain, data_hash, body_hash) != chain_hash(FIRST_HASH, other, data_hash, body_hash)


def test_an_outcome_is_the_recorded_row_before_any_other(log: SqliteLog) -> None:
    event = session_started(new_id())
    with log.transaction(START, START) as tx:
        kept = StoredOutcome(event.event_id, event.session_id, None, "h", None, "queue_full", None, None)
        tx.put_outcome(USER, kept, NOW)
        assert tx.outcome(USER, event.event_id) == kept
        assert tx.outcome("other", event.event_id) is None
        tx.append(Stored(1, 1, NOW, event))
        found = tx.outcome(USER, event.event_id)
        assert found is not None
        assert (found.code, found.position, found.type) == (None, 1, "session_started")


async def test_pages_are_bounded_by_rows_and_by_bytes(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        session_id = begin(on)
        on.model = None
        on.take(*[make_event("session_renamed", session_id, {"title": str(n)}) for n in range(450)])
        on.take(*[message(session_id, "x" * 400_000) for _ in range(5)], message(session_id, "y" * 1_500_000))
        reader = await LogReader.open(on.path)
        try:
            after = 0
            sizes: list[int] = []
            frames: list[bytes] = []
            while True:
                page = await reader.session_page(USER, session_id, after, 200)
                frames += page.frames
                after += len(page.frames)
                sizes.append(len(page.frames))
                assert len(page.frames) == 1 or sum(map(len, page.frames)) < PAGE_BYTES + 200 * 300
                if not page.more:
                    break
            assert sizes[:2] == [200, 200]
            assert [json.loads(frame)["version"] for frame in frames] == list(range(1, 458))
            assert page.version == 457
            beyond = await reader.session_page(USER, session_id, 457, 200)
            assert (beyond.frames, beyond.more, beyond.version) == ((), False, 457)
            assert (await reader.session_page("other", session_id, 0, 200)).version == 0
        finally:
            await reader.close()


async def test_the_page_names_the_turn_that_runs(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        session_id = begin(on)
        reader = await LogReader.open(on.path)
        try:
            said, _ = on.running(session_id)
            on.claim(said, new_id())
            page = await reader.session_page(USER, session_id, 0, 200)
            assert (page.running_turn_id, page.running_attempt) == (said.turn_id, 2)
            on.take(completed(session_id, str(said.turn_id), 2))
            page = await reader.session_page(USER, session_id, 0, 200)
            assert (page.running_turn_id, page.running_attempt) == (None, 0)
        finally:
            await reader.close()


def test_what_is_stored_can_be_read_back_as_it_was(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        session_id = begin(on)
        on.running(session_id)
        for row in on.rows(USER, session_id):
            assert read_event(row.event.body) == row.event


def test_unfinished_turns_are_found_at_start(tmp_path: Path) -> None:
    """Of all users, in the order of their messages, with what their sessions know of them."""
    with scene(tmp_path) as on:
        turns = {}
        for user in ("a", "b"):
            session_id = begin(on, user)
            said, run = on.running(session_id, user_id=user)
            on.take(message(session_id, user_id=user))
            turns[user] = (said.turn_id, run)
            done = begin(on, user)
            said, _ = on.running(done, user_id=user)
            on.take(completed(done, str(said.turn_id), user_id=user))
        before = sorted(on.recorder.open_turns(), key=lambda turn: turn.position)
        on.reopen()
        after = sorted(on.recorder.open_turns(), key=lambda turn: turn.position)
        assert after == before
        assert [(turn.turn_id, turn.run) for turn in after if turn.active] == list(turns.values())
        assert len(after) == 4


def test_a_log_whose_tables_are_still_in_its_wal_holds_to_verify(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        begin(on)
        assert verify(tmp_path, lambda done, of: None, processes=1).findings == ()
