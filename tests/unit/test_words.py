"""Word search on real files: what is found, by whom, and that the index follows whatever the fold says (P3, P8)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.history.views.batch import Batch
from services.history.views.fold import Drop
from services.history.views.words import Found, asked_of, search
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, begin, scene
from tests.viewing import WORDS, opened, stored

OTHER = "other"


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


async def found(on: Scene, text: str, user_id: str = USER, rows_at_once: int = 1) -> list[Found]:
    """By who searches once the views have folded the log, so many rows at a time."""
    async with opened(on) as (store, reader):
        while rows := await reader.rows_after(store.position, rows_at_once):
            await store.apply(rows)
        return await search(store, user_id, text, 10)


@pytest.mark.parametrize("rows_at_once", [1, 100])
async def test_messages_answers_and_titles_are_found_by_their_words(on: Scene, rows_at_once: int) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id, "Where is the naïve e-mail?")
    on.take(completed(session_id, str(said.turn_id), text="In the ÉTUDE: drawer"))
    on.take(make_event("session_renamed", session_id, {"title": "old words"}))
    on.take(make_event("session_renamed", session_id, {"title": "mail drawer"}))
    message_id, answer_id = said.envelope.data["message_id"], said.envelope.data["answer_id"]

    async def ids(text: str) -> list[str | None]:
        return [each.message_id for each in await found(on, text, rows_at_once=rows_at_once)]

    assert await found(on, "naive E-Mail", rows_at_once=rows_at_once) == [Found(session_id, message_id)]
    assert await ids("etude") == [answer_id]
    assert await ids("drawer") == [None, answer_id], "a title says more of a session than a text"
    assert await ids("mail") == [None, message_id]
    assert await ids("old") == [], "what a title was is not found"
    assert await ids("where drawer") == [], "each word, in one text"
    assert await ids("mail e") == [message_id]
    assert await ids("?! ") == []


async def test_nobody_finds_anothers_words_whatever_they_type(on: Scene) -> None:
    session_id = begin(on)
    on.take(message(session_id, "secret x 61"))
    on.take(make_event("session_renamed", session_id, {"title": "secret x 61"}))
    assert len(await found(on, "secret x 61")) == 2
    for text in ('" OR "secret', "secret) OR (secret", "owner:secret", "secret*", "title : secret", "NOT x", "61"):
        assert await found(on, text, OTHER) == []
        async with opened(on) as (store, _):
            asked = (asked_of(OTHER, text),)
            assert not await store.reading.execute_fetchall("SELECT rowid FROM words WHERE words MATCH ?", asked)
    assert await found(on, USER.encode().hex(), OTHER) == []


async def test_two_users_find_their_own(on: Scene) -> None:
    mine = begin(on)
    on.take(message(mine, "the same words"))
    theirs = session_started(mine.replace(mine[0], "0" if mine[0] != "0" else "1", 1), user_id=OTHER)
    said = message(theirs.session_id, "the same words", user_id=OTHER)
    on.take(theirs, said)
    assert [each.session_id for each in await found(on, "same")] == [mine]
    assert await found(on, "same", OTHER) == [Found(theirs.session_id, said.envelope.data["message_id"])]


async def test_what_is_deleted_is_found_again_once_it_is_restored(on: Scene) -> None:
    session_id = begin(on)
    on.take(message(session_id, "a word"), make_event("session_deleted", session_id, {}))
    assert await found(on, "word") == []
    on.take(make_event("session_restored", session_id, {}))
    assert [each.session_id for each in await found(on, "word")] == [session_id]


async def test_the_words_of_a_session_that_begins_again_are_gone(on: Scene) -> None:
    """Its rows are dropped, one table after the other; nothing of it stays in the index."""
    session_id, kept = new_id(), new_id()
    on.take(session_started(session_id, title="a title"), session_started(kept, title="another title"))
    on.take(message(session_id, "forget this"))
    async with opened(on) as (store, reader):
        rows = await reader.rows_after(0, 100)
        await store.apply(rows)
        batch = Batch(store.position)
        for table in ("messages", "turns", "sessions"):
            batch.add(Drop(table, USER, session_id))
        batch.position, batch.hash = store.position, rows[-1].hash
        store._tables.write(batch)
        assert await search(store, USER, "forget", 10) == []
        assert await search(store, USER, "title", 10) == [Found(kept, None)]
        left = await stored(store, *WORDS)
        assert {row[0] for row in left["words_instances"]} == {USER.encode().hex(), "another", "title"}
        assert len(left["words_docsize"]) == 1


async def test_a_batch_is_one_part_of_the_index_for_titles_and_one_for_texts(on: Scene) -> None:
    for number in range(30):
        session_id = begin(on)
        on.take(message(session_id, f"text {number}"))
        on.take(make_event("session_renamed", session_id, {"title": f"title {number}"}))
    async with opened(on) as (store, reader):
        with closing(sqlite3.connect(store.path)) as unmerged, unmerged:
            unmerged.execute("INSERT INTO words (words, rank) VALUES ('automerge', 0), ('crisismerge', 1000)")
        await store.apply(await reader.rows_after(0, 1000))
        [(parts,)] = await store.reading.execute_fetchall("SELECT count(DISTINCT segid) FROM words_idx")
        assert parts <= 2
        [(rows,)] = await store.reading.execute_fetchall("SELECT count(*) FROM words_docsize")
        assert rows == 60
