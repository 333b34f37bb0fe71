"""Step 10, history/views (core): what each recorded event changes in the views: sessions, messages, turns.

Owns the fold: the same for an event that has just been recorded and for one that is replayed. Must never do I/O, read a
clock, or have any effect but the changes it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Literal, NamedTuple

from contracts.envelope import Event
from contracts.events import (
    MESSAGES_PER_EVENT,
    AnswerCancelled,
    AnswerCompleted,
    AnswerFailed,
    AnswerStarted,
    ContextAssembled,
    ImportedMessage,
    SessionConfigured,
    SessionDeleted,
    SessionImported,
    SessionRenamed,
    SessionRestored,
    SessionStarted,
    UserMessageSubmitted,
)
from contracts.ids import answer_id_of

Table = Literal["sessions", "messages", "turns"]
Value = str | int | None
Key = tuple[Value, ...]
Row = dict[str, Value]

# What identifies a row of each table.
KEYS: dict[Table, tuple[str, ...]] = {
    "sessions": ("user_id", "session_id"),
    "messages": ("user_id", "session_id", "message_id"),
    "turns": ("user_id", "turn_id"),
}
KEY_OF: dict[Table, Callable[[Row], Key]] = {table: itemgetter(*columns) for table, columns in KEYS.items()}


# Tuples, all of them: a rebuild makes five for each event, and a frozen dataclass takes three times as long to make.
class Recorded(NamedTuple):
    """A recorded event as a fold needs it."""

    position: int
    version: int
    recorded_at: str
    event: Event


class Put(NamedTuple):
    """A new row."""

    table: Table
    row: Row


class Set(NamedTuple):
    """New values in the row with this key (the columns of KEYS); nothing where it is gone: the session has begun again
    since.
    """

    table: Table
    key: Key
    values: Row


class Drop(NamedTuple):
    """All of a session's rows go."""

    table: Table
    user_id: str
    session_id: str


Change = Put | Set | Drop
# The answer that a session's next message follows; what the views held before this event.
HeadOf = Callable[[str, str], str | None]

# A turn's answer is named by three of its events, mostly soon after each other.
_answer_id_of = lru_cache(1024)(answer_id_of)

_ENDS = (AnswerCompleted, AnswerFailed, AnswerCancelled)
_ENDED = {"answer_completed": "completed", "answer_failed": "failed", "answer_cancelled": "cancelled"}


def fold(recorded: Recorded, head_of: HeadOf) -> list[Change]:
    """The changes that one event makes."""
    event = recorded.event
    data = event.data
    if isinstance(data, SessionStarted):
        return [*_emptied(recorded), _session(recorded, data)]
    touched = _touched(recorded)
    if isinstance(data, UserMessageSubmitted):
        return [*_turn(recorded, data, head_of), _session_set(recorded, {**touched, "head": data.answer_id})]
    if isinstance(data, ContextAssembled):
        moved: list[Change] = [_turn_set(recorded, {"model": data.model}), _answer_set(recorded, {"model": data.model})]
        return [*moved, _session_set(recorded, touched)]
    if isinstance(data, AnswerStarted):
        values: Row = {"status": "running", "attempt": data.attempt}
        moved = [_turn_set(recorded, values), _answer_set(recorded, {"status": "running"})]
        return [*moved, _session_set(recorded, touched)]
    if isinstance(data, _ENDS):
        return [*_ended(recorded, data), _session_set(recorded, touched)]
    if isinstance(data, SessionRenamed):
        return [_session_set(recorded, {**touched, "title": data.title})]
    if isinstance(data, SessionConfigured):
        return [_session_set(recorded, touched | ({"on_busy": data.on_busy} if data.on_busy else {}))]
    if isinstance(data, SessionImported):
        imported: list[Change] = [_imported(recorded, index, each) for index, each in enumerate(data.messages)]
        return [*imported, _session_set(recorded, touched | ({"head": data.head} if data.head else {}))]
    if isinstance(data, SessionDeleted):
        return [_session_set(recorded, {**touched, "deleted_at": event.envelope.occurred_at})]
    if isinstance(data, SessionRestored):
        return [_session_set(recorded, {**touched, "deleted_at": None})]
    return [_session_set(recorded, touched)]


def _emptied(recorded: Recorded) -> list[Change]:
    """A session that begins again after a delete begins with nothing."""
    if recorded.version == 1:
        return []
    tables: tuple[Table, ...] = ("sessions", "messages", "turns")
    return [Drop(table, recorded.event.user_id, recorded.event.session_id) for table in tables]


