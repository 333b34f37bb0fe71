"""Off the road, history/tools (core): what a session's earlier events leave for its later ones to refer to.

Owns the rules that join the events of one session: dense versions, turns that begin, are tried and end once, messages
whose parents are there. Must never hold texts, nor decide anything: the log is as it is, and this says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Fields = dict[str, Any]
# What joins an event to others: event_id, turn_id, causation_id.
Ids = tuple[bytes, bytes | None, bytes | None]


class Turn:
    """One turn so far: the events that others name as their cause, its attempts, and whether it has ended."""

    __slots__ = ("attempts", "cancelled", "context", "ended", "opened")

    def __init__(self, opened: bytes) -> None:
        self.opened = opened
        self.context: bytes | None = None
        self.cancelled: bytes | None = None
        self.attempts = 0
        self.ended = False


class Trail:
    """One session up to an event. `weight` is how many ids it holds."""

    __slots__ = ("messages", "turns", "version")

    def __init__(self) -> None:
        self.version = 0
        self.messages: set[str] = set()
        self.turns: dict[bytes, Turn] = {}

    @property
    def weight(self) -> int:
        return 1 + len(self.messages) + len(self.turns)

    def follow(self, version: int, event_type: bytes, ids: Ids, data: Fields) -> str | None:
        """Go on by one event: what is wrong with it, if anything is."""
        follows = self.version + 1
        self.version = version
        wrong = None if version == follows else f"version {version} where {follows} follows"
        return _RULES.get(event_type, _nothing)(self, ids, data) or wrong

    def may_cause(self, ids: Ids) -> bool:
        """Whether the cause is one of the turn's own events; one that is not must be looked for."""
        _, turn_id, cause = ids
        turn = self.turns.get(turn_id) if turn_id is not None else None
        return cause is None or (turn is not None and cause in (turn.context, turn.opened, turn.cancelled))


def _nothing(trail: Trail, ids: Ids, data: Fields) -> None:
    return None


def _message(trail: Trail, ids: Ids, data: Fields) -> str | None:
    event_id, turn_id, _ = ids
    assert turn_id is not None
    parent = data.get("parent_id")
    orphan = f"parent {parent} is no message of its session" if parent and parent not in trail.messages else None
    twice = "its turn is there already" if turn_id in trail.turns else None
    trail.turns[turn_id] = Turn(event_id)
    trail.messages.add(data["message_id"])
    trail.messages.add(data["answer_id"])
    return twice or orphan


def _imported(trail: Trail, ids: Ids, data: Fields) -> str | None:
    wrong: str | None = None
    for message in data["messages"]:
        parent = message["parent_id"]
        if parent is not None and parent not in trail.messages:
            wrong = wrong or f"parent {parent} is no message of its session"
        trail.messages.add(message["message_id"])
    return wrong


def _context(trail: Trail, ids: Ids, data: Fields) -> str | None:
    turn, wrong = _unfinished(trail, ids)
    turn.context = ids[0]
    if not trail.messages.issuperset(data["message_ids"]):
        missing = next(each for each in data["message_ids"] if each not in trail.messages)
        wrong = wrong or f"message {missing} of its context is not of its session"
    return wrong


def _started(trail: Trail, ids: Ids, data: Fields) -> str | None:
    turn, wrong = _unfinished(trail, ids)
    follows = turn.attempts + 1
    turn.attempts = data["attempt"]
    return wrong or (None if turn.attempts == follows else f"attempt {turn.attempts} where {follows} follows")


def _cancelled(trail: Trail, ids: Ids, data: Fields) -> str | None:
    turn, wrong = _unfinished(trail, ids)
    turn.cancelled = ids[0]
    return wrong


def _ended(trail: Trail, ids: Ids, data: Fields) -> str | None:
    turn, wrong = _unfinished(trail, ids)
    turn.ended = True
    return wrong


def _unfinished(trail: Trail, ids: Ids) -> tuple[Turn, str | None]:
    event_id, turn_id, _ = ids
    assert turn_id is not None
    turn = trail.turns.get(turn_id)
    if turn is None:
        turn = trail.turns[turn_id] = Turn(event_id)
        return turn, "its turn was never opened in its session"
    return turn, "its turn has ended before" if turn.ended else None


_RULES: dict[bytes, Callable[[Trail, Ids, Fields], str | None]] = {
    b"session_imported": _imported,
    b"user_message_submitted": _message,
    b"context_assembled": _context,
    b"answer_started": _started,
    b"cancel_requested": _cancelled,
    b"answer_completed": _ended,
    b"answer_failed": _ended,
    b"answer_cancelled": _ended,
}
