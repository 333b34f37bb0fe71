"""Step 6, history/decisions (core): what a session's state decides about a new event, and tells the worker of a turn.

Owns decide (state, event -> recorded, nothing new, or refused) and word_of (state, turn -> go or stop). Everything they
need is passed in. Must never do I/O, read a clock, make an id, look at a view, or change the state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from contracts.base import seconds_between
from contracts.envelope import Event
from contracts.errors import RefusalCode
from contracts.events import (
    AnswerCancelled,
    AnswerCompleted,
    AnswerFailed,
    CancelRequested,
    SessionConfigured,
    SessionDeleted,
    SessionRenamed,
    SessionRestored,
    SessionStarted,
    TurnClaimed,
    UserMessageSubmitted,
)
from contracts.turns import Go, Stop
from services.history.session import Session, Turn


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds that decisions are made by (settings of history)."""

    attempts: int
    waiting_per_session: int
    keep_deleted_s: float


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What decides beside the log: whether history is still catching up, and which runs' workers are alive."""

    catching_up: bool
    alive: Callable[[str, str], bool]  # (turn_id, run)


@dataclass(frozen=True, slots=True)
class Followed:
    """An event that follows from another one; history gives it its id, time and place. asked_by: that other event,
    where the turn does not know it.
    """

    type: Literal["cancel_requested", "answer_started", "answer_failed", "answer_cancelled"]
    turn_id: str
    data: dict[str, Any]
    asked_by: str | None = None

    def cause(self, turn: Turn) -> str:
        """What it names as its cause, once that is recorded: who asked for the turn's end, else what began it."""
        asked_by = turn.cancelled_by if self.type == "answer_cancelled" else self.asked_by
        return asked_by or turn.cause


@dataclass(frozen=True, slots=True)
class Decision:
    """refusal: the event is not recorded. Otherwise it is recorded if `records`, then what `follows` from it.

    needs_context: the turn's context_assembled is recorded before it (a restored log meets claims and answers of turns
    whose context it never assembled). answers_claim: the sender is told the turn's word afterwards.
    """

    records: bool = True
    refusal: RefusalCode | None = None
    needs_context: bool = False
    answers_claim: bool = False
    follows: tuple[Followed, ...] = ()


def _refused(code: RefusalCode) -> Decision:
    return Decision(records=False, refusal=code)


def decide(session: Session, event: Event, rules: Rules, circumstances: Circumstances) -> Decision:
    """What becomes of an intake event that was not seen before. Raises for what no writer of ours sends."""
    data = event.data
    if isinstance(data, SessionStarted):
        return Decision(records=session.version == 0 or session.deleted_at is not None)
    if isinstance(data, TurnClaimed):
        return _decide_claim(session, str(event.turn_id), data.run, rules, circumstances)
    if session.version == 0:
        return _refused("session_unknown")
    if isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled):
        return _decide_terminal(session, str(event.turn_id), data.attempt, circumstances)
    if isinstance(data, SessionDeleted):
        return _decide_delete(session, event.event_id)
    if isinstance(data, SessionRestored):
        return _decide_restore(session, event.envelope.occurred_at, rules)
    if session.deleted_at is not None:
        return _refused("session_deleted")
    if isinstance(data, SessionRenamed | SessionConfigured):
        return Decision()
    if isinstance(data, UserMessageSubmitted):
        return _decide_message(session, event.event_id, data, rules)
    if isinstance(data, CancelRequested):
        return _decide_cancel(session, event)
    raise TypeError(f"{event.type} does not come from the intake")


def _decide_delete(session: Session, event_id: str) -> Decision:
    if session.deleted_at is not None:
        return Decision(records=False)
    return Decision(follows=_all_interrupted(session, event_id))


def _decide_restore(session: Session, asked_at: str, rules: Rules) -> Decision:
    """By when it was asked for, not by when it is decided: whoever was in time is, however late this is read."""
    if session.deleted_at is None:
        return Decision(records=False)
    if seconds_between(session.deleted_at, asked_at) > rules.keep_deleted_s:
        return _refused("retention_over")
    return Decision()


def _decide_message(session: Session, event_id: str, data: UserMessageSubmitted, rules: Rules) -> Decision:
    if data.parent_id is not None:
        parent = session.messages.get(data.parent_id)
        if parent is None or parent.role != "assistant":
            return _refused("parent_unknown")
    unfinished = list(session.open_turns())
    on_busy = data.on_busy or session.on_busy
    if on_busy == "reject" and unfinished:
        return _refused("session_busy")
    if on_busy == "interrupt":
        return Decision(follows=_all_interrupted(session, event_id))
    if sum(turn.phase == "waiting" for turn in unfinished) >= rules.waiting_per_session:
        return _refused("queue_full")
    return Decision()


