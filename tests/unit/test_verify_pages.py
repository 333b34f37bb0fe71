"""What SQLite says of a page, `chatlog verify` says of a position: also where every row can still be read."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from services.history.tools.findings import Finding, Findings
from services.history.tools.verify_file import check_file
from tests.conversing import completed
from tests.recording import begin, scene

FRAGMENTS_AT = 7  # in a page's header: how many bytes of it are lost between cells


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough that events and their indexes are trees of pages."""
    folder = tmp_path_factory.mktemp("paged")
    with scene(folder) as on:
        session_id = begin(on)
        for number in range(24):
            said, _ = on.running(session_id, f"{number} " + "long " * 300 * (number % 8 == 0))
            on.take(completed(session_id, str(said.turn_id)))
    return folder / "log.db"


def pages(log: Path, tree: str) -> list[tuple[int, str]]:
    """(number, kind) of its pages with cells, in their order."""
    with closing(sqlite3.connect(log)) as connection:
        if not connection.execute("SELECT sqlite_compileoption_used('ENABLE_DBSTAT_VTAB')").fetchone()[0]:
            pytest.skip("this SQLite names no pages")
        sql = "SELECT pageno, pagetype FROM dbstat WHERE name = ? AND pagetype <> 'overflow' ORDER BY path"
        return connection.execute(sql, (tree,)).fetchall()


def told_of(log: Path, page: int) -> tuple[bytes, list[Finding]]:
    """The page's bytes, and what is found once a bit of its header is flipped, which hurts no row."""
    whole = log.read_bytes()
    start = (page - 1) * int.from_bytes(whole[16:18], "big")
    spoiled = bytearray(whole)
    spoiled[start + FRAGMENTS_AT] ^= 1
    findings = Findings()
    log.write_bytes(spoiled)
    try:
        with closing(sqlite3.connect(f"file:{log}?mode=ro", uri=True)) as connection:
            check_file(log, connection, findings)
    finally:
        log.write_bytes(whole)
    return whole[start : start + int.from_bytes(whole[16:18], "big")], findings.told()


@pytest.fixture
def begins(log: Path) -> list[tuple[int, bytes]]:
    """Each position, and how its row begins: no other row has these bytes."""
    with closing(sqlite3.connect(log)) as connection:
        connection.text_factory = bytes
        return connection.execute("SELECT position, event_id || user_id FROM events ORDER BY position").fetchall()


def test_a_page_of_events_is_told_by_its_first_event(log: Path, begins: list[tuple[int, bytes]]) -> None:
    leaves = [page for page, kind in pages(log, "events") if kind == "leaf"]
    assert len(leaves) > 10
    for page in leaves:
        raw, told = told_of(log, page)
        assert told[0].position == min(position for position, begin in begins if begin in raw), page


@pytest.mark.parametrize("tree", ["sqlite_autoindex_events_1", "sqlite_autoindex_events_2", "turns_opened"])
def test_a_page_of_an_index_is_told_by_an_event(log: Path, tree: str) -> None:
    for page, _ in pages(log, tree):
        _, told = told_of(log, page)
        assert told[0].position > 0, page


def test_a_page_beside_the_events_is_told_without_one(log: Path) -> None:
    [(page, _)] = pages(log, "outcomes")
    _, told = told_of(log, page)
    assert {each.position for each in told} == {0}
