"""Parking: what cannot be read or decided is set aside alone, byte for byte, and everything else goes on (D2, A8)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts import ids, subjects
from contracts.base import compact
from contracts.envelope import Event
from services.history import batch, draft, starting
from services.history.arrivals import Delivery
from services.history.effects import Queue, TellSender
from services.history.log.port import LogError
from services.history.log.sqlite import SqliteTransaction
from services.history.session import Session, evolve
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, begin, cancel, delivered, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def altered(event: Event, **fields: Any) -> Delivery:
    """The event's delivery with other bytes: its subject and headers stay."""
    whole = json.loads(event.body) | fields
    return replace(delivered(event), body=compact(whole))


def unreadable(event: Event) -> list[Delivery]:
    """Every way in which bytes may not be an event of ours."""
    data = json.loads(event.body)["data"]
    return [
        altered(event, type="message_pinned"),
        altered(event, type="head_moved"),
        altered(event, schema_version=2),
        altered(event, schema_version="1"),
        altered(event, data={**data, "text": 7}),
        altered(event, event_id="not-an-id"),
        altered(event, occurred_at="yesterday"),
        replace(delivered(event), body=b""),
        replace(delivered(event), body=b"\xff\xfe"),
        replace(delivered(event), body=b'{"a":NaN}'),
        replace(delivered(event), body=b"[" * 5000),
        replace(delivered(event), body=b"null"),
    ]


@pytest.mark.parametrize("number", range(12))
def test_what_cannot_be_read_is_parked_with_its_bytes_and_its_sender_is_told(on: Scene, number: int) -> None:
    session_id = begin(on)
    delivery = unreadable(message(session_id))[number]
    told = on.say(delivery)
    assert (told.code, told.event_id) == ("event_parked", delivery.headers[subjects.CHAT_EVENT])
    [(sequence, subject, headers, body, reason)] = on.parked()
    assert (subject, body) == (delivery.subject, delivery.body)
    assert json.loads(headers) == delivery.headers
    assert sequence == delivery.sequence
    assert reason
    assert on.types(session_id) == ["session_started"]
    asked = on.sql("SELECT code FROM outcomes WHERE event_id = ?", told.event_id)
    assert asked == [("event_parked",)], "who missed it can ask"


def test_later_events_of_the_session_are_unaffected(on: Scene) -> None:
    session_id = begin(on)
    on.take(replace(delivered(message(session_id)), body=b"{}"), message(session_id), message(session_id))
    assert on.types(session_id) == [
        "session_started",
        "user_message_submitted",
        "context_assembled",
        "user_message_submitted",
    ]
    assert len(on.parked()) == 1


def test_a_parked_terminal_ends_its_turn_and_the_next_one_starts(on: Scene) -> None:
    session_id = begin(on)
    first, _ = on.running(session_id)
    second = message(session_id)
    on.take(second)
    on.take(altered(completed(session_id, str(first.turn_id)), schema_version=9))
    assert on.types(session_id)[-2:] == ["answer_failed", "context_assembled"]
    [(body,)] = on.sql("SELECT body FROM events WHERE type = 'answer_failed'")
    assert json.loads(body)["data"] == {"attempt": 1, "code": "event_parked", "last_index": 0}
    assert [word.type for word in on.words()] == ["stop"], "the worker that holds it lets go"
    assert [queued.turn_id for queued in on.of(Queue)] == [second.turn_id]


