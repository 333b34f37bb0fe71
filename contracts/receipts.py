"""The receipt of a turn: what its model was shown, by which rules, and how often it was tried.

Owns the shape that chat.history.receipt answers and the doors show. All of it is in the log: a receipt is read, never
kept. Must never hold the answer's text, which is a message like any other.
"""

from __future__ import annotations

from typing import Any, Literal

from contracts.base import Contract, ModelName, Text, Time, Uuid
from contracts.events import Budget, Hash


class ShownMessage(Contract):
    """A message that the model was shown. position, version: of the event that holds the text."""

    message_id: Uuid
    role: Literal["user", "assistant"]
    text: Text
    position: int
    version: int


class Attempt(Contract):
    """A worker's run that was given the turn."""

    attempt: int
    run: Uuid
    started_at: Time
    version: int


class End(Contract):
    """How the turn ended, and what its server counted: of the tokens those that it told."""

    type: Literal["answer_completed", "answer_failed", "answer_cancelled"]
    version: int
    attempt: int
    end: Literal["stop", "length"] | None = None
    code: str | None = None
    model: Text | None = None
    usage: dict[str, int] | None = None


class RecordedEvent(Contract):
    """Where the log has an event of the turn."""

    event_id: Uuid
    type: str
    schema_version: int
    position: int
    version: int
    recorded_at: Time


class Receipt(Contract):
    """All that is behind one answer. end: null while the turn is unfinished.

    messages: in prompt order, after the system prompt: a page; next: `after` of the next one. left_out: how many
    earlier messages were not shown, by the reason (contracts.events.LeftOut). budget: in tokens, our estimate; the
    server's own count of the prompt is in end.usage. verified: system and messages, as the log has them now, still
    hash to rendered_hash, which was recorded before the model was shown them.
    """

    session_id: Uuid
    turn_id: Uuid
    answer_id: Uuid
    model: ModelName
    digest: str | None
    system: Text | None
    messages: list[ShownMessage]
    next: int | None
    left_out: dict[str, int]
    options: dict[str, Any]
    seed: int
    budget: Budget
    rendered_hash: Hash
    verified: bool
    attempts: list[Attempt]
    end: End | None
    events: list[RecordedEvent]