def _session(recorded: Recorded, data: SessionStarted) -> Put:
    event = recorded.event
    return Put(
        "sessions",
        {
            "user_id": event.user_id,
            "session_id": event.session_id,
            "name": data.name,
            "title": data.title,
            "model": data.model,
            "system": data.system,
            "on_busy": data.on_busy or "queue",
            "head": None,
            "version": recorded.version,
            "position": recorded.position,
            "created_at": recorded.recorded_at,
            "updated_at": recorded.recorded_at,
            "place": -recorded.position,
            "deleted_at": None,
        },
    )


def _imported(recorded: Recorded, index: int, message: ImportedMessage) -> Put:
    """A message that was said elsewhere, in no turn: the index-th of its event."""
    event = recorded.event
    return Put(
        "messages",
        {
            "user_id": event.user_id,
            "session_id": event.session_id,
            "message_id": message.message_id,
            "parent_id": message.parent_id,
            "place": _place(recorded, index),
            "role": message.role,
            "text": message.text,
            "thinking": None,
            "turn_id": None,
            "status": "recorded" if message.role == "user" else "completed",
            "code": None,
            "end": None,
            "model": message.model,
            "usage": None,
            "position": recorded.position,
            "version": recorded.version,
            "created_at": message.created_at or recorded.recorded_at,
        },
    )


def _place(recorded: Recorded, index: int) -> int:
    """Of the index-th message of an event: an integer that JavaScript holds too."""
    return MESSAGES_PER_EVENT * recorded.position + index


def _turn(recorded: Recorded, data: UserMessageSubmitted, head_of: HeadOf) -> list[Change]:
    """A user message, the place of its answer, and the turn that joins them."""
    event = recorded.event
    parent = data.parent_id if "parent_id" in data.model_fields_set else head_of(event.user_id, event.session_id)
    message: Row = {
        "user_id": event.user_id,
        "session_id": event.session_id,
        "message_id": data.message_id,
        "parent_id": parent,
        "place": _place(recorded, 0),
        "role": "user",
        "text": data.text,
        "thinking": None,
        "turn_id": event.turn_id,
        "status": "recorded",
        "code": None,
        "end": None,
        "model": None,
        "usage": None,
        "position": recorded.position,
        "version": recorded.version,
        "created_at": recorded.recorded_at,
    }
    # The answer stands right behind its message, however many other messages come before it is there.
    answer = {
        **message,
        "message_id": data.answer_id,
        "parent_id": data.message_id,
        "place": _place(recorded, 1),
        "role": "assistant",
        "text": "",
        "status": "waiting",
    }
    turn: Row = {
        "user_id": event.user_id,
        "session_id": event.session_id,
        "turn_id": event.turn_id,
        "event_id": event.event_id,
        "message_id": data.message_id,
        "answer_id": data.answer_id,
        "status": "waiting",
        "attempt": 0,
        "model": data.model,
        "code": None,
        "position": recorded.position,
        "version": recorded.version,
        "created_at": recorded.recorded_at,
        "ended_at": None,
    }
    return [Put("messages", message), Put("messages", answer), Put("turns", turn)]


def _ended(recorded: Recorded, data: AnswerCompleted | AnswerFailed | AnswerCancelled) -> list[Change]:
    status = _ENDED[recorded.event.type]
    code, end = (None, data.end) if isinstance(data, AnswerCompleted) else (data.code, None)
    answer: Row = {
        "status": status,
        "code": code,
        "end": end,
        "text": data.text or "",
        "thinking": data.thinking,
        "usage": data.usage.model_dump_json(exclude_none=True) if data.usage is not None else None,
        "position": recorded.position,
        "version": recorded.version,
    }
    if data.model is not None:
        answer["model"] = data.model
    turn: Row = {"status": status, "code": code, "ended_at": recorded.recorded_at}
    return [_turn_set(recorded, turn), _answer_set(recorded, answer)]


def _touched(recorded: Recorded) -> Row:
    return {"version": recorded.version, "position": recorded.position, "updated_at": recorded.recorded_at}


def _session_set(recorded: Recorded, values: Row) -> Set:
    event = recorded.event
    return Set("sessions", (event.user_id, event.session_id), values)


def _turn_set(recorded: Recorded, values: Row) -> Set:
    event = recorded.event
    return Set("turns", (event.user_id, event.turn_id), {**values, "version": recorded.version})


def _answer_set(recorded: Recorded, values: Row) -> Set:
    event = recorded.event
    return Set("messages", (event.user_id, event.session_id, _answer_id_of(str(event.turn_id))), values)
