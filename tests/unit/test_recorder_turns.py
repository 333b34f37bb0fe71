"""The recorder on a real log: turns, claims, ends and what is queued (D5, D7, contracts "Decisions")."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from contracts import ids
from contracts.base import data_hash
from contracts.events import LeftOut
from contracts.turns import read_context
from services.history.effects import Queue, Show, TellWorkers, Unqueue
from tests.conversing import MODEL, USER, completed, message, new_id, session_started
from tests.recording import BOUNDS, Scene, begin, cancel, ended, only, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def test_one_active_turn_per_session_and_waiting_ones_start_in_order_after_any_terminal(on: Scene) -> None:
    session_id = begin(on)
    turns = [message(session_id) for _ in range(4)]
    on.take(*turns)
    queued = [only(on.of(Queue)).turn_id]
    for number, end in enumerate(["answer_completed", "answer_failed", "answer_cancelled"]):
        on.claim(turns[number], new_id())
        if end == "answer_completed":
            on.take(completed(session_id, str(turns[number].turn_id)))
        else:
            on.take(ended(turns[number], end, 1))
        assert [word.type for word in on.words()] == ["recorded"]
        queued.append(only(on.of(Queue)).turn_id)
    assert queued == [turn.turn_id for turn in turns]


def test_a_bound_of_active_turns_per_user(tmp_path: Path) -> None:
    with scene(tmp_path, bounds=replace(BOUNDS, active_per_user=2)) as on:
        sessions = [begin(on) for _ in range(3)]
        turns = [message(session_id) for session_id in sessions]
        on.take(*turns)
        assert [queued.turn_id for queued in on.of(Queue)] == [turn.turn_id for turn in turns[:2]]
        on.take(cancel(turns[1]))
        assert [queued.turn_id for queued in on.of(Queue)] == [turns[2].turn_id]


def test_users_are_served_in_turn_and_a_restart_keeps_whose_turn_it_is(on: Scene) -> None:
    on.room = 1
    sessions = [begin(on, "greedy") for _ in range(4)]
    many = [message(session_id, user_id="greedy") for session_id in sessions]
    others = [message(begin(on, user_id), user_id=user_id) for user_id in ("b", "c")]
    on.take(*many, *others)
    queued = [only(on.of(Queue)).turn_id]
    for _ in range(5):
        [turn] = [turn for turn in on.recorder.open_turns() if turn.active]
        on.end([(turn, "no_worker")])
        queued.append(only(on.of(Queue)).turn_id)
        before = on.recorder.open_turns()
        on.reopen()
        assert on.recorder.open_turns() == before
    assert queued == [turn.turn_id for turn in (*many[:2], *others, *many[2:])], "the second came before theirs"


def test_what_waits_for_room_starts_when_there_is_some(on: Scene) -> None:
    on.room = 0
    turns = [message(begin(on)) for _ in range(3)]
    on.take(*turns)
    assert on.of(Queue) == []
    assert not on.recorder.may_start(on.situation())
    on.room = 2
    assert on.recorder.may_start(on.situation())
    on.start_waiting()
    assert [queued.turn_id for queued in on.of(Queue)] == [turn.turn_id for turn in turns[:2]]
    assert not on.recorder.may_start(on.situation())


def test_frames_before_go(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(said)
    on.claim(said, new_id())
    shown, word = on.last
    assert isinstance(shown, Show)
    assert json.loads(shown.frame)["event"]["type"] == "answer_started"
    assert isinstance(word, TellWorkers)
    assert word.word.type == "go"


def test_claims(on: Scene) -> None:
    """Known run: nothing recorded. Latest run alive: go for it. Dead: the next attempt. Used up: the end and stop."""
    session_id = begin(on)
    said, first = on.running(session_id)
    on.claim(said, first)
    assert on.types(session_id).count("answer_started") == 1
    alive = {first}
    on.alive = lambda turn, run: run in alive
    on.claim(said, new_id())
    [word] = on.words()
    assert (word.type, getattr(word, "run", None)) == ("go", first), "a go for another run: a stop without an ack"
    assert on.types(session_id).count("answer_started") == 1
    alive.clear()
    runs = [first]
    for attempt in (2, 3):
        runs.append(new_id())
        on.claim(said, runs[-1])
        [word] = on.words()
        assert word.model_dump() == {
            "type": "go", "turn_id": said.turn_id, "run": runs[-1], "attempt": attempt, "last": attempt == 3,
        }  # fmt: skip
    on.claim(said, first)
    assert getattr(on.words()[0], "run", None) == runs[-1], "an old delivery that wakes up ends nobody's answer"
    on.claim(said, new_id())
    assert [getattr(word, "code", None) for word in on.words()][-1] == "attempts_used_up"
    assert on.of(Unqueue) == [Unqueue(str(said.turn_id), MODEL)]
    body = json.loads(only(on.sql("SELECT body FROM events WHERE type = 'answer_failed'"))[0])
    assert body["data"] == {"attempt": 3, "code": "worker_lost", "last_index": 0}
    on.claim(said, new_id())
    assert [getattr(word, "code", None) for word in on.words()] == ["attempts_used_up"]
    on.reopen()
    asked = on.recorder.word(USER, str(said.turn_id))
    assert asked is not None
    assert asked.type == "stop"


def test_claims_of_turns_that_are_not_to_be_run(on: Scene) -> None:
    session_id = begin(on)
    running, _ = on.running(session_id)
    waiting, unknown = message(session_id), message(session_id)
    on.take(waiting)
    for turn, code in ((waiting, "turn_waiting"), (unknown, "turn_unknown")):
        on.claim(turn, new_id())
        assert [getattr(word, "code", None) for word in on.words()] == [code]
    on.take(completed(session_id, str(running.turn_id)))
    on.claim(running, new_id())
    assert [getattr(word, "code", None) for word in on.words()] == ["turn_finished"]
    on.take(cancel(waiting))
    on.claim(waiting, new_id())
    assert [getattr(word, "code", None) for word in on.words()] == ["turn_cancelled"]
    assert on.sql("SELECT * FROM outcomes") == [], "a claim has no outcome row"


def test_a_stale_attempt_is_refused_higher_ones_too_and_an_ended_turn_says_so_first(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    on.claim(said, new_id())
    turn_id = str(said.turn_id)
    for attempt in (1, 3):
        assert on.say(completed(session_id, turn_id, attempt)).code == "attempt_stale"
    assert on.say(completed(session_id, turn_id, 2)).code is None
    for attempt in (1, 2, 3):
        assert on.say(completed(session_id, turn_id, attempt)).code == "turn_finished"
    assert on.say(cancel(said)).code == "turn_finished"


def test_nobody_answers_a_turn_that_no_run_was_given(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(said)
    assert on.say(completed(session_id, str(said.turn_id))).code == "attempt_stale"


def test_whenever_history_ends_a_turn_it_says_stop_and_empties_the_queue(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id)
    [turn] = on.recorder.open_turns()
    on.end([(turn, "no_worker")])
    assert [getattr(word, "code", None) for word in on.words()] == ["turn_finished"]
    assert on.of(Unqueue) == [Unqueue(str(said.turn_id), MODEL)]
    on.end([(turn, "no_worker")])
    assert on.last == (), "it has ended already"


def test_a_turn_that_was_claimed_meanwhile_is_not_failed(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(said)
    [looked_at] = on.recorder.open_turns()
    on.claim(said, new_id())
    on.end([(looked_at, "no_worker")])
    assert on.types(session_id)[-1] == "answer_started"


def test_what_is_queued_again_equals_what_was_queued_byte_for_byte(on: Scene) -> None:
    session_id = new_id()
    on.take(session_started(session_id, system="Be brief. ☂"))
    first = message(session_id, "eins")
    on.take(first)
    on.claim(first, new_id())
    on.take(completed(session_id, str(first.turn_id), text="zwei 🙂"))
    on.take(message(session_id, "drei", options={"temperature": 0.5, "stop": ["x"]}))
    queued = only(on.of(Queue))
    assert only(on.requeue()) == queued
    on.reopen()
    assert only(on.requeue()) == queued
    context = read_context(queued.payload)
    assert context.messages == (
        ("system", "Be brief. ☂"), ("user", "eins"), ("assistant", "zwei 🙂"), ("user", "drei"),
    )  # fmt: skip
    assert context.data.seed == ids.seed_of(context.turn_id)
    assert context.data.system is None, "told once, where it changes"
    rendered = [{"role": role, "content": content} for role, content in context.messages]
    assert context.data.rendered_hash == data_hash(rendered)


def test_failed_and_empty_answers_are_not_shown_to_later_turns(on: Scene) -> None:
    session_id = begin(on)
    endings = [("answer_failed", {"text": "half"}), ("answer_cancelled", {"text": "kept"}), ("answer_cancelled", {})]
    for number, (end, data) in enumerate(endings):
        said, _ = on.running(session_id, f"q{number}")
        on.take(ended(said, end, 1, **data))
    on.take(message(session_id, "now"))
    context = read_context(only(on.of(Queue)).payload)
    assert context.messages == (
        ("user", "q0"), ("user", "q1"), ("assistant", "kept"), ("user", "q2"), ("user", "now"),
    )  # fmt: skip
    assert context.data.left_out == LeftOut(failed=1, empty=1)


def test_the_model_of_a_turn(on: Scene) -> None:
    """The send's, else the session's, else what there is; none yet: the turn waits."""
    on.model = None
    plain, fixed = new_id(), new_id()
    on.take(session_started(plain), session_started(fixed, model="of-session"))
    on.take(message(plain), message(fixed), message(plain, model="of-send"))
    assert [queued.model for queued in on.of(Queue)] == ["of-session"]
    on.model = MODEL
    on.start_waiting()
    assert [queued.model for queued in on.of(Queue)] == [MODEL]
    on.take(message(fixed, model="of-send"))
