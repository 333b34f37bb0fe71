"""Step 6, history/session (core): what one session is: the state that its recorded events make.

Owns evolve (state, event -> state). A state holds ids, lengths and positions, not texts: those are read from the log
when a context is rendered. Must never do I/O, read a clock, make an id, or look at a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

from contracts.envelope import Event
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
    SessionDeleted,
    SessionImported,
    SessionRenamed,
    SessionRestored,
    SessionStarted,
    UserMessageSubmitted,
)

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
    deleted_at: str | None = None  # when its user said so; None: it is there
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


def evolve(session: Session, event: Event, position: int) -> Session:
    """The session after a recorded event. It changes the state it is given: who needs the old one copies it."""
    session.version += 1
    data = event.data
    if isinstance(data, SessionStarted):
        _begin(session, data)
    elif isinstance(data, SessionDeleted):
        session.deleted_at = event.envelope.occurred_at
    elif isinstance(data, SessionRestored):
        session.deleted_at = None
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


def _begin(session: Session, data: SessionStarted) -> None:
    """For the first time, or again after a delete: empty then, but for the turns that a worker is still to end."""
    session.name, session.title, session.model, session.system = data.name, data.title, data.model, data.system
    session.on_busy = data.on_busy or "queue"
    session.deleted_at = session.shown_system = session.head = None
    session.imported_from = session.imported_head = None
    session.messages = {}
    session.turns = {turn.turn_id: turn for turn in session.open_turns()}


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
        if turn.answer_id in session.messages:  # else the session has begun again meanwhile
            _keep_answer(session, turn, data, position)
    else:
        raise TypeError(f"{event.type} is not recorded")


def _keep_answer(
    session: Session, turn: Turn, data: AnswerCompleted | AnswerFailed | AnswerCancelled, position: int
) -> None:
    text = data.text or ""
    session.messages[turn.answer_id] = Message(
        turn.answer_id,
        turn.message_id,
        "assistant",
        len(text),
        wide_chars(text),
        position,
        shown=bool(text) and not isinstance(data, AnswerFailed),
        failed=isinstance(data, AnswerFailed),
    )


def wide_chars(text: str) -> int:
    """How many characters are outside ASCII."""
    return 0 if text.isascii() else sum(1 for character in text if character > "\x7f")
