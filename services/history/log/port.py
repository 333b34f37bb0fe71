"""Step 8, history/log: the port of the log: what the recorder and the readers ask of it, in their own words.

Owns the shapes of a stored row and of an outcome, the chain's recipe, and the errors of a log. Must never know SQL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from contracts.envelope import Event

FIRST_HASH = bytes(32)
_NULL = b"\xff\xff\xff\xff"
# The lengths of most fields: ten for each row of a million.
_SHORT = 256
_LENGTHS = [length.to_bytes(4, "big") for length in range(_SHORT)]


class LogError(RuntimeError):
    """The log could not do what it was asked, and whether it did is not known: the process exits and reopens it."""


class LogUnreadable(LogError):
    """A row of the log that this version cannot read: a newer one wrote it, or the file is damaged."""


class LogFenced(LogError):
    """Another process moved the cursor: this one is not the writer any more."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A recorded event in its place."""

    position: int
    version: int
    recorded_at: str
    event: Event


@dataclass(frozen=True, slots=True)
class StoredOutcome:
    """What became of an event. code None: recorded."""

    event_id: str
    session_id: str
    turn_id: str | None
    data_hash: str
    type: str | None
    code: str | None
    position: int | None
    version: int | None


@dataclass(frozen=True, slots=True)
class ParkedDelivery:
    """A delivery that is set aside with its bytes. parked_id: where it was set aside before, and is again."""

    sequence: int
    subject: str
    headers: dict[str, str]
    body: bytes
    reason: str
    parked_id: int | None = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the log has consumed the intake, and which stream that was (None: it has met none yet)."""

    stream_created: str | None
    sequence: int


class Transaction(Protocol):
    """One batch. Nothing of it is there before it ends, all of it afterwards."""

    def last_position(self) -> int: ...

    def append(self, stored: Stored) -> None:
        """Add the next row: its position is the last one + 1, its version the session's last + 1."""
        ...

    def session_rows(self, user_id: str, session_id: str) -> Iterator[Stored]:
        """A session's rows in version order, this transaction's own among them."""
        ...

    def events_at(self, positions: list[int]) -> dict[int, Event]:
        """The events at these positions."""
        ...

    def outcome(self, user_id: str, event_id: str) -> StoredOutcome | None:
        """What became of an event of this user: a recorded row, else what put_outcome kept."""
        ...

    def owner(self, event_id: str) -> str | None:
        """Whose recorded event this is."""
        ...

    def put_outcome(self, user_id: str, outcome: StoredOutcome, decided_at: str) -> None: ...

    def drop_outcome(self, user_id: str, event_id: str) -> None: ...

    def drop_outcomes_before(self, decided_at: str) -> None: ...

    def begin_epoch(self, epoch: str) -> None:
        """What follows is not what clients were shown under the epoch before."""
        ...

    def park(self, parked: ParkedDelivery, parked_at: str) -> None: ...

    def unpark(self, parked_id: int) -> ParkedDelivery | None:
        """Take it out; None where it is not there (any more)."""
        ...

    def session_of_turn(self, user_id: str, turn_id: str) -> str | None: ...

    def open_turns(self) -> list[tuple[str, str, str]]:
        """(user_id, session_id, turn_id) of all unfinished turns, in the order of their messages."""
        ...

    def last_contexts(self, after: int) -> list[tuple[str, int]]:
        """(user_id, position) of the last context_assembled of each user who has one after this position."""
        ...


class Log(Protocol):
    """The one writer's side. Used from one thread."""

    epoch: str

    def cursor(self) -> Cursor: ...

    def transaction(self, before: Cursor, after: Cursor) -> AbstractContextManager[Transaction]:
        """Moves the cursor first: raises LogFenced where it is not `before`. Raises LogError for errors of disk."""
        ...

    def look(self) -> AbstractContextManager[Transaction]:
        """For reading only: nothing is written or synced."""
        ...

    def close(self) -> None: ...


def chain_hash(previous: bytes, stored: Stored, data_hash: str, body_hash: bytes) -> bytes:
    """The row's link in the chain."""
    event = stored.event
    fields = (
        str(stored.position),
        event.event_id,
        event.user_id,
        event.session_id,
        str(stored.version),
        event.turn_id,
        event.type,
        str(event.envelope.schema_version),
        stored.recorded_at,
        data_hash,
    )
    return link(previous, [None if field is None else field.encode() for field in fields], body_hash)


def link(previous: bytes, fields: Iterable[bytes | None], body_hash: bytes) -> bytes:
    """SHA-256 over the previous hash, each field with its length, and the body's hash: text and NULL stay apart."""
    parts = [previous]
    for field in fields:
        if field is None:
            parts.append(_NULL)
        else:
            length = len(field)
            parts.append(_LENGTHS[length] if length < _SHORT else length.to_bytes(4, "big"))
            parts.append(field)
    parts.append(body_hash)
    return hashlib.sha256(b"".join(parts)).digest()
