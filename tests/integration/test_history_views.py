"""Step 10 on real parts: views can be thrown away, are never taken for another log's, and answer in pages (D4)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from contracts import subjects
from contracts.base import dump
from contracts.queries import PAGE_BYTES, MessagesQuery, SessionQuery, SessionsQuery
from tests.conversing import MODEL, USER, make_event, message, new_id, session_started
from tests.polling import eventually
from tests.recording import ended
from tests.roads import Road, road


def numbers(walk: Road) -> list[str]:
    return sorted(path.name for path in walk.data_dir.glob("views-*.db"))


async def some_sessions(walk: Road) -> list[str]:
    """A few sessions in different states."""
    sessions = [await walk.begin(title="first", system="Be kind."), await walk.begin()]
    await walk.run_turn(sessions[0], "eins", "zwei 🙂")
    failing = message(sessions[1], "fails", model=MODEL)
    await walk.talk.say(failing)
    await walk.talk.say(make_event("cancel_requested", sessions[1], {}, turn_id=failing.turn_id))
    await walk.talk.say(make_event("session_renamed", sessions[1], {"title": "renamed"}))
    await walk.talk.say(message(sessions[0], "waits", model=MODEL))
    return sessions


async def test_views_that_are_deleted_are_equal_after_a_restart(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        sessions = await some_sessions(walk)
        before = await walk.views(*sessions)
        await walk.history.stop()
        for path in walk.data_dir.glob("views-*"):
            path.unlink()
        await walk.history.start()
        assert await walk.views(*sessions) == before
        assert numbers(walk) == ["views-1.db"]


async def damage(walk: Road, way: str, folder: Path) -> None:
    views = walk.data_dir / "views-1.db"
    if way == "another log":
        with closing(sqlite3.connect(views)) as connection:
            connection.execute("UPDATE checkpoint SET hash = ?", (b"another",))
            connection.execute("DELETE FROM turns")
            connection.commit()
    elif way == "ahead of the log":
        with closing(sqlite3.connect(views)) as connection:
            connection.execute("UPDATE checkpoint SET position = 1000")
            connection.commit()
    elif way == "no database":
        for path in walk.data_dir.glob("views-*"):
            path.unlink()
        views.write_bytes(b"x" * 20_000)
    elif way == "empty":
        for path in walk.data_dir.glob("views-*"):
            path.unlink()
        views.touch()
    else:
        with closing(sqlite3.connect(views)) as connection:
            connection.execute("PRAGMA user_version = 0")


@pytest.mark.parametrize("way", ["another log", "ahead of the log", "no database", "empty", "an older shape"])
async def test_views_that_do_not_fit_are_rebuilt(tmp_path: Path, way: str) -> None:
    async with road(tmp_path) as walk:
        sessions = await some_sessions(walk)
        before = await walk.views(*sessions)
        await walk.history.stop()
        await damage(walk, way, tmp_path)
        await walk.history.start()
        assert await walk.views(*sessions) == before
        under = ["views-1.db"] if way in ("no database", "empty") else ["views-2.db"]
        assert numbers(walk) == under, "under the next number, and the old ones are gone"
        assert await walk.history.stop() == 0


async def test_views_that_turn_out_to_be_damaged_are_made_new_at_the_next_start(tmp_path: Path) -> None:
    """A page of zeros is met only when it is read: the process ends, and the supervisor's next start has new views."""
    async with road(tmp_path) as walk:
        sessions = await some_sessions(walk)
        before = await walk.views(*sessions)
        await walk.history.stop()
        path = walk.data_dir / "views-1.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'messages'")
            [(size,)] = connection.execute("PRAGMA page_size")
        with path.open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(b"\x07" * size)
        await walk.history.start()
        query = MessagesQuery(user_id=USER, session_id=sessions[0])
        assert await walk.talk.ask("messages", query) == {"error": "not_ready"}
        assert await walk.history.ended() == 1
        await walk.history.start()
        assert await walk.views(*sessions) == before


