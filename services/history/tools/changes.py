"""Beside the road, history/tools (core): what each event of a session changed of what people see, and who did it.

Owns the telling of one session's events: what was there before, what is there now, whose deed it was, and what it
followed from. Events that change nothing that is seen (a context, a first attempt) are not told. Must never do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from contracts.events import (
    AnswerCancelled,
    AnswerCompleted,
    AnswerFailed,
    AnswerStarted,
    CancelRequested,
    SessionConfigured,
    SessionDeleted,
    SessionImported,
    SessionRenamed,
    SessionRestored,
    SessionStarted,
    UserMessageSubmitted,
)
from contracts.ids import answer_id_of
from services.history.views.fold import Recorded, Row
from services.history.views.past import Past

_CAUSES = {"user_message_submitted": "the message", "session_deleted": "the delete", "cancel_requested": "the stop"}


@dataclass(frozen=True, slots=True)
class Changed:
    """One change. who: user <id>, worker run <id>, or history. because: the event that it followed from, where another
    one asked for it. before, after: what was seen, where that is text. model: of an answer.
    """

    version: int
    at: str
    who: str
    what: str
    message_id: str | None = None
    before: str | None = None
    after: str | None = None
    model: str | None = None
    because: str | None = None


class Changes:
    """Take the session's events from its first on, in order."""

    def __init__(self, user_id: str, session_id: str) -> None:
        self._of = user_id, session_id
        self._past = Past(user_id, session_id)
        self._said: dict[str | None, str] = {}  # by parent: what a user said last in answer to it
        self._runs: dict[str, str] = {}  # by turn: the latest
        self._events: dict[str, tuple[str, int]] = {}  # by event_id: type and version

    def take(self, recorded: Recorded) -> Changed | None:
        """What the next event changed; None: nothing that is seen."""
        before, head = self._session(), self._past.head_of(*self._of)
        self._past.fold(recorded)
        self._events[recorded.event.event_id] = recorded.event.type, recorded.version
        data = recorded.event.data
        if isinstance(data, UserMessageSubmitted):
            return self._message(recorded, data, data.parent_id if "parent_id" in data.model_fields_set else head)
        if isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled):
            return self._answer(recorded, data)
        if isinstance(data, AnswerStarted):
            self._runs[str(recorded.event.turn_id)] = data.run
            return self._told(recorded, f"attempt {data.attempt} began") if data.attempt > 1 else None
        return self._of_session(recorded, before)

    def _of_session(self, recorded: Recorded, before: Row | None) -> Changed | None:
        data, was = recorded.event.data, before or {}
        if isinstance(data, SessionStarted):
            self._said.clear()
            return self._told(recorded, "began" if before is None else "began again, empty", after=data.title)
        if isinstance(data, SessionRenamed):
            return self._told(recorded, "renamed", before=_text(was.get("title")), after=data.title)
        if isinstance(data, SessionConfigured):
            return self._told(recorded, "on_busy set", before=_text(was.get("on_busy")), after=data.on_busy)
        if isinstance(data, SessionImported):
            self._said |= {each.parent_id: each.text for each in data.messages if each.role == "user"}
            return self._told(recorded, f"{len(data.messages)} messages imported from {data.source}")
        told: dict[type, str] = {SessionDeleted: "deleted", SessionRestored: "restored", CancelRequested: "stop asked"}
        what = told.get(type(data))
        return self._told(recorded, what) if what else None

    def _message(self, recorded: Recorded, data: UserMessageSubmitted, parent_id: str | None) -> Changed:
        """One that follows what another one follows already is that one, edited."""
        before = self._said.get(parent_id)
        self._said[parent_id] = data.text
        what = "said" if before is None else "edited"
        return self._told(recorded, what, message_id=data.message_id, before=before, after=data.text)

    def _answer(self, recorded: Recorded, data: AnswerCompleted | AnswerFailed | AnswerCancelled) -> Changed:
        whats: dict[type, str] = {AnswerCompleted: "answered", AnswerCancelled: "stopped"}
        what = whats.get(type(data)) or f"failed: {getattr(data, 'code', '')}"
        message_id = answer_id_of(str(recorded.event.turn_id))
        return self._told(recorded, what, message_id=message_id, after=data.text, model=data.model)

    def _told(self, recorded: Recorded, what: str, **seen: str | None) -> Changed:
        who, because = self._who(recorded), self._because(recorded)
        return Changed(recorded.version, recorded.recorded_at, who, what, because=because, **seen)

    def _who(self, recorded: Recorded) -> str:
        """A worker names its model in the end that it publishes, history has none; a stop of history's has a cause."""
        event, data = recorded.event, recorded.event.data
        if isinstance(data, SessionImported) or (isinstance(data, CancelRequested) and event.envelope.causation_id):
            return "history"
        if isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled) and data.model is None:
            return "history"
        if isinstance(data, AnswerStarted | AnswerCompleted | AnswerFailed | AnswerCancelled):
            return f"worker run {self._runs.get(str(event.turn_id), 'unknown')}"
        return f"user {event.user_id}"

    def _because(self, recorded: Recorded) -> str | None:
        event_type, version = self._events.get(recorded.event.envelope.causation_id or "", ("", 0))
        cause = _CAUSES.get(event_type)
        own = event_type == "user_message_submitted" and not isinstance(recorded.event.data, CancelRequested)
        return f"{cause} at version {version}" if cause and not own else None

    def _session(self) -> Row | None:
        rows = self._past.of("sessions", *self._of)
        return dict(rows[0]) if rows else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
