"""A user's stop in the log (D8): at once where no worker runs the turn, else by its worker, else by history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.history.effects import Queue, Unqueue
from tests.conversing import USER, completed, make_event, message, new_id
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
