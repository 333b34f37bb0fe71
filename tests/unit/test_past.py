"""Time travel: a session as it was at any version or time is what the views said of it then (P3)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings

from contracts.queries import PAGE_BYTES, At, MessagesQuery, SessionQuery
from services.history.log.reader import LogReader
from services.history.views.pages import NoSession
from services.history.views.past import Past
from services.history.views.reader import ViewReader
from services.history.views.store import ViewStore
from services.history.views.travel import Travel
from tests.conversing import USER, completed, make_event, message, session_started
from tests.recording import NOW, Scene, begin, scene
from tests.unit.test_histories import History, steps, take_step


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[LogReader]:
    reader = await LogReader.open(folder / "log.db")
    try:
        yield reader
    finally:
        await reader.close()


@settings(max_examples=15, deadline=None)
@given(steps=steps)
def test_any_history_at_each_of_its_versions(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history = History(Scene(folder))
        for kind, pick in [("start", n) for n in range(4)] + steps:
            take_step(history, kind, pick, folder)
        history.follow()
        asyncio.run(check_each_version(folder))
        history.on.log.close()


async def check_each_version(folder: Path) -> None:
    """Fold the views event by event; what they say after each one is what is said of its version later."""
    async with reading(folder) as reader:
        store = await ViewStore.open(folder, reader)
        views, travel = ViewReader(store), Travel(reader, keep_deleted_s=1e9, now=lambda: NOW)
        try:
            while rows := await reader.rows_after(store.position, 1):
                await store.apply(rows)
                [(user, session_id)] = await store.reading.execute_fetchall(
                    "SELECT user_id, session_id FROM sessions ORDER BY position DESC LIMIT 1"
                )
                query = MessagesQuery(user_id=user, session_id=session_id, limit=3)
                past = await travel.past(query, rows[0].version)
                assert isinstance(past, Past)
                assert past.session() == await views.session(user, session_id)
                assert past.messages() == await views.messages(query)
        finally:
            await store.close()


async def at(on: Scene, session_id: str, when: At, now: str = NOW) -> str | NoSession | None:
    """The session's title then, or why it is not told."""
    async with reading(on.folder) as reader:
        travel = Travel(reader, on.bounds.rules.keep_deleted_s, lambda: now)
        past = await travel.past(SessionQuery(user_id=USER, session_id=session_id), when)
        found = past if not isinstance(past, Past) else past.session()
        return found if isinstance(found, str) else found.title


async def test_a_time_is_the_last_version_that_was_recorded_by_then(on: Scene) -> None:
    on.now = "2026-11-21T10:00:00.000Z"
    session_id = begin(on)
    for second, title in enumerate(("one", "two"), 1):
        on.now = f"2026-11-21T10:00:0{second}.500Z"
        on.take(make_event("session_renamed", session_id, {"title": title}))
    asked = ("09:59:59.999", "10:00:00.000", "10:00:01.499", "10:00:01.500", "10:00:09.000")
    titles = [await at(on, session_id, f"2026-11-21T{time}Z") for time in asked]
    assert titles == ["session_unknown", None, None, "one", "two"]


@pytest.mark.parametrize("then", ["nothing", "restored", "begun again"])
async def test_what_was_deleted_is_shown_within_the_time_for_its_undo(on: Scene, then: str) -> None:
    """By version: 1 began, 2 named, 3 deleted, 4 restored or begun again, 5 named."""
    session_id = begin(on)
    for event_type, data in (("session_renamed", {"title": "old"}), ("session_deleted", {})):
        gone = make_event(event_type, session_id, data)
        on.take(gone)
    deleted_at, later = gone.envelope.occurred_at, "2999-01-01T00:00:00.000Z"
    if then != "nothing":
        again = session_started(session_id) if then == "begun again" else make_event("session_restored", session_id, {})
        on.take(again, make_event("session_renamed", session_id, {"title": "new"}))
    present = {"nothing": "session_deleted"}.get(then, "new")
    soon = [await at(on, session_id, version, deleted_at) for version in (1, 2, 3, 9)]
    assert soon == [None, "old", "session_deleted", present]
    kept = then == "restored"
    long_after = [await at(on, session_id, version, later) for version in (2, 3, 9)]
    assert long_after == ["old" if kept else "retention_over", "session_deleted", present]


async def test_a_page_of_the_past_is_bounded(on: Scene) -> None:
    """As a page of the present: by rows, and by bytes; and no more than that is kept while it is folded."""
    session_id = begin(on)
    for number in range(5):
        said, _ = on.running(session_id, str(number) * (PAGE_BYTES // 9))
        on.take(completed(session_id, str(said.turn_id), text="a" * (PAGE_BYTES // 9)))
    on.take(message(session_id, "waits"))
    async with reading(on.folder) as reader:
        travel = Travel(reader, 60, lambda: NOW)
        after: int | None = 0
        sizes = []
        while after is not None:
            past = await travel.past(MessagesQuery(user_id=USER, session_id=session_id, after=after), 99)
            assert isinstance(past, Past)
            page, after = past.messages()
            sizes.append(len(page))
        assert sizes == [9, 3]
        past = await travel.past(MessagesQuery(user_id=USER, session_id=session_id, limit=2, after=0), 99)
        assert isinstance(past, Past)
        assert len(past.of("messages", USER, session_id)) == 3, "the page, and one that tells of the next"
        assert past.of("turns", USER, session_id) == []
