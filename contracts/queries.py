"""Queries: what gateways, workers and operators ask of history by name, and the shapes of its answers.

Owns request and reply of each query. Every request names its user, and its subject contains the user's token: history
answers only where both agree. Must never write anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from contracts.base import Contract, Key, Text, Time, UserId, Uuid, compact, parse, time_of
from contracts.errors import Code, ContractError
from contracts.events import OnBusy
from contracts.receipts import Receipt
from contracts.turns import Go, OutcomeMessage, Stop

T = TypeVar("T", bound=Contract)

# A page is at most this many rows and bytes (its first row may be more): it must fit one NATS message.
PAGE_ROWS = 200
PAGE_BYTES = 1024 * 1024


# A version of a session, or a time: as it was right after that version, or then.
At = Annotated[int, Field(ge=1)] | Time
_MAX_VERSION_DIGITS = 15


def read_at(text: str) -> At:
    """What a person writes: a version, or an ISO 8601 time with its zone. Raises ContractError(bad_request)."""
    if text.isascii() and text.isdigit() and len(text) <= _MAX_VERSION_DIGITS and int(text) > 0:
        return int(text)
    try:
        return time_of(text)
    except ValueError as error:
        raise ContractError("bad_request", "at: a version from 1 on, or a time as 2026-11-20T10:00:00Z") from error


class Query(Contract):
    """What every query of a user carries. min_position: answer only once the views have folded so far."""

    user_id: UserId
    min_position: Annotated[int, Field(ge=0)] = 0


class SessionsQuery(Query):
    """The user's sessions, newest activity first. before: the cursor that the page before gave."""

    limit: Annotated[int, Field(ge=1, le=PAGE_ROWS)] = 50
    before: Annotated[str, Field(max_length=100)] | None = None


class SessionQuery(Query):
    """One session. at: as it was."""

    session_id: Uuid
    at: At | None = None


class MessagesQuery(Query):
    """A session's messages in order. after: the next of the page before; at: as they were."""

    session_id: Uuid
    limit: Annotated[int, Field(ge=1, le=PAGE_ROWS)] = PAGE_ROWS
    after: Annotated[int, Field(ge=0)] = 0
    at: At | None = None


class TurnQuery(Query):
    """What is known of a turn. With run: the word for a worker that holds it (from the log, not the views).

    claimed_at: the intake's sequence of that run's claim. Before history has consumed it there is no word: the turn's
    state would still speak of the run before.
    """

    turn_id: Uuid
    run: Uuid | None = None
    claimed_at: Annotated[int, Field(ge=0)] = 0


class ReceiptQuery(Query):
    """What is behind a turn's answer, from the log. after: so many of the messages that were shown are skipped."""

    session_id: Uuid
    turn_id: Uuid
    after: Annotated[int, Field(ge=0)] = 0


class EventsQuery(Query):
    """A session's recorded events after a version, from the log: what attach reads."""

    session_id: Uuid
    after: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=PAGE_ROWS)] = PAGE_ROWS


class OutcomeQuery(Query):
    """What became of an event; data_hash tells a repeated send from another one under the same key."""

    event_id: Uuid
    data_hash: str


class SessionRow(Contract):
    session_id: Uuid
    name: Key | None
    title: Text | None
    model: Text | None
    system: Text | None
    on_busy: OnBusy = "queue"  # what a message that does not say does while a turn is unfinished
    head: Uuid | None  # the answer that the next message follows
    version: int
    position: int
    created_at: Time
    updated_at: Time
    active_turn_id: Uuid | None  # the turn that is waited for or runs first


class SessionsReply(Contract):
    sessions: list[SessionRow]
    next: str | None
    position: int  # the views had folded so far


class MessageRow(Contract):
    """One message. status of an answer: waiting, running, completed, failed, cancelled; of a user message: recorded.

    turn_id null: it was said elsewhere and imported; created_at is then when it was said, where that is known.
    """

    message_id: Uuid
    parent_id: Uuid | None
    role: Literal["user", "assistant"]
    text: Text
    thinking: Text | None
    turn_id: Uuid | None
    status: Literal["recorded", "waiting", "running", "completed", "failed", "cancelled"]
    code: str | None
    end: str | None
    model: Text | None
    usage: dict[str, int] | None
    position: int
    version: int
    created_at: Time


class MessagesReply(Contract):
    session: SessionRow
    messages: list[MessageRow]
    next: int | None
    position: int