async def test_a_query_waits_until_the_views_have_what_its_client_saw(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        for _ in range(20):
            session_id = new_id()
            outcome = await walk.talk.say(session_started(session_id))
            query = SessionQuery(user_id=USER, session_id=session_id, min_position=int(outcome.position or 0))
            assert (await walk.talk.ask("session", query))["session_id"] == session_id
        beyond = SessionQuery(user_id=USER, session_id=session_id, min_position=10_000)
        assert await walk.talk.ask("session", beyond) == {"error": "not_ready"}


async def test_a_query_whose_user_is_not_the_one_of_its_subject_is_answered_from_nobodys_data(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        for body_user, subject_user in ((USER, "other"), ("other", USER)):
            for query in (
                SessionsQuery(user_id=body_user),
                SessionQuery(user_id=body_user, session_id=session_id),
                MessagesQuery(user_id=body_user, session_id=session_id),
            ):
                name = type(query).__name__.removesuffix("Query").lower()
                raw = await walk.talk.bus.request(subjects.history_query(name, subject_user), dump(query), 5.0)
                assert json.loads(raw) == {"error": "bad_request"}
        for name in ("sessions", "session", "messages", "turn", "events", "outcome"):
            raw = await walk.talk.bus.request(subjects.history_query(name, USER), b'{"user_id":1}', 5.0)
            assert json.loads(raw) == {"error": "bad_request"}
        unknown = SessionQuery(user_id="other", session_id=session_id)
        assert await walk.talk.ask("session", unknown) == {"error": "session_unknown"}


async def test_messages_and_sessions_come_in_pages(tmp_path: Path) -> None:
    async with road(tmp_path, turns_waiting=1000) as walk:
        session_id = await walk.begin()
        texts = ["x" * 90_000] * 30 + ["y"] * 250
        said = [message(session_id, text) for text in texts]
        for each in said:
            await walk.talk.publish(each)
        outcome = await walk.talk.outcome(said[-1].event_id)
        rows, sizes, after = [], [], 0
        while True:
            query = MessagesQuery(
                user_id=USER, session_id=session_id, after=after, min_position=int(outcome.position or 0)
            )
            reply = await walk.talk.ask("messages", query)
            rows += reply["messages"]
            sizes.append((len(reply["messages"]), sum(len(row["text"]) for row in reply["messages"])))
            if reply["next"] is None:
                break
            after = reply["next"]
        assert [row["text"] for row in rows if row["role"] == "user"] == texts
        assert all(count <= 200 and size <= PAGE_BYTES for count, size in sizes)
        assert (200, 100) in sizes
        assert len((await walk.talk.events(session_id)).frames) == 281

        others = [await walk.begin() for _ in range(5)]
        seen: list[str] = []
        before = None
        while True:
            page = await walk.talk.ask("sessions", SessionsQuery(user_id=USER, limit=2, before=before))
            seen += [row["session_id"] for row in page["sessions"]]
            before = page["next"]
            if before is None:
                break
        assert seen == [*reversed(others), session_id], "the latest activity first"


async def test_outcomes_can_be_asked_for(tmp_path: Path) -> None:
    """pending, recorded, refused, conflict, parked; and none is there after its time (here: at once, at a restart)."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        said = message(session_id)
        assert (await walk.outcome_of(said)).status == "pending"
        told = await walk.talk.say(said)
        reply = await walk.outcome_of(said)
        assert (reply.status, reply.outcome) == ("recorded", told)
        conflict = await walk.outcome_of(said, "another hash")
        assert conflict.outcome is not None
        assert (conflict.status, conflict.outcome.code) == ("refused", "idempotency_conflict")
        refused = ended(said, "answer_failed", 7)
        await walk.talk.say(refused)
        reply = await walk.outcome_of(refused)
        assert reply.outcome is not None
        assert (reply.status, reply.outcome.code) == ("refused", "attempt_stale")
        parked = message(session_id)
        headers = {subjects.CHAT_EVENT: parked.event_id, subjects.CHAT_USER: USER}
        await walk.talk.publish_raw(subjects.intake(USER, session_id, parked.type), b"?", headers)
        assert (await walk.talk.outcome(parked.event_id)).code == "event_parked"
        assert (await walk.outcome_of(parked)).status == "refused"
        assert (await walk.status()).parked == 1
        walk.history.environment["CHATLOG_OUTCOMES_KEEP_DAYS"] = "0"
        await walk.history.stop()
        await walk.history.start()

        async def forgotten() -> bool:
            return (await walk.outcome_of(refused)).status == "pending"

        await eventually(forgotten, reason="refusals are kept for their days only")
        assert (await walk.outcome_of(said)).status == "recorded", "what is in the log stays"


async def test_the_intake_is_purged_behind_the_cursor_by_age(tmp_path: Path) -> None:
    async with road(tmp_path, intake_keep_h=0) as walk:
        sessions = await some_sessions(walk)
        before = await walk.views(*sessions)
        await walk.history.stop()
        unseen = message(sessions[1], model=MODEL)
        await walk.talk.publish(unseen)
        await walk.history.start()
        jetstream = walk.talk.bus.jetstream()

        async def purged() -> bool:
            return (await jetstream.stream_info(subjects.INTAKE_STREAM)).state.messages == 0

        await eventually(purged, reason="all that was consumed is purged")
        assert (await walk.talk.outcome(unseen.event_id)).code is None
        assert await walk.views(*sessions) != before
        await walk.history.stop()
        walk.history.environment["CHATLOG_INTAKE_KEEP_H"] = "24"
        await walk.talk.publish(make_event("session_renamed", sessions[0], {"title": "kept"}))
        await walk.history.start()
        assert (await jetstream.stream_info(subjects.INTAKE_STREAM)).state.messages == 1


async def test_status_tells_an_operator_where_history_is(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        sessions = await some_sessions(walk)
        await walk.views(*sessions)
        status = await walk.status()
        [(position, cursor)] = walk.sql("SELECT (SELECT max(position) FROM events), sequence FROM cursor")
        assert (status.position, status.views_position, status.cursor) == (position, position, cursor)
        assert (status.caught_up, status.parked) == (True, 0)
        assert (status.turns_waiting, status.turns_running) == (0, 1)
        assert status.queues == [{"model": MODEL, "waiting": 1, "running": 0}]
        assert {"log.db", "views-1.db"} <= set(status.sizes)
        epoch = status.epoch
        await walk.history.stop()
        shutil.copy(walk.data_dir / "log.db", tmp_path / "kept.db")
        await walk.history.start()
        assert (await walk.status()).epoch == epoch == (await walk.talk.events(sessions[0])).epoch
