"""The views' fold on real files: the same rows however it was cut, resumed, or given another log's checkpoint (D4)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.history.log.port import LogError, Stored
from services.history.views import tables as views
from services.history.views.batch import Heads
from services.history.views.filling import fold_rows
from services.history.views.fold import KEYS, Recorded
from services.history.views.rows import Rows
from services.history.views.store import ViewStore
from services.history.views.tables import ViewTables
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, begin, ended, scene
from tests.viewing import WORDS, opened, stored

LONG_AGO = "2023-05-01T09:30:00.000Z"


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


async def fold(on: Scene, rows_at_once: int = 1000, batches: int | None = None) -> dict[str, list[Any]]:
    """All rows of the views after so many batches."""
    async with opened(on) as (store, reader):
        while batches != 0 and (rows := await reader.rows_after(store.position, rows_at_once)):
            await store.apply(rows)
            batches = None if batches is None else batches - 1
        return await stored(store, "sessions", "messages", "turns", "checkpoint", *WORDS)


def live(on: Scene) -> str:
    """A session with turns in every state."""
    session_id = begin(on)
    for end in ("answer_completed", "answer_failed", "answer_cancelled"):
        said, _ = on.running(session_id, f"before {end}")
        if end == "answer_completed":
            on.take(completed(session_id, str(said.turn_id), text="done"))
        else:
            on.take(ended(said, end, 1, text="partly", usage={"prompt_tokens": 3}))
    on.running(session_id, "runs")
    on.take(message(session_id, "waits"), make_event("session_renamed", session_id, {"title": "new"}))
    on.take(make_event("session_configured", session_id, {"on_busy": "interrupt"}))
    on.take(make_event("session_configured", session_id, {}))
    return session_id


def test_what_was_said_elsewhere_has_no_turn_and_keeps_its_order() -> None:
    rows, session_id = Rows(), new_id()
    question, answer = new_id(), new_id()
    said = [
        {"message_id": question, "parent_id": None, "role": "user", "text": "Hi?", "created_at": LONG_AGO},
        {"message_id": answer, "parent_id": question, "role": "assistant", "text": "Hi.", "model": "gpt-4"},
    ]  # fmt: skip
    imported = {"source": "chatgpt", "messages": said, "head": answer}
    events = [session_started(session_id), make_event("session_imported", session_id, imported)]
    events.append(make_event("session_imported", session_id, {"source": "chatgpt", "messages": []}))
    for position, event in enumerate(events, 7):
        rows.fold(Recorded(position, position - 6, "2026-11-21T10:00:00.000Z", event))
    shown = [(row["text"], row["place"], row["turn_id"], row["status"], row["model"], row["created_at"])
             for row in rows.of("messages", USER, session_id)]  # fmt: skip
    assert shown == [
        ("Hi?", 8 * 1024, None, "recorded", None, LONG_AGO),
        ("Hi.", 8 * 1024 + 1, None, "completed", "gpt-4", "2026-11-21T10:00:00.000Z"),
    ]
    [session] = rows.of("sessions", USER, session_id)
    assert (session["head"], session["version"]) == (answer, 3), "an import without a head leaves it where it was"


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 7])
async def test_the_same_rows_in_batches_of_any_size(on: Scene, rows_at_once: int) -> None:
    live(on)
    at_once = await fold(on)
    for path in on.folder.glob("views-*"):
        path.unlink()
    assert await fold(on, rows_at_once) == at_once


async def test_a_fold_that_was_stopped_goes_on_from_its_checkpoint(on: Scene) -> None:
    live(on)
    await fold(on, 3, batches=2)
    part = await fold(on, batches=0)
    assert part["checkpoint"][0][1] == 6
    whole = await fold(on, 3)
    for path in on.folder.glob("views-*"):
        path.unlink()
    assert await fold(on) == whole


async def test_what_each_event_makes_of_the_views(on: Scene) -> None:
    session_id = live(on)
    rows = await fold(on)
    [session] = rows["sessions"]
    assert (session[1], session[3], session[6]) == (session_id, "new", "interrupt")
    assert session[8] == len(on.types(session_id))
    answers = {row[9]: row for row in rows["messages"] if row[5] == "assistant"}
    assert set(answers) == {"completed", "failed", "cancelled", "running", "waiting"}
    texts = {status: row[6] for status, row in answers.items()}
    assert texts == {"completed": "done", "failed": "partly", "cancelled": "partly", "running": "", "waiting": ""}
    assert json.loads(answers["failed"][13]) == {"prompt_tokens": 3}
    assert answers["failed"][10] == "model_error"
    parents = [row[3] for row in sorted(rows["messages"], key=lambda row: row[4])]
    ids = [row[2] for row in sorted(rows["messages"], key=lambda row: row[4])]
    assert parents == [None, *ids[:-1]], "each follows the one before"


async def test_rows_in_memory_are_the_stored_ones(on: Scene) -> None:
    sessions = [live(on), live(on)]
    mine = in_memory(on)
    async with opened(on) as (store, reader):
        await store.apply(await reader.rows_after(0, 1000))
        for table, key in KEYS.items():
            found = [dict(row) for row in await store.reading.execute_fetchall(f"SELECT * FROM {table}")]
            kept = [row for session_id in sessions for row in mine.of(table, USER, session_id)]
            assert {by(row, key): row for row in found} == {by(row, key): row for row in kept}
            assert key in await unique(store, table)


def test_the_state_of_a_session_does_not_depend_on_where_it_lies_in_the_log(on: Scene) -> None:
    session_id = live(on)
    rows = [
        Recorded(stored.position + 700, stored.version, stored.recorded_at, stored.event)
        for stored in stored_rows(on, session_id)
    ]
    elsewhere = Rows()
    for row in rows:
        elsewhere.fold(row)
    assert elsewhere.state_hash(USER, session_id) == in_memory(on).state_hash(USER, session_id)
    elsewhere.fold(rows[-1]._replace(version=rows[-1].version + 1))
    assert elsewhere.state_hash(USER, session_id) != in_memory(on).state_hash(USER, session_id)


def stored_rows(on: Scene, session_id: str) -> list[Stored]:
    with on.log.look() as tx:
        return list(tx.session_rows(USER, session_id))


def in_memory(on: Scene) -> Rows:
    rows = Rows()
    for (session_id,) in on.sql("SELECT DISTINCT session_id FROM events"):
        for row in stored_rows(on, session_id):
            rows.fold(Recorded(row.position, row.version, row.recorded_at, row.event))
    return rows


async def unique(store: ViewStore, table: str) -> list[tuple[str, ...]]:
    """The columns of each unique index."""
    indexes = await store.reading.execute_fetchall(f"SELECT name FROM pragma_index_list('{table}') WHERE \"unique\"")
    return [
        tuple(row["name"] for row in await store.reading.execute_fetchall(f"PRAGMA index_info({name})"))
        for (name,) in indexes
    ]


def by(row: dict[str, Any], key: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[column] for column in key)


async def test_a_session_that_begins_again_has_nothing_of_before(on: Scene) -> None:
    session_id, other = begin(on), begin(on)
    on.running(session_id)
    on.running(other)
    on.take(make_event("session_deleted", session_id, {}))
    assert [len(rows) for rows in (await fold(on)).values()][:3] == [2, 4, 2], "it can be restored"
    on.take(session_started(session_id, title="anew"))
    rows = await fold(on)
    assert sorted((row[1], row[3]) for row in rows["sessions"]) == sorted([(session_id, "anew"), (other, None)])
    assert {row[1] for row in [*rows["messages"], *rows["turns"]]} == {other}


async def test_an_answer_stands_right_behind_its_message(on: Scene) -> None:
    session_id = begin(on)
    said = [message(session_id, str(number)) for number in range(3)]
    on.take(*said)
    rows = sorted((await fold(on))["messages"], key=lambda row: row[4])
    assert [row[8] for row in rows] == [each.turn_id for each in said for _ in range(2)]
    assert [row[5] for row in rows] == ["user", "assistant"] * 3


@pytest.mark.parametrize("other", ["shorter", "different"])
async def test_views_of_another_log_are_rebuilt_under_the_next_number(on: Scene, other: str) -> None:
    live(on)
    await fold(on)
    on.log.close()
    for path in on.folder.glob("log.db*"):
        path.unlink()
    on.open()
    if other == "different":
        live(on)
    else:
        on.take(session_started(new_id()))
    rebuilt = await fold(on)
    assert [path.name for path in on.folder.glob("views-*.db")] == ["views-2.db"]
    [(_, position, chain)] = rebuilt["checkpoint"]
    assert on.sql("SELECT hash FROM events WHERE position = ?", position) == [(chain,)]
    assert len(rebuilt["sessions"]) == 1


async def test_a_later_shape_of_the_views_is_rebuilt(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    live(on)
    before = await fold(on)
    monkeypatch.setattr(views, "VIEWS_VERSION", views.VIEWS_VERSION + 1)
    assert await fold(on) == before
    assert [path.name for path in on.folder.glob("views-*.db")] == ["views-2.db"]


async def test_what_an_interrupted_rebuild_left_behind_is_cleared_away(on: Scene) -> None:
    live(on)
    before = await fold(on)
    (on.folder / "views-1.db").rename(on.folder / "views-3.db")
    (on.folder / "views-2.db").write_bytes(b"old")
    assert await fold(on) == before
    assert [path.name for path in on.folder.glob("views-*.db")] == ["views-3.db"]


async def test_a_checkpoint_moves_with_its_rows_or_not_at_all(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    live(on)
    async with opened(on) as (store, reader):
        rows = await reader.rows_after(0, 10)

        def failing(*_: Any) -> None:
            raise RuntimeError("a bug in the words")

        monkeypatch.setattr(ViewTables, "_add_words", failing)
        with pytest.raises(RuntimeError):
            await store.apply(rows)
        monkeypatch.undo()
        checkpoint = await store.reading.execute_fetchall("SELECT position FROM checkpoint")
        assert (store.position, [tuple(row) for row in checkpoint]) == (0, [(0,)])
        await store.apply(rows)
        assert store.position == 10
    with closing(sqlite3.connect(on.folder / "views-1.db")) as connection:
        assert connection.execute("SELECT position FROM checkpoint").fetchall() == [(10,)]


async def test_a_batch_that_does_not_follow_is_refused(on: Scene) -> None:
    live(on)
    async with opened(on) as (store, reader):
        rows = await reader.rows_after(0, 100)
        batch = fold_rows(0, rows[:9], Heads(lambda user_id, session_id: None, 10))
        store._tables.write(batch)
        gap = fold_rows(10, rows[10:], Heads(lambda user_id, session_id: None, 10))
        for wrong in (batch, gap):
            with pytest.raises(LogError, match="does not follow"):
                store._tables.write(wrong)