def test_a_parked_event_of_an_ended_turn_ends_nothing_again(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    on.take(completed(session_id, str(said.turn_id)))
    on.take(altered(cancel(said), schema_version=9))
    assert on.types(session_id).count("answer_failed") == 0


def test_a_parked_claim_has_no_outcome(on: Scene) -> None:
    session_id = begin(on)
    claim = make_event("turn_claimed", session_id, {"run": new_id()}, turn_id=new_id())
    on.take(altered(claim, schema_version=2))
    assert on.last == ()
    assert on.sql("SELECT * FROM outcomes") == []
    assert len(on.parked()) == 1


@pytest.mark.parametrize(
    "subject",
    [
        lambda event: subjects.intake("somebody", event.session_id, event.type),
        lambda event: subjects.intake(event.user_id, new_id(), event.type),
        lambda event: subjects.intake(event.user_id, event.session_id, "session_started"),
        lambda event: subjects.intake(event.user_id, event.session_id, event.type).replace("intake.", "intake.9", 1),
        lambda event: "chat.intake.nonsense",
        lambda event: "chat.intake.².u-local.x.y",
    ],
)
def test_a_subject_that_is_not_the_envelopes_is_parked(on: Scene, subject: Any) -> None:
    session_id = begin(on)
    event = message(session_id)
    on.take(replace(delivered(event), subject=subject(event)))
    assert len(on.parked()) == 1
    assert on.types(session_id) == ["session_started"]


@pytest.mark.parametrize("field", ["turn_id", "message_id", "answer_id"])
def test_an_id_that_is_not_the_derived_one_is_parked(on: Scene, field: str) -> None:
    session_id = begin(on)
    event = message(session_id)
    data = json.loads(event.body)["data"]
    other = {"turn_id": new_id()} if field == "turn_id" else {"data": {**data, field: new_id()}}
    assert on.say(altered(event, **other)).code == "event_parked"


def test_headers_that_lie_reach_nobody_else(on: Scene) -> None:
    """Another user's headers under one's own subject: nothing of theirs is touched, and they are told nothing."""
    theirs = begin(on, "other")
    said, _ = on.running(theirs, user_id="other")
    mine = replace(delivered(message(begin(on)), Chat_User="other", Chat_Turn=str(said.turn_id)), body=b"{}")
    on.take(mine)
    assert on.last == ()
    assert on.types(theirs)[-1] == "answer_started"
    assert len(on.parked()) == 1


def test_a_turn_of_another_session_is_not_ended_by_a_header(on: Scene) -> None:
    first, second = begin(on), begin(on)
    said, _ = on.running(first)
    on.take(replace(delivered(message(second), Chat_Turn=str(said.turn_id)), body=b"{}"))
    assert on.types(first)[-1] == "answer_started"


def test_a_header_that_names_a_recorded_event_does_not_change_its_outcome(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(said)
    again = session_started(session_id)
    on.take(again)  # changes nothing: its outcome is a row
    for event in (said, again):
        before = on.outcome_in_log(USER, event.event_id)
        assert on.say(replace(delivered(event), body=b"broken")).code == "event_parked"
        assert on.outcome_in_log(USER, event.event_id) == before
        assert on.say(event).code is None


def test_an_event_id_under_another_user_session_or_type_is_parked(on: Scene) -> None:
    session_id = begin(on)
    key = new_id()
    original = message(session_id)
    on.take(original)
    foreign = make_event("session_started", new_id(), {}, user_id="other", event_id=original.event_id)
    elsewhere = make_event("session_started", new_id(), {}, event_id=original.event_id)
    other_type = make_event("session_renamed", session_id, {"title": key}, event_id=original.event_id)
    for event in (foreign, foreign, elsewhere, other_type):
        assert on.say(event).code == "event_parked"
    assert len(on.parked()) == 4
    assert on.say(original).code is None


def test_a_refused_event_whose_id_another_user_took_meanwhile_never_reaches_unique(on: Scene) -> None:
    shared = new_id()
    refused = make_event("session_renamed", new_id(), {"title": "x"}, user_id="other", event_id=shared)
    assert on.say(refused).code == "session_unknown"
    on.take(make_event("session_started", new_id(), {}, event_id=shared))
    on.take(session_started(refused.session_id, user_id="other"))
    assert on.say(refused).code == "event_parked"


def failing_once(monkeypatch: pytest.MonkeyPatch, caller: ModuleType, name: str, when: Any) -> None:
    """Break a core function as its caller knows it, for the events that `when` names."""
    real = getattr(caller, name)

    def broken(*arguments: Any) -> Any:
        if when(*arguments):
            raise RuntimeError("a bug")
        return real(*arguments)

    monkeypatch.setattr(caller, name, broken)


def test_an_error_in_decide_parks_that_event_alone(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = begin(on)
    bad, good = message(session_id, "bad"), message(session_id, "good")
    failing_once(monkeypatch, batch, "decide", lambda session, event, *_: event.event_id == bad.event_id)
    on.take(bad, good)
    outcomes = {told.outcome.event_id: told.outcome.code for told in on.of(TellSender)}
    assert outcomes == {bad.event_id: "event_parked", good.event_id: None}
    monkeypatch.undo()
    assert on.say(bad).code is None, "parked is refused: sent again, it is decided anew"


def test_an_error_after_the_first_row_was_planned_leaves_nothing_half_done(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel is planned, then its answer_cancelled raises: neither is there, nor in any state, and the turn ends."""
    session_id = begin(on)
    said = message(session_id)
    on.take(said)

    def half_done(session: Session, event: Event, position: int) -> Session:
        if event.type == "answer_cancelled":
            session.version += 7
            session.turns.clear()
            raise RuntimeError("a bug in evolve")
        return evolve(session, event, position)

    monkeypatch.setattr(draft, "evolve", half_done)
    on.take(cancel(said), message(session_id, "next"))
    assert on.types(session_id)[3:] == ["answer_failed", "user_message_submitted", "context_assembled"]
    assert [row[0] for row in on.sql("SELECT version FROM events WHERE session_id = ?", session_id)] == list(
        range(1, 7)
    )
    assert len(on.parked()) == 1
    assert len(on.recorder.open_turns()) == 1
    shown = [json.loads(frame)["event"]["type"] for frame in on.shown()]
    assert shown == on.types(session_id)[3:], "nothing is shown that is not there"
    assert [told.outcome.code for told in on.of(TellSender)] == ["event_parked", None]


def test_a_turn_whose_context_cannot_be_assembled_ends_and_holds_up_nobody(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = begin(on)
    bad, good = message(session_id, "bad"), message(session_id, "good")
    on.model = None
    on.take(bad, good)
    on.model = "tiny:1m"
    failing_once(monkeypatch, starting, "choose", lambda session, turn, *_: turn.turn_id == bad.turn_id)
    on.start_waiting()
    assert on.types(session_id)[3:] == ["answer_failed", "context_assembled"]
    assert [queued.turn_id for queued in on.of(Queue)] == [good.turn_id]


@pytest.mark.parametrize("verb", ["append", "outcome", "owner", "session_rows", "put_outcome"])
def test_an_error_of_the_log_parks_nothing(on: Scene, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """It stops the process; what was in the batch is decided again from the log."""
    session_id = begin(on)
    before = on.recorder.cursor

    def broken(*_: Any) -> Any:
        raise LogError("disk")

    on.reopen()  # nothing is cached: the session is folded again
    monkeypatch.setattr(SqliteTransaction, verb, broken)
    with pytest.raises(LogError):
        on.take(message(session_id), make_event("session_renamed", new_id(), {"title": "x"}))
    monkeypatch.undo()
    assert (on.parked(), on.recorder.cursor) == ([], before)
    on.sequence = before.sequence
    assert on.say(message(session_id)).version == 2


def test_an_error_of_sqlite_in_the_middle_of_an_event_parks_nothing(on: Scene) -> None:
    """One statement fails and the next would go well: nobody may take it for a fault of the event."""
    session_id = begin(on)
    failures = iter([sqlite3.SQLITE_DENY])

    def fail_once(action: int, table: str | None, *_: str | None) -> int:
        return next(failures, sqlite3.SQLITE_OK) if table == "outcomes" else sqlite3.SQLITE_OK

    on.log._connection.set_authorizer(fail_once)
    with pytest.raises(LogError):
        on.take(message(session_id))
    assert next(failures, None) is None
    assert on.parked() == []
    assert on.say(message(session_id)).version == 2


def test_a_row_that_this_version_cannot_read_stops_it(on: Scene) -> None:
    """A newer version wrote it: its events are not this event's fault, and must not be parked one by one."""
    session_id = begin(on)
    on.log.close()
    with sqlite3.connect(on.path) as connection:
        connection.execute("UPDATE events SET body = CAST(replace(body, '_version\":1', '_version\":2') AS BLOB)")
    connection.close()
    on.open()
    with pytest.raises(LogError, match="position 1"):
        on.take(message(session_id))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
token = text.filter(lambda t: t and not any(c in t for c in " \r\n\t.\0"))
names = st.sampled_from([subjects.CHAT_EVENT, subjects.CHAT_USER, subjects.CHAT_TURN, subjects.CHAT_REPLY])
values = st.one_of(text, st.just(USER), st.builds(new_id), st.just("u" * 300), st.just("\udcff"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=st.one_of(
        st.lists(token, min_size=1, max_size=5).map(".".join),
        st.builds(lambda kind: f"4.{subjects.token_of(USER)}.{new_id()}.{kind}", token),
    ),
    user=st.sampled_from([USER, "u" * 300, "a b", "ü"]),
    headers=st.dictionaries(names, values),
    body=st.one_of(st.binary(max_size=40), st.recursive(text | st.integers(), st.lists).map(compact)),
)
def test_no_delivery_can_stop_the_follower(
    on: Scene, tail: str, user: str, headers: dict[str, str], body: bytes
) -> None:
    """Whatever lies in the stream, the cursor passes it: a delivery that raised would be met again for ever."""
    before = len(on.parked())
    on.take(
        Delivery(0, f"chat.intake.{tail}", headers, body),
        Delivery(0, subjects.intake(user, new_id(), "session_started"), {subjects.CHAT_USER: user, **headers}, body),
    )
    assert len(on.parked()) == before + 2


def test_a_parked_event_is_told_with_the_turn_that_it_names(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    told = on.say(altered(said, schema_version=7))
    assert told.turn_id == said.turn_id == ids.turn_id_of(said.event_id)
