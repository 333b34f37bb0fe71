"""The recorder on a real log: outcomes, idempotency, order and the cache (D5, contracts "Decisions")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts import ids
from contracts.base import data_hash
from contracts.events import LeftOut
from contracts.turns import read_context
from services.history.context import ContextLimits
from services.history.effects import Queue, TellSender
from services.history.log.port import Cursor, LogError, LogFenced
from services.history.log.sqlite import SqliteLog, SqliteTransaction
from tests.conversing import completed, make_event, message, new_id, session_started
from tests.recording import BOUNDS, RULES, STREAM, Scene, begin, cancel, delivered, ended, only, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def test_an_event_is_logged_under_its_own_id_with_its_bytes_as_received(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    spaced = json.dumps(json.loads(said.body) | {"unheard_of": 1}, indent=1).encode()
    on.take(replace(delivered(said), body=spaced))
    row = only(on.sql("SELECT body, data_hash, turn_id FROM events WHERE event_id = ?", said.event_id))
    assert row == (spaced, data_hash(json.loads(said.body)["data"]), said.turn_id)


def test_own_row_first_then_what_follows_then_turns_in_waiting_order(on: Scene) -> None:
    session_id = begin(on)
    first, second = message(session_id), message(session_id)
    on.take(first, second)
    told = on.say(cancel(first))
    assert told.version == 5
    assert on.types(session_id)[4:] == ["cancel_requested", "answer_cancelled", "context_assembled"]
    rows = on.sql(
        "SELECT type, json_extract(body, '$.causation_id'), recorded_at, json_extract(body, '$.occurred_at')"
        " FROM events WHERE type IN ('answer_cancelled', 'context_assembled') ORDER BY position"
    )
    contexts = {ids.context_event_id_of(str(each.turn_id)) for each in (first, second)}
    assert [row[1] for row in rows] == [first.event_id, told.event_id, second.event_id]
    assert all(row[2] == row[3] for row in rows), "on history's own events occurred_at is recorded_at"
    assert {row[0] for row in on.sql("SELECT event_id FROM events WHERE type = 'context_assembled'")} == contexts


def test_a_repeated_event_gets_the_same_outcome_again(on: Scene) -> None:
    session_id = new_id()
    started = session_started(session_id, title="t")
    said = message(session_id, key="k")
    outcomes = [on.say(started), on.say(said)]
    on.take(message(session_id))
    before = on.sql("SELECT count(*) FROM events")
    assert [on.say(started), on.say(said)] == outcomes
    on.reopen()
    assert [on.say(started), on.say(said)] == outcomes
    on.take(said, said)
    assert [told.outcome for told in on.of(TellSender)] == [outcomes[1]] * 2
    assert on.sql("SELECT count(*) FROM events") == before


def test_a_no_op_has_an_outcome_too_and_keeps_it(on: Scene) -> None:
    """A session_started for a live session is not logged: recorded, with the version of then."""
    session_id = begin(on)
    again = session_started(session_id)
    outcome = on.say(again)
    assert (outcome.code, outcome.version, outcome.position) == (None, 1, 1)
    on.take(message(session_id))
    on.reopen()
    assert on.say(again) == outcome
    other_body = make_event("session_started", session_id, {"title": "x"}, event_id=again.event_id)
    assert on.say(other_body).code == "idempotency_conflict"
    assert on.say(again) == outcome


def test_the_same_key_with_another_body_is_refused_and_leaves_no_row(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id, "one", key="k")
    outcome = on.say(said)
    other = message(session_id, "two", key="k")
    assert other.event_id == said.event_id
    told = on.say(other)
    assert (told.code, told.position) == ("idempotency_conflict", None)
    assert on.sql("SELECT * FROM outcomes") == []
    assert on.say(said) == outcome


@pytest.mark.parametrize(
    ("first", "second"), [({}, {"model": None}), ({"options": {"temperature": 1}}, {"options": {"temperature": 1.0}})]
)
def test_a_field_left_out_and_null_differ_as_do_1_and_1_0(on: Scene, first: Any, second: Any) -> None:
    session_id = begin(on)
    on.take(message(session_id, key="k", **first))
    assert on.say(message(session_id, key="k", **second)).code == "idempotency_conflict"


def test_one_that_was_refused_is_decided_anew(on: Scene) -> None:
    session_id = new_id()
    said = message(session_id, key="k")
    assert on.say(said).code == "session_unknown"
    assert only(on.sql("SELECT code, version FROM outcomes")) == ("session_unknown", None)
    on.take(session_started(session_id))
    outcome = on.say(message(session_id, "another body", key="k"))
    assert (outcome.code, outcome.version) == (None, 2)
    assert on.sql("SELECT * FROM outcomes") == [], "one outcome for each event"


def test_every_refusal_is_told_and_kept(on: Scene) -> None:
    session_id = begin(on)
    gone = new_id()
    said, _ = on.running(session_id)
    refused = {
        "parent_unknown": message(session_id, parent_id=gone),
        "turn_unknown": make_event("cancel_requested", session_id, {}, turn_id=gone),
        "session_unknown": message(gone),
        "attempt_stale": completed(session_id, str(said.turn_id), attempt=2),
    }
    for code, event in refused.items():
        assert on.say(event).code == code
    rows = on.sql("SELECT code, event_id, decided_at FROM outcomes")
    assert {(code, event_id) for code, event_id, _ in rows} == {(c, e.event_id) for c, e in refused.items()}
    on.recorder.drop_outcomes(rows[0][2])
    assert len(on.sql("SELECT * FROM outcomes")) == 4, "as old as the limit stays"
    on.recorder.drop_outcomes("2026-11-21T10:00:00.001Z")
    assert on.sql("SELECT * FROM outcomes") == []


def test_a_foreign_session_is_an_unknown_one(on: Scene) -> None:
    session_id = begin(on)
    theirs = message(session_id, user_id="other")
    assert on.say(theirs).code == "session_unknown"
    assert on.say(session_started(session_id, user_id="other")).version == 1, "the same id is another session"


def test_a_user_message_may_only_follow_an_answer(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    data = json.loads(said.body)["data"]
    assert on.say(message(session_id, parent_id=data["message_id"])).code == "parent_unknown"
    assert on.say(message(session_id, parent_id=data["answer_id"])).code is None
    assert on.say(message(session_id, parent_id=None)).code is None


def test_waiting_turns_are_bounded(tmp_path: Path) -> None:
    with scene(tmp_path, bounds=replace(BOUNDS, rules=replace(RULES, waiting_per_session=2))) as on:
        session_id = begin(on)
        codes = [on.say(message(session_id)).code for _ in range(4)]
        assert codes == [None, None, None, "queue_full"], "one is active, two wait"


def test_while_catching_up_nothing_is_dispatched_and_what_happened_is_believed(on: Scene) -> None:
    session_id = begin(on)
    said, other = message(session_id), message(session_id)
    on.take(said, other, catching_up=True)
    assert on.of(Queue) == []
    runs = [new_id() for _ in range(5)]
    for run in runs:
        on.claim(said, run, catching_up=True)
        assert on.words() == [], "the worker asks, and is answered from the whole log"
    assert on.types(session_id)[3:] == ["context_assembled", *["answer_started"] * 5], "unpublished, first"
    assert on.say(completed(session_id, str(said.turn_id), attempt=9), catching_up=True).code is None
    assert on.of(Queue) == []
    assert on.say(completed(session_id, str(said.turn_id), attempt=9), catching_up=True).code == "turn_finished"
    on.take(ended(other, "answer_failed", 1), catching_up=True)
    assert on.types(session_id)[-2:] == ["context_assembled", "answer_failed"]
    assert on.recorder.open_turns() == []
    on.start_waiting()
    assert on.last == ()


def test_a_second_writer_moves_the_cursor_and_the_first_stops(on: Scene) -> None:
    session_id = begin(on)
    on.log._connection.execute("UPDATE cursor SET sequence = sequence + 1")
    with pytest.raises(LogFenced):
        on.take(message(session_id))
    assert on.types(session_id) == ["session_started"]


def test_copies_are_dropped_on_a_rollback(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an aborted batch made of its sessions is not there for the next one: the same events are no duplicates."""
    session_id = begin(on)
    said = message(session_id)
    before = on.recorder.cursor
    real = SqliteTransaction.append
    rows = iter(range(2))

    def full(self: SqliteTransaction, stored: Any) -> None:
        if next(rows, None) is None:
            raise LogError("disk full")
        real(self, stored)

    monkeypatch.setattr(SqliteTransaction, "append", full)
    with pytest.raises(LogError):
        on.take(said, message(session_id))
    monkeypatch.undo()
    assert on.recorder.cursor == before
    assert on.recorder.open_turns() == []
    outcome = on.say(said)
    assert (outcome.code, outcome.version) == (None, 2)
    assert [turn.turn_id for turn in on.recorder.open_turns()] == [said.turn_id], "and each turn is there once"


