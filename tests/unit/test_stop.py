"""A user's stop in the log (D8): at once where no worker runs the turn, else by its worker, else by history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.turns import read_context
from services.history.effects import Queue, Unqueue
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, begin, cancel, ended, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def test_a_running_turn_is_ended_by_its_worker_with_what_was_said(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    on.take(cancel(said))
    assert [word.type for word in on.words()] == ["cancel"], "running: its worker ends it"
    again = on.say(cancel(said))
    assert (again.code, again.version) == (None, 5), "asked already: nothing new, at the session's present version"
    assert on.types(session_id)[-2:] == ["answer_started", "cancel_requested"]
    assert on.say(ended(said, "answer_cancelled", 1, text="so f")).code is None


def overdue(on: Scene) -> None:
    """What the deadlines do with turns whose workers were told to stop and did not."""
    on.end([(turn, "cancelled") for turn in on.recorder.open_turns() if turn.cancelling])


@pytest.mark.parametrize("by", ["time", "another run"])
def test_history_ends_a_turn_whose_worker_does_not_stop(on: Scene, by: str) -> None:
    session_id = begin(on)
    (said, _), waiting = on.running(session_id), message(session_id, "next")
    stop = cancel(said)
    on.take(waiting, stop)
    on.reopen()
    if by == "time":
        overdue(on)
    else:
        on.claim(said, new_id())
    assert on.types(session_id)[-3:] == ["cancel_requested", "answer_cancelled", "context_assembled"]
    [(caused_by, terminal)] = on.sql(
        "SELECT json_extract(body, '$.causation_id'), json_extract(body, '$.data') FROM events"
        " WHERE type = 'answer_cancelled'"
    )
    assert caused_by == stop.event_id
    assert json.loads(terminal) == {"attempt": 1, "code": "cancelled", "last_index": 0}, "its text is not known"
    assert {getattr(word, "code", None) for word in on.words()} == {"turn_cancelled"}
    assert [effect.turn_id for effect in on.of(Unqueue)] == [said.turn_id]
    assert [effect.turn_id for effect in on.of(Queue)] == [waiting.turn_id]
    assert on.say(ended(said, "answer_cancelled", 1, text="late")).code == "turn_finished"
    assert on.say(stop).code is None, "recorded, whenever it is asked"


def test_a_message_that_interrupts_stops_the_running_turn_keeps_what_was_said_and_goes_on(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id, "one")
    hasty = message(session_id, "two", on_busy="interrupt")
    assert on.say(hasty).code is None
    assert on.types(session_id)[-2:] == ["user_message_submitted", "cancel_requested"], "its own row comes first"
    [(turn_id, caused_by)] = on.sql(
        "SELECT turn_id, json_extract(body, '$.causation_id') FROM events WHERE type = 'cancel_requested'"
    )
    assert (turn_id, caused_by) == (said.turn_id, hasty.event_id)
    assert [(word.type, word.turn_id) for word in on.words()] == [("cancel", said.turn_id)]
    assert on.of(Queue) == [], "one active turn per session"
    assert on.say(hasty).code is None
    assert on.types(session_id).count("cancel_requested") == 1, "sent twice, it interrupts once"
    on.reopen()
    on.take(ended(said, "answer_cancelled", 1, text="so f"))
    [queued] = on.of(Queue)
    assert queued.turn_id == hasty.turn_id
    assert read_context(queued.payload).messages == (("user", "one"), ("assistant", "so f"), ("user", "two"))


def test_a_message_that_interrupts_ends_at_once_what_no_worker_runs(on: Scene) -> None:
    session_id = begin(on)
    queued, waiting, hasty = (message(session_id, on_busy="interrupt" if n == 2 else "queue") for n in range(3))
    on.take(queued, waiting)
    on.take(hasty)
    assert on.types(session_id)[-6:] == [
        "user_message_submitted", *["cancel_requested", "answer_cancelled"] * 2, "context_assembled",
    ]  # fmt: skip
    assert [effect.turn_id for effect in on.of(Unqueue)] == [queued.turn_id]
    assert [effect.turn_id for effect in on.of(Queue)] == [hasty.turn_id]


def test_the_session_says_what_a_message_does_that_does_not_say(on: Scene) -> None:
    session_id = new_id()
    on.take(session_started(session_id, on_busy="reject"))
    first = message(session_id)
    assert on.say(first).code is None
    assert on.say(message(session_id)).code == "session_busy"
    assert on.say(message(session_id, on_busy="queue")).code is None, "the send's own word goes first"
    on.take(make_event("session_configured", session_id, {"on_busy": "interrupt"}))
    on.reopen()
    on.take(message(session_id))
    assert on.types(session_id).count("answer_cancelled") == 2
    on.take(make_event("session_configured", session_id, {}))
    on.take(message(session_id))
    assert on.types(session_id).count("answer_cancelled") == 3, "what is left out stays"


def test_an_end_that_is_recorded_first_leaves_the_deadline_nothing(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    on.take(cancel(said))
    [looked_at] = on.recorder.open_turns()
    on.take(completed(session_id, str(said.turn_id)))
    on.end([(looked_at, "cancelled")])
    assert on.types(session_id)[-2:] == ["cancel_requested", "answer_completed"]


def test_a_cancel_of_a_turn_of_another_session_or_user_is_of_an_unknown_turn(on: Scene) -> None:
    mine, other, foreign = begin(on), begin(on), begin(on, "b")
    said, _ = on.running(mine)
    for session_id, user_id in ((other, USER), (foreign, "b")):
        stop = make_event("cancel_requested", session_id, {}, user_id=user_id, turn_id=said.turn_id)
        assert on.say(stop).code == "turn_unknown"
    stop = make_event("cancel_requested", mine, {}, user_id="b", turn_id=said.turn_id)
    assert on.say(stop).code == "session_unknown"
    assert on.types(mine)[-1] == "answer_started"
