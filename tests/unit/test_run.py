"""Step 11, the decisions of a run: given what is known, when something is heard or happens, then the next step."""

from __future__ import annotations

import itertools
from functools import reduce

import pytest

from contracts.errors import FailureCode
from contracts.events import AnswerCancelled, AnswerCompleted, AnswerFailed, shape_of
from contracts.turns import Cancel, Go, Recorded, Stop, StopCode, Word
from services.inference.run import (
    Again,
    Cancelled,
    Completed,
    Failed,
    Lost,
    Outcome,
    Run,
    Step,
    Trouble,
    abandon,
    after_failure,
    conclude,
    hear,
    may_nak,
    next_step,
    terminal_of,
    waits_for_history,
)
from services.inference.tokens import Answer

TURN = "00000000-0000-7000-8000-000000000002"
OURS = "00000000-0000-7000-8000-00000000000a"
OTHER = "00000000-0000-7000-8000-00000000000b"

GO = Go(turn_id=TURN, run=OURS, attempt=1, last=False)
LAST_GO = Go(turn_id=TURN, run=OURS, attempt=3, last=True)
GO_OTHER = Go(turn_id=TURN, run=OTHER, attempt=2, last=False)
CANCEL = Cancel(turn_id=TURN)
RECORDED = Recorded(turn_id=TURN)
WHOLE = Completed("stop")

Fact = Word | Outcome


def given(*facts: Fact) -> Run:
    """The run that has met these facts, in this order."""

    def meet(run: Run, fact: Fact) -> Run:
        if isinstance(fact, Go | Stop | Cancel | Recorded):
            return hear(run, fact)
        return conclude(run, fact)

    return reduce(meet, facts, Run(run_id=OURS))


@pytest.mark.parametrize(
    ("facts", "step"),
    [
        # Nothing is let out before go, whatever the model has done meanwhile.
        ((), Step.HOLD),
        ((WHOLE,), Step.HOLD),
        ((Failed("model_not_found"),), Step.HOLD),
        ((Lost("model_lost"),), Step.HOLD),
        ((CANCEL,), Step.HOLD),
        # After go, tokens flow, and then the end is told.
        ((GO,), Step.LET_OUT),
        ((GO, WHOLE), Step.TELL),
        ((GO, Failed("context_too_long")), Step.TELL),
        ((GO, CANCEL), Step.TELL),
        # A lost attempt is followed by another one, unless it was the last.
        ((GO, Lost("model_lost")), Step.GIVE_BACK),
        ((LAST_GO, Lost("model_lost")), Step.TELL),
        # The end of the process does not wait for a go.
        ((Lost("worker_lost"),), Step.GIVE_BACK),
        ((GO, Lost("worker_lost")), Step.GIVE_BACK),
        ((LAST_GO, Lost("worker_lost")), Step.TELL),
        # Another run has the turn: it is left to it, without an ack.
        ((GO_OTHER,), Step.LEAVE),
        ((GO, GO_OTHER), Step.LEAVE),
        ((GO, WHOLE, GO_OTHER), Step.LEAVE),
        # Recorded, or stopped: only now the ack.
        ((GO, WHOLE, RECORDED), Step.ACK),
        ((GO, GO_OTHER, RECORDED), Step.ACK),
        ((RECORDED, GO_OTHER), Step.ACK),
    ],
)
def test_the_next_step(facts: tuple[Fact, ...], step: Step) -> None:
    assert next_step(given(*facts)) is step


@pytest.mark.parametrize(
    "code", ["turn_finished", "turn_cancelled", "attempts_used_up", "turn_unknown", "turn_waiting"]
)
@pytest.mark.parametrize("before", [(), (GO,), (GO, WHOLE), (GO_OTHER,)])
def test_a_stop_is_for_every_run(code: StopCode, before: tuple[Fact, ...]) -> None:
    assert next_step(given(*before, Stop(turn_id=TURN, code=code))) is Step.ACK


@pytest.mark.parametrize("facts", list(itertools.permutations((GO, GO, WHOLE))))
def test_words_that_come_twice_or_in_another_order_change_nothing(facts: tuple[Fact, ...]) -> None:
    assert given(*facts) == given(GO, WHOLE)


def test_the_first_end_is_the_end() -> None:
    assert given(GO, WHOLE, CANCEL, Lost("model_lost")).outcome == WHOLE
    assert given(GO, CANCEL, WHOLE).outcome == Cancelled()


def test_an_abandoned_run_leaves_its_context_to_the_queue() -> None:
    assert next_step(abandon(given(GO, WHOLE))) is Step.LEAVE