class TurnRow(Contract):
    """A turn as the views have it. attempt: 0 before the first worker."""

    turn_id: Uuid
    session_id: Uuid
    event_id: Uuid
    message_id: Uuid
    answer_id: Uuid
    status: Literal["waiting", "running", "completed", "failed", "cancelled"]
    attempt: int
    model: Text | None
    code: str | None
    version: int
    created_at: Time
    ended_at: Time | None


class TurnReply(Contract):
    """turn: from the views; word: the answer to a worker that asked with its run."""

    turn: TurnRow | None
    word: Go | Stop | None
    position: int


class OutcomeReply(Contract):
    """pending: history has not seen the event (yet)."""

    status: Literal["pending", "recorded", "refused"]
    outcome: OutcomeMessage | None


class Failure(Contract):
    """Every query may be answered so instead."""

    error: Code


@dataclass(frozen=True, slots=True)
class EventsReply:
    """Frames of recorded events in version order, byte for byte as they were on the feed.

    version: the session's latest; more: whether frames after these remain; running_turn_id, running_attempt: the turn
    that a worker runs, whose text so far that worker holds.
    """

    epoch: str
    version: int
    more: bool
    running_turn_id: str | None
    running_attempt: int
    frames: tuple[bytes, ...]


def encode_events_reply(reply: EventsReply) -> bytes:
    """A JSON header with the frames' lengths, a newline, and the frames: their bytes are never parsed on the way."""
    header = {
        "epoch": reply.epoch,
        "lengths": [len(frame) for frame in reply.frames],
        "more": reply.more,
        "running_attempt": reply.running_attempt,
        "running_turn_id": reply.running_turn_id,
        "version": reply.version,
    }
    return compact(header) + b"\n" + b"".join(reply.frames)


def read_events_reply(raw: bytes) -> EventsReply | Failure:
    """Raises ContractError(bad_request)."""
    header, _, rest = raw.partition(b"\n")
    value = parse(header)
    if "error" in value:
        return Failure.model_validate(value)
    frames: list[bytes] = []
    start = 0
    for length in value["lengths"]:
        frames.append(rest[start : start + length])
        start += length
    return EventsReply(
        epoch=value["epoch"],
        version=value["version"],
        more=value["more"],
        running_turn_id=value["running_turn_id"],
        running_attempt=value["running_attempt"],
        frames=tuple(frames),
    )


# query name -> (request, reply). events has a byte form of its own, above.
QUERIES: dict[str, tuple[type[Query], type[Contract] | None]] = {
    "sessions": (SessionsQuery, SessionsReply),
    "session": (SessionQuery, SessionRow),
    "messages": (MessagesQuery, MessagesReply),
    "turn": (TurnQuery, TurnReply),
    "receipt": (ReceiptQuery, Receipt),
    "events": (EventsQuery, None),
    "outcome": (OutcomeQuery, OutcomeReply),
}


class BackupStatus(Contract):
    """The newest backup. gap: why it could not be restored without one; None: it could."""

    file: str
    made_at: Time | None
    position: int | None
    gap: str | None


class StatusReply(Contract):
    """What history tells an operator. cursor and last_sequence are JetStream's; sizes in bytes. backup None: there was
    never one.
    """

    epoch: str
    caught_up: bool
    cursor: int
    last_sequence: int
    position: int
    views_position: int
    parked: int
    turns_waiting: int
    turns_running: int
    sizes: dict[str, int]
    queues: list[dict[str, Any]]
    backup: BackupStatus | None = None


def read_query(name: str, raw: bytes) -> Query:
    """Raises ContractError(bad_request) for an unknown query or a request of another shape."""
    entry = QUERIES.get(name)
    if entry is None:
        raise ContractError("bad_request", "no such query")
    try:
        return entry[0].model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", f"not a {name} query") from error


def read_request(shape: type[T], raw: bytes) -> T:
    """A request of this shape. Raises ContractError(bad_request)."""
    try:
        return shape.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", f"not a {shape.__name__}") from error


def read_reply(shape: type[T], raw: bytes) -> T | Failure:
    """A reply of this shape, or the failure that history answered with. Raises ContractError(bad_request)."""
    value = parse(raw)
    try:
        if isinstance(value, dict) and set(value) == {"error"}:
            return Failure.model_validate(value)
        return shape.model_validate(value, extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", f"not a {shape.__name__}") from error