def test_copies_replace_what_is_cached_only_after_the_commit(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = begin(on)
    said = message(session_id)
    real = SqliteLog.transaction

    @contextmanager
    def failing(self: SqliteLog, before: Cursor, after: Cursor) -> Iterator[Any]:
        with real(self, before, after) as tx:
            yield tx
            raise LogError("the commit failed")

    monkeypatch.setattr(SqliteLog, "transaction", failing)
    with pytest.raises(LogError):
        on.take(said)
    monkeypatch.undo()
    assert on.recorder.open_turns() == []
    assert on.say(said).version == 2


def test_the_cursor_is_committed_with_the_events(on: Scene) -> None:
    session_id = begin(on)
    on.take(message(session_id), message(session_id))
    assert only(on.sql("SELECT stream_created, sequence FROM cursor")) == (STREAM, 3)
    assert on.recorder.cursor == Cursor(STREAM, 3)


def test_a_small_cache_decides_as_a_large_one_does(tmp_path: Path) -> None:
    with scene(tmp_path, cached_sessions=1) as on:
        sessions = [begin(on) for _ in range(3)]
        turns = [on.running(session_id)[0] for session_id in sessions]
        for turn in turns:
            assert on.say(completed(turn.session_id, str(turn.turn_id))).version == 5
        assert len(on.recorder._states._sessions) == 1


def test_an_event_without_a_reply_address_is_recorded_and_told_to_nobody(on: Scene) -> None:
    session_id = begin(on)
    on.take(delivered(message(session_id), reply=None))
    assert on.of(TellSender) == []
    assert on.types(session_id)[-1] == "context_assembled"


def test_a_context_too_long_for_the_window_keeps_the_turns_own_message(tmp_path: Path) -> None:
    with scene(tmp_path, bounds=replace(BOUNDS, context=ContextLimits(messages=200, reserve=0.25))) as on:
        session_id = begin(on)
        said, _ = on.running(session_id, "short")
        on.take(completed(session_id, str(said.turn_id)))
        on.take(message(session_id, "x" * 90_000))
        context = read_context(only(on.of(Queue)).payload)
        assert [len(text) for _, text in context.messages] == [90_000]
        assert context.data.left_out == LeftOut(budget=2)
