"""Step 6, history/session (core): what one session is, and what its log decides about a new event.

Owns decide (state, event -> recorded, nothing new, or refused) and evolve (state, event -> state). Everything it needs
is passed in. Must never do I/O, read a clock, make an id, or look at a view. A state holds ids, lengths and positions,
not texts: those are read from the log when a context is rendered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal

from contracts.envelope import Event
from contracts.errors import RefusalCode
from contracts.events import (
    AnswerCancelled,
    AnswerCompleted,
    AnswerFailed,
    AnswerStarted,
    CancelRequested,
    ContextAssembled,
    OnBusy,
    Options,
    SessionConfigured,
    SessionImported,
    SessionRenamed,
    SessionStarted,
    TurnClaimed,
    UserMessageSubmitted,
)
from contracts.turns import Go, Stop

Phase = Literal["waiting", "dispatched", "running", "ended"]


@dataclass(slots=True)
class Message:
    """A message as later contexts see it. shown: it has a text that they take (never that of a failed answer)."""

    message_id: str
    parent_id: str | None
    role: Literal["user", "assistant"]
    chars: int = 0
    wide_chars: int = 0  # of these, the ones outside ASCII: they cost more tokens each
    position: int = 0  # of the event that holds the text
    shown: bool = False
    failed: bool = False  # why it is not, where that is so


@dataclass(slots=True)
class Turn:
    """One user message and its one answer, on its way to exactly one terminal event."""

    turn_id: str
    event_id: str  # of its user_message_submitted
    message_id: str
    answer_id: str
    position: int
    asked_model: str | None
    options: Options
    phase: Phase = "waiting"
    model: str | None = None  # fixed in context_assembled
    context_event_id: str | None = None
    context_position: int = 0
    system: str | None = None  # the system prompt of its context
    run: str | None = None  # the latest
    runs: frozenset[str] = frozenset()
    attempt: int = 0
    cancelled_by: str | None = None  # the event that asked for its end; running, it goes on until that is recorded
    ended_by: str | None = None
    ended_code: str | None = None

    @property
    def cause(self) -> str:
        """What its next events name as their cause."""
        return self.context_event_id or self.event_id

    @property
    def cancelling(self) -> bool:
        """Whether a worker runs it that has been asked to stop."""
        return self.phase == "running" and self.cancelled_by is not None


@dataclass(slots=True)
class Session:
    """The folded state of one session. version 0: there is no such session."""

    user_id: str
    session_id: str
    version: int = 0
    name: str | None = None
    title: str | None = None
    model: str | None = None
    system: str | None = None
    on_busy: OnBusy = "queue"
    shown_system: str | None = None  # the prompt of the latest context: it is logged only where it changes
    head: str | None = None
    imported_from: str | None = None  # the source of what was imported into it
    imported_head: str | None = None  # where the latest import left the head
    messages: dict[str, Message] = field(default_factory=dict)
    turns: dict[str, Turn] = field(default_factory=dict)

    def copy(self) -> Session:
        """A state that can evolve while this one stays. Messages and turns are copied when they change."""
        twin = copy(self)
        twin.messages = dict(self.messages)
        twin.turns = dict(self.turns)
        return twin

    def open_turns(self) -> Iterator[Turn]:
        """Its unfinished turns in the order they came."""
        return (turn for turn in self.turns.values() if turn.phase != "ended")

    def path_to(self, message_id: str | None) -> list[Message]:
        """The messages from the root to this one."""
        path: list[Message] = []
        while message_id is not None:
            message = self.messages[message_id]
            path.append(message)
            message_id = message.parent_id
        path.reverse()
        return path


@dataclass(frozen=True, slots=True)
class Rules:
    """The bounds that decisions are made by (settings of history)."""

    attempts: int
    waiting_per_session: int


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
        return Decision(records=session.version == 0)
    if isinstance(data, TurnClaimed):
        return _decide_claim(session, str(event.turn_id), data.run, rules, circumstances)
    if session.version == 0:
        return _refused("session_unknown")
    if isinstance(data, SessionRenamed | SessionConfigured):
        return Decision()
    if isinstance(data, UserMessageSubmitted):
        return _decide_message(session, event.event_id, data, rules)
    if isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled):
        return _decide_terminal(session, str(event.turn_id), data.attempt, circumstances)
    if isinstance(data, CancelRequested):
        return _decide_cancel(session, event)
    raise TypeError(f"{event.type} does not come from the intake")


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
        return Decision(follows=tuple(each for turn in unfinished for each in _interrupted(turn, event_id)))
    if sum(turn.phase == "waiting" for turn in unfinished) >= rules.waiting_per_session:
        return _refused("queue_full")
    return Decision()


def _interrupted(turn: Turn, by_event_id: str) -> tuple[Followed, ...]:
    """As if its user had stopped it: the new message asks for it in its user's place."""
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