def _all_interrupted(session: Session, by_event_id: str) -> tuple[Followed, ...]:
    return tuple(each for turn in session.open_turns() for each in _interrupted(turn, by_event_id))


def _interrupted(turn: Turn, by_event_id: str) -> tuple[Followed, ...]:
    """As if its user had stopped it: the new message, or the delete, asks for it in its user's place."""
    if turn.cancelling:
        return ()
    asked = Followed("cancel_requested", turn.turn_id, {}, by_event_id)
    return (asked,) if turn.phase == "running" else (asked, ended_by_history(turn, "cancelled"))


def _decide_claim(session: Session, turn_id: str, run: str, rules: Rules, circumstances: Circumstances) -> Decision:
    """A claim is a request: it is never logged itself; what is logged is answer_started, or the turn's end."""
    turn = session.turns.get(turn_id)
    nothing = Decision(records=False, answers_claim=True)
    if turn is None or turn.phase == "ended" or run in turn.runs:
        return nothing
    follows = Followed("answer_started", turn_id, {"run": run, "attempt": turn.attempt + 1})
    if circumstances.catching_up:
        # The claims in the backlog were answered before the log was restored: each of them happened.
        return Decision(records=False, answers_claim=True, needs_context=turn.phase == "waiting", follows=(follows,))
    if turn.phase == "waiting":
        return nothing
    if turn.run is not None and circumstances.alive(turn_id, turn.run):
        return nothing
    if turn.cancelling:
        # Its worker is gone, or gave it back before it heard: nobody is to answer what its user has stopped.
        follows = ended_by_history(turn, "cancelled")
    elif turn.attempt >= rules.attempts:
        follows = ended_by_history(turn, "worker_lost")
    return Decision(records=False, answers_claim=True, follows=(follows,))


def _decide_terminal(session: Session, turn_id: str, attempt: int, circumstances: Circumstances) -> Decision:
    turn = session.turns.get(turn_id)
    if turn is None:
        return _refused("turn_unknown")
    if turn.phase == "ended":
        return _refused("turn_finished")
    if circumstances.catching_up:
        return Decision(needs_context=turn.phase == "waiting")
    if attempt != turn.attempt or turn.phase != "running":
        return _refused("attempt_stale")
    return Decision()


def _decide_cancel(session: Session, event: Event) -> Decision:
    """A turn that no worker runs ends at once; a running one is ended by its worker, which is told until it does."""
    turn = session.turns.get(str(event.turn_id))
    if turn is None:
        return _refused("turn_unknown")
    if turn.phase == "ended":
        return _refused("turn_finished")
    if turn.cancelling:
        return Decision(records=False)
    if turn.phase == "running":
        return Decision()
    return Decision(follows=(ended_by_history(turn, "cancelled"),))


def ended_by_history(turn: Turn, code: str) -> Followed:
    """The terminal of a turn that no worker ends: nothing of the answer was kept."""
    event_type: Literal["answer_cancelled", "answer_failed"] = (
        "answer_cancelled" if code == "cancelled" else "answer_failed"
    )
    return Followed(event_type, turn.turn_id, {"attempt": turn.attempt, "code": code, "last_index": 0})


def word_of(session: Session | None, turn_id: str, rules: Rules) -> Go | Stop | None:
    """History's answer to any claim of this turn: a function of its state alone. None: its claim has not come yet."""
    turn = session.turns.get(turn_id) if session else None
    if turn is None:
        return Stop(turn_id=turn_id, code="turn_unknown")
    if turn.phase == "waiting":
        return Stop(turn_id=turn_id, code="turn_waiting")
    if turn.phase == "ended":
        return Stop(turn_id=turn_id, code=_stop_code(turn))
    if turn.run is None:
        return None
    return Go(turn_id=turn_id, run=turn.run, attempt=turn.attempt, last=turn.attempt >= rules.attempts)


def _stop_code(turn: Turn) -> Literal["turn_cancelled", "attempts_used_up", "turn_finished"]:
    if turn.ended_by == "answer_cancelled":
        return "turn_cancelled"
    return "attempts_used_up" if turn.ended_code == "worker_lost" else "turn_finished"