@pytest.mark.parametrize(
    ("facts", "asks"),
    [((), True), ((WHOLE,), True), ((GO,), False), ((GO, WHOLE), True), ((GO, WHOLE, RECORDED), False)],
)
def test_history_is_asked_while_its_word_is_what_comes_next(facts: tuple[Fact, ...], asks: bool) -> None:
    assert waits_for_history(given(*facts)) is asks


def trouble(
    code: FailureCode = "model_busy", *, again: bool = True, tries: int = 1, after: float | None = None
) -> Trouble:
    return Trouble(code, again, tries, after)


@pytest.mark.parametrize(
    ("failed", "verdict"),
    [
        (trouble(tries=1), Again(0.5)),
        (trouble(tries=2), Again(2.0)),
        (trouble(tries=3), Again(8.0)),
        (trouble(tries=4), Lost("model_busy")),
        (trouble(tries=1, after=20.0), Again(20.0)),
        (trouble(tries=1, after=0.0), Again(0.0)),
        # More than what is left of the first-token time.
        (trouble(tries=1, after=31.0), Lost("model_busy")),
        (trouble("model_stalled", again=False), Lost("model_stalled")),
        (trouble("model_not_found", again=False), Failed("model_not_found")),
        (trouble("context_too_long", again=False), Failed("context_too_long")),
        (trouble("model_cut", again=True), Again(0.5)),
    ],
)
def test_a_failure_before_the_first_piece(failed: Trouble, verdict: Again | Lost | Failed) -> None:
    assert after_failure(failed, begun=False, left_s=30.0) == verdict


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("model_lost", Lost("model_lost")),
        ("model_stalled", Lost("model_stalled")),
        ("model_error", Lost("model_error")),
        ("model_cut", Failed("model_cut")),
        ("context_too_long", Failed("context_too_long")),
    ],
)
@pytest.mark.parametrize("again", [True, False])
def test_after_the_first_piece_nothing_is_sent_again(code: FailureCode, verdict: Lost | Failed, again: bool) -> None:
    assert after_failure(trouble(code, again=again), begun=True, left_s=30.0) == verdict


@pytest.mark.parametrize(
    ("connected", "age_s", "may"), [(True, 0.0, True), (True, 4.9, True), (True, 5.0, False), (False, 0.0, False)]
)
def test_a_late_nak_is_never_sent(connected: bool, age_s: float, may: bool) -> None:
    assert may_nak(connected=connected, heartbeat_age_s=age_s, ack_wait_s=10.0) is may


def said(thinking: str = "", text: str = "") -> Answer:
    answer = Answer("00000000-0000-7000-8000-000000000001", TURN, 100)
    answer.add(thinking, text)
    answer.give_out(attempt=1)
    return answer


def test_the_end_of_a_whole_answer() -> None:
    run = given(GO, Completed("length", {"prompt_tokens": 3}))
    event_type, terminal = terminal_of(run, said("hm", "hello"), "m")
    assert shape_of(event_type).model_validate(terminal) == AnswerCompleted.model_validate(
        {
            "attempt": 1,
            "end": "length",
            "last_index": 1,
            "text": "hello",
            "thinking": "hm",
            "usage": {"prompt_tokens": 3},
            "model": "m",
        }
    )


def test_a_whole_answer_may_be_empty() -> None:
    event_type, terminal = terminal_of(given(GO, WHOLE), said(), "m")
    shape_of(event_type).model_validate(terminal)
    assert (terminal["text"], "thinking" in terminal, terminal["last_index"]) == ("", False, 0)


@pytest.mark.parametrize("outcome", [Failed("model_cut"), Lost("model_cut")])
def test_the_end_of_a_failed_answer_keeps_what_was_said(outcome: Outcome) -> None:
    event_type, terminal = terminal_of(given(LAST_GO, outcome), said(text="hel"), "m")
    found = shape_of(event_type).model_validate(terminal)
    assert found == AnswerFailed(attempt=3, code="model_cut", last_index=1, text="hel", model="m")
    assert terminal_of(given(LAST_GO, outcome), said(), "m")[1].keys() == {"attempt", "code", "last_index", "model"}


def test_the_end_of_a_cancelled_answer_keeps_what_was_said() -> None:
    event_type, terminal = terminal_of(given(GO, CANCEL), said(text="hel"), "m")
    found = shape_of(event_type).model_validate(terminal)
    assert found == AnswerCancelled(attempt=1, code="cancelled", last_index=1, text="hel", model="m")