def evolve(session: Session, event: Event, position: int) -> Session:
    """The session after a recorded event. It changes the state it is given: who needs the old one copies it."""
    session.version += 1
    data = event.data
    if isinstance(data, SessionStarted):
        session.name, session.title, session.model, session.system = data.name, data.title, data.model, data.system
        session.on_busy = data.on_busy or "queue"
    elif isinstance(data, SessionRenamed):
        session.title = data.title
    elif isinstance(data, SessionConfigured):
        session.on_busy = data.on_busy or session.on_busy
    elif isinstance(data, SessionImported):
        _add_imported(session, data, position)
    elif isinstance(data, UserMessageSubmitted):
        _add_turn(session, event, data, position)
    else:
        _move_turn(session, event, position)
    return session


def _add_imported(session: Session, data: SessionImported, position: int) -> None:
    for each in data.messages:
        session.messages[each.message_id] = Message(
            each.message_id, each.parent_id, each.role, len(each.text), wide_chars(each.text), position, shown=True
        )
    session.imported_from = data.source
    if data.head is not None:
        session.head = session.imported_head = data.head


def _add_turn(session: Session, event: Event, data: UserMessageSubmitted, position: int) -> None:
    parent = data.parent_id if "parent_id" in data.model_fields_set else session.head
    session.messages[data.message_id] = Message(
        data.message_id, parent, "user", len(data.text), wide_chars(data.text), position, shown=True
    )
    session.messages[data.answer_id] = Message(data.answer_id, data.message_id, "assistant")
    session.head = data.answer_id
    turn_id = str(event.turn_id)
    session.turns[turn_id] = Turn(
        turn_id=turn_id,
        event_id=event.event_id,
        message_id=data.message_id,
        answer_id=data.answer_id,
        position=position,
        asked_model=data.model,
        options=data.options or Options(),
    )


def _move_turn(session: Session, event: Event, position: int) -> None:
    turn = copy(session.turns[str(event.turn_id)])
    session.turns[turn.turn_id] = turn
    data = event.data
    if isinstance(data, ContextAssembled):
        turn.phase = "dispatched"
        turn.model, turn.context_event_id, turn.context_position = data.model, event.event_id, position
        if data.system is not None:
            session.shown_system = data.system
        turn.system = session.shown_system
    elif isinstance(data, CancelRequested):
        turn.cancelled_by = event.event_id
    elif isinstance(data, AnswerStarted):
        turn.phase = "running"
        turn.run, turn.attempt, turn.runs = data.run, data.attempt, turn.runs | {data.run}
    elif isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled):
        turn.phase, turn.ended_by = "ended", event.type
        turn.ended_code = None if isinstance(data, AnswerCompleted) else data.code
        text = data.text or ""
        answer = session.messages[turn.answer_id]
        session.messages[turn.answer_id] = Message(
            answer.message_id,
            answer.parent_id,
            "assistant",
            len(text),
            wide_chars(text),
            position,
            shown=bool(text) and not isinstance(data, AnswerFailed),
            failed=isinstance(data, AnswerFailed),
        )
    else:
        raise TypeError(f"{event.type} is not recorded")


def wide_chars(text: str) -> int:
    """How many characters are outside ASCII."""
    return 0 if text.isascii() else sum(1 for character in text if character > "\x7f")
