"""decide, evolve and the word as pure functions: the same answer for the same state, and a state that stays (D5)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from contracts.envelope import Event
from services.history.decisions import Circumstances, Rules, decide, word_of
from services.history.session import Session, evolve
from tests.conversing import USER, claim, completed, make_event, message, new_id, session_started
from tests.recording import cancel, ended

RULES = Rules(attempts=2, waiting_per_session=20, keep_deleted_s=60)
DEAD = Circumstances(catching_up=False, alive=lambda turn, run: False)
SESSION = new_id()


def folded(*events: Event) -> Session:
    session = Session(USER, SESSION)
    for position, event in enumerate(events, start=1):
        evolve(session, event, position)
    return session


def assembled(said: Event, **data: Any) -> Event:
    whole = {
        "purpose": "answer", "model": "m", "message_ids": [said.envelope.data["message_id"]], "left_out": {},
        "options": {}, "seed": 1, "budget": {"tokens": 1, "reserve": 0, "estimated": 0}, "rendered_hash": "0" * 64,
        **data,
    }  # fmt: skip
    return make_event("context_assembled", SESSION, whole, turn_id=said.turn_id)


def answer_started(said: Event, run: str, attempt: int) -> Event:
    return make_event("answer_started", SESSION, {"run": run, "attempt": attempt}, turn_id=said.turn_id)


SAID, RUNS = message(SESSION), [new_id(), new_id()]
BEGUN = [session_started(SESSION), SAID]
QUEUED = [*BEGUN, assembled(SAID)]
FIRST = [*QUEUED, answer_started(SAID, RUNS[0], 1)]
SECOND = [*FIRST, answer_started(SAID, RUNS[1], 2)]
TURN = str(SAID.turn_id)
GO = {"type": "go", "turn_id": TURN}


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ([session_started(SESSION)], {"type": "stop", "turn_id": TURN, "code": "turn_unknown"}),
        (BEGUN, {"type": "stop", "turn_id": TURN, "code": "turn_waiting"}),
        (QUEUED, None),
        (FIRST, {**GO, "run": RUNS[0], "attempt": 1, "last": False}),
        (SECOND, {**GO, "run": RUNS[1], "attempt": 2, "last": True}),
        ([*FIRST, cancel(SAID)], {**GO, "run": RUNS[0], "attempt": 1, "last": False}),
        ([*FIRST, completed(SESSION, TURN)], {"type": "stop", "turn_id": TURN, "code": "turn_finished"}),
        ([*FIRST, ended(SAID, "answer_cancelled", 1)], {"type": "stop", "turn_id": TURN, "code": "turn_cancelled"}),
        ([*FIRST, ended(SAID, "answer_failed", 1)], {"type": "stop", "turn_id": TURN, "code": "turn_finished"}),
        (
            [*SECOND, ended(SAID, "answer_failed", 2, code="worker_lost")],
            {"type": "stop", "turn_id": TURN, "code": "attempts_used_up"},
        ),
    ],
)
def test_the_word_is_a_function_of_the_turns_state(events: list[Event], word: dict[str, Any] | None) -> None:
    session = folded(*events)
    found = word_of(session, TURN, RULES)
    assert (found.model_dump() if found else None) == word
    assert word_of(session, TURN, RULES) == found
    assert word_of(None, TURN, RULES) == word_of(Session(USER, SESSION), TURN, RULES)


@pytest.mark.parametrize(
    "event",
    [
        message(SESSION),
        cancel(SAID),
        claim(SESSION, TURN, new_id()),
        completed(SESSION, TURN),
        session_started(SESSION),
    ],
)
def test_deciding_changes_nothing(event: Event) -> None:
    session = folded(*FIRST)
    before = deepcopy(session)
    decide(session, event, RULES, DEAD)
    assert session == before


@pytest.mark.parametrize(
    ("events", "recorded", "refusal", "follows"),
    [
        ([session_started(SESSION)], False, "turn_unknown", []),
        (BEGUN, True, None, ["answer_cancelled"]),
        (QUEUED, True, None, ["answer_cancelled"]),
        (FIRST, True, None, []),
        ([*FIRST, cancel(SAID)], False, None, []),
        ([*SECOND, cancel(SAID)], False, None, []),
        ([*FIRST, completed(SESSION, TURN)], False, "turn_finished", []),
        ([*FIRST, cancel(SAID), ended(SAID, "answer_cancelled", 1)], False, "turn_finished", []),
    ],
)
def test_a_cancel_by_the_turns_state(
    events: list[Event], recorded: bool, refusal: str | None, follows: list[str]
) -> None:
    decision = decide(folded(*events), cancel(SAID), RULES, DEAD)
    assert (decision.records, decision.refusal) == (recorded, refusal)
    assert [each.type for each in decision.follows] == follows


@pytest.mark.parametrize(
    ("alive", "catching_up", "follows"),
    [(False, False, ["answer_cancelled"]), (True, False, []), (False, True, ["answer_started"])],
)
def test_another_run_of_a_turn_that_is_to_stop(alive: bool, catching_up: bool, follows: list[str]) -> None:
    """Alive, its worker ends it with its text. While catching up the claim was answered before: it happened."""
    session = folded(*FIRST, cancel(SAID))
    around = Circumstances(catching_up, alive=lambda turn, run: alive)
    decision = decide(session, claim(SESSION, TURN, RUNS[1]), RULES, around)
    assert [each.type for each in decision.follows] == follows
    assert decide(session, claim(SESSION, TURN, RUNS[0]), RULES, around).follows == (), "a known run"


def test_the_first_end_of_a_turn_that_is_to_stop_is_its_end() -> None:
    """The worker may have published it before it heard."""
    for end in (completed(SESSION, TURN), ended(SAID, "answer_failed", 1), ended(SAID, "answer_cancelled", 1)):
        session = folded(*FIRST, cancel(SAID))
        assert decide(session, end, RULES, DEAD).records
        evolve(session, end, 9)
        assert not session.turns[TURN].cancelling
        late = decide(session, ended(SAID, "answer_cancelled", 1), RULES, DEAD)
        assert late.refusal == "turn_finished"


@pytest.mark.parametrize(
    "event", [message(SESSION), cancel(SAID), completed(SESSION, TURN), answer_started(SAID, RUNS[1], 2)]
)
def test_a_copy_evolves_alone(event: Event) -> None:
    session = folded(*FIRST)
    before = deepcopy(session)
    evolve(session.copy(), event, 9)
    assert session == before


def test_what_history_alone_writes_does_not_come_from_the_intake() -> None:
    with pytest.raises(TypeError, match="answer_started"):
        decide(folded(*QUEUED), answer_started(SAID, RUNS[0], 1), RULES, DEAD)


def test_the_parent_left_out_is_the_head_null_is_a_new_root() -> None:
    first, second = message(SESSION), message(SESSION)
    root = message(SESSION, parent_id=None)
    back = message(SESSION, parent_id=first.envelope.data["answer_id"])
    session = folded(session_started(SESSION), first, second, root, back)
    parents = [session.messages[event.envelope.data["message_id"]].parent_id for event in (first, second, root, back)]
    answers = [event.envelope.data["answer_id"] for event in (first, second, root, back)]
    assert parents == [None, answers[0], None, answers[0]]
    assert session.head == answers[-1], "the head moves to the newest answer, text or not"
    path = [each.message_id for each in session.path_to(answers[-1])]
    assert path == [
        first.envelope.data["message_id"], answers[0], back.envelope.data["message_id"], answers[-1],
    ]  # fmt: skip


def test_a_state_holds_lengths_and_no_texts() -> None:
    secret = "a text that nobody finds in memory"
    session = folded(session_started(SESSION), message(SESSION, secret))
    assert secret not in repr(session)
    assert [each.chars for each in session.messages.values()] == [len(secret), 0]


def test_a_message_that_is_not_to_wait_is_refused_while_a_turn_is_unfinished() -> None:
    hasty = make_event(
        "user_message_submitted", SESSION, {**message(SESSION).envelope.data, "on_busy": "reject"}, turn_id=new_id()
    )
    events = [session_started(SESSION), SAID, assembled(SAID), answer_started(SAID, RUNS[0], 1)]
    for unfinished in range(2, 5):
        assert decide(folded(*events[:unfinished]), hasty, RULES, DEAD).refusal == "session_busy"
        assert decide(folded(*events[:unfinished]), message(SESSION), RULES, DEAD).refusal is None, "it waits"
    assert decide(folded(events[0]), hasty, RULES, DEAD).refusal is None
    done = completed(SESSION, str(SAID.turn_id), 1, "done")
    assert decide(folded(*events, done), hasty, RULES, DEAD).refusal is None
