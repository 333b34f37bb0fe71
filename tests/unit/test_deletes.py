"""Deleting a session, its undo, and beginning it again: what is decided, what stops, and what is kept (D8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.envelope import Event, write_event
from contracts.turns import read_context
from services.history.effects import Queue, Show
from tests.conversing import completed, make_event, message, new_id, session_started
from tests.recording import RULES, Scene, begin, cancel, ended, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def delete(session_id: str, at: str = "2026-11-21T10:00:00.000Z") -> Event:
    return _asked_at(at, make_event("session_deleted", session_id, {}))


def restore(session_id: str, at: str = "2026-11-21T10:00:01.000Z") -> Event:
    return _asked_at(at, make_event("session_restored", session_id, {}))


def _asked_at(at: str, event: Event) -> Event:
    return write_event(event.envelope.model_copy(update={"occurred_at": at}))


def causes(on: Scene, event_type: str) -> list[tuple[str, str]]:
    """(turn, what it names as its cause) of each such event."""
    rows = on.sql("SELECT turn_id, json_extract(body, '$.causation_id') FROM events WHERE type = ?", event_type)
    return [(turn_id, cause) for turn_id, cause in rows]


def test_a_delete_stops_what_is_unfinished_as_its_user_would(on: Scene) -> None:
    session_id = begin(on)
    (running, _), waiting, gone = on.running(session_id), message(session_id, "waits"), delete(session_id)
    on.take(waiting)
    assert on.say(gone).version == 6, "its own row comes first"
    assert on.types(session_id)[5:] == [
        "session_deleted", "cancel_requested", "cancel_requested", "answer_cancelled",
    ]  # fmt: skip
    assert causes(on, "cancel_requested") == [(running.turn_id, gone.event_id), (waiting.turn_id, gone.event_id)]
    assert [turn_id for turn_id, _ in causes(on, "answer_cancelled")] == [waiting.turn_id]
    assert [word.type for word in on.words() if word.turn_id == running.turn_id] == ["cancel"]
    assert [json.loads(each.frame)["event"]["type"] for each in on.of(Show) if each.lists] == ["session_deleted"]
    assert on.say(delete(session_id)).version == 9, "deleted already: nothing new"
    on.reopen()
    assert on.say(ended(running, "answer_cancelled", 1, text="so f")).version == 10, "its worker ends it all the same"
    assert not on.recorder.open_turns()


def test_a_deleted_session_takes_nothing_but_its_undo(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    on.take(completed(session_id, str(said.turn_id)), delete(session_id))
    before = on.types(session_id)
    for event in (
        message(session_id),
        cancel(said),
        make_event("session_renamed", session_id, {"title": "new"}),
        make_event("session_configured", session_id, {"on_busy": "reject"}),
    ):
        assert on.say(event).code == "session_deleted", event.type
    assert on.say(ended(said, "answer_failed", 1)).code == "turn_finished"
    assert on.types(session_id) == before
    assert on.say(restore(session_id)).code is None
    assert on.say(restore(session_id)).version == len(before) + 1, "it is there: nothing new"
    next_one = message(session_id, "goes on")
    on.take(next_one)
    [queued] = on.of(Queue)
    assert [content for _, content in read_context(queued.payload).messages] == ["hello", "hi", "goes on"]


def test_it_is_restored_within_the_time_for_it_however_late_that_is_decided(on: Scene) -> None:
    session_id = begin(on)
    on.take(delete(session_id, "2026-11-21T10:00:00.000Z"))
    assert RULES.keep_deleted_s == 60
    on.now = "2026-12-31T00:00:00.000Z"
    assert on.say(restore(session_id, "2026-11-21T10:01:00.001Z")).code == "retention_over"
    assert on.say(restore(session_id, "2026-11-21T10:01:00.000Z")).code is None
    for unknown in (delete(new_id()), restore(new_id())):
        assert on.say(unknown).code == "session_unknown"


@pytest.mark.parametrize("reopened", [False, True])
def test_it_begins_again_empty_and_its_versions_go_on(on: Scene, reopened: bool) -> None:
    session_id = begin(on)
    on.take(make_event("session_renamed", session_id, {"title": "old"}))
    running, _ = on.running(session_id, "first")
    on.take(delete(session_id), session_started(session_id, system="Be brief."))
    if reopened:
        on.reopen()
    assert on.types(session_id)[-1] == "session_started"
    assert on.say(session_started(session_id)).version == 8, "it is there again: nothing new"
    assert on.say(message(session_id, parent_id=running.envelope.data["answer_id"])).code == "parent_unknown"
    hello = message(session_id, "anew")
    on.take(hello)
    assert not on.of(Queue), "one active turn per session: a worker is still to end the one from before"
    assert not [queued for queued in on.requeue() if queued.turn_id == running.turn_id], "nobody is to answer that"
    on.take(ended(running, "answer_cancelled", 1, text="late"))
    [queued] = on.of(Queue)
    shown = read_context(queued.payload)
    assert (shown.data.system, shown.messages) == ("Be brief.", (("system", "Be brief."), ("user", "anew")))
    assert on.types(session_id).count("session_started") == 2
