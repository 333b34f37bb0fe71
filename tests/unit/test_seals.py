"""The seals of the rows beside the events: pinned for ever, and broken by any bit of any value."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from services.history.log.seals import SEALED_TABLES, seal
from services.history.tools.findings import Finding, Findings
from services.history.tools.verify_tables import check_tables
from tests.conversing import make_event, message, new_id, session_started
from tests.recording import begin, delivered, scene

BITS = 8  # of each value; its seed names them


def test_a_golden_seal() -> None:
    """A log written today must verify with any later version."""
    said = b'["outcomes","zo\xc3\xab",null,7,"00ff"]'
    assert seal("outcomes", "zoë", None, 7, b"\x00\xff") == hashlib.sha256(said).hexdigest()


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A log in memory, with rows in all tables: refusals, what changed nothing, parked events."""
    folder = tmp_path_factory.mktemp("sealed")
    with scene(folder) as on:
        session_id = begin(on)
        on.take(message(new_id()), session_started(session_id))
        on.take(make_event("cancel_requested", session_id, {}, turn_id=new_id()))
        on.take(*(replace(delivered(message(session_id)), body=body) for body in (b"{}", b"\xff\xfe\x00")))
        on.recorder.begin_epoch()
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        with closing(sqlite3.connect(folder / "log.db")) as log:
            log.backup(copy)
        copy.execute("PRAGMA ignore_check_constraints = ON")
        yield copy


def found(log: sqlite3.Connection) -> list[Finding]:
    findings = Findings()
    check_tables(log, findings)
    return findings.told()


def keys(log: sqlite3.Connection, table: str) -> tuple[str, list[tuple[Any, ...]]]:
    """What finds a row of the table, and all rows."""
    named = [name for name, place in log.execute(f"SELECT name, pk FROM pragma_table_info('{table}')") if place]
    listed = log.execute(f"SELECT {', '.join(named)} FROM {table}").fetchall()
    return " AND ".join(f"{name} = ?" for name in named), listed


def flipped(value: Any, random: Random) -> tuple[str, Any]:
    """The value with one bit changed, and how SQL is told: a text may not be UTF-8 any more."""
    if isinstance(value, int):
        return "?", value ^ (1 << random.randrange(62))
    raw = bytearray(value if isinstance(value, bytes) else value.encode())
    raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return ("?" if isinstance(value, bytes) else "CAST(? AS TEXT)"), bytes(raw)


@pytest.mark.parametrize("table", SEALED_TABLES)
def test_a_flipped_bit_of_any_value_is_found(sealed: sqlite3.Connection, table: str) -> None:
    assert found(sealed) == []
    random = Random(12)
    columns = [column for (column,) in sealed.execute("SELECT name FROM pragma_table_info(?)", (table,))]
    which, rows = keys(sealed, table)
    assert rows
    for key in rows:
        for column in columns:
            [(value,)] = sealed.execute(f"SELECT {column} FROM {table} WHERE {which}", key).fetchall()
            for _ in range(0 if value in (None, "") else BITS):
                mark, spoiled = flipped(value, random)
                sealed.execute("BEGIN")
                sealed.execute(f"UPDATE {table} SET {column} = {mark} WHERE {which}", (spoiled, *key))
                told = found(sealed)
                sealed.execute("ROLLBACK")
                assert len(told) == 1, (column, value, spoiled)
                assert told[0].what.startswith(table)


def test_a_row_is_told_by_its_key_and_the_position_that_it_names(sealed: sqlite3.Connection) -> None:
    [(user_id, event_id, position)] = sealed.execute(
        "SELECT user_id, event_id, position FROM outcomes WHERE position IS NOT NULL"
    ).fetchall()
    sealed.execute("BEGIN")
    sealed.execute("UPDATE outcomes SET version = version + 1 WHERE event_id = ?", (event_id,))
    told = found(sealed)
    sealed.execute("ROLLBACK")
    assert told == [Finding(position, f"outcomes {user_id}/{event_id}: its seal is not that of its values")]


@pytest.mark.parametrize("table", ["log", "cursor"])
def test_a_row_that_must_be_there_is_missed(sealed: sqlite3.Connection, table: str) -> None:
    sealed.execute("BEGIN")
    sealed.execute(f"DELETE FROM {table}")
    told = found(sealed)
    sealed.execute("ROLLBACK")
    assert told == [Finding(0, f"{table} has 0 rows, and must have one")]


def test_a_swapped_pair_of_rows_is_found(sealed: sqlite3.Connection) -> None:
    """Each with a seal that was good at the other's place."""
    sealed.execute("BEGIN")
    for was, becomes in ((1, 9), (2, 1), (9, 2)):
        sealed.execute("UPDATE parked SET parked_id = ? WHERE parked_id = ?", (becomes, was))
    told = found(sealed)
    sealed.execute("ROLLBACK")
    assert [each.what for each in told] == [f"parked {key}: its seal is not that of its values" for key in (1, 2)]
