"""Frames: what a client is sent and may send, on a WebSocket as JSON, on SSE as data.

Owns the byte form of each frame. An event's frame holds the stored body verbatim, so that live and from the log it is
the same bytes; a token's frame is encoded once by its worker and passed on. Must never re-encode an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from contracts.base import Contract, Key, ModelName, Text, Time, Uuid, compact, parse
from contracts.errors import Code, ContractError
from contracts.events import OnBusy, Options


class Token(Contract):
    """One numbered piece of an answer in flight. index counts the frames of an attempt from 1; text may be empty."""

    type: Literal["token"] = "token"
    session_id: Uuid
    turn_id: Uuid
    attempt: Annotated[int, Field(ge=1)]
    index: Annotated[int, Field(ge=1)]
    thinking: Text | None = None
    text: Text


class AnswerSoFar(Contract):
    """All of an attempt's text up to index: it replaces what the client holds. Never split."""

    type: Literal["answer_so_far"] = "answer_so_far"
    session_id: Uuid
    turn_id: Uuid
    attempt: Annotated[int, Field(ge=1)]
    index: Annotated[int, Field(ge=0)]
    thinking: Text
    text: Text


class Accepted(Contract):
    """The event is durable in the queue; it will be recorded or refused. To the sender only."""

    type: Literal["accepted"] = "accepted"
    session_id: Uuid
    event_id: Uuid
    turn_id: Uuid | None = None
    client_message_id: Key | None = None


class Refused(Contract):
    """What was asked is not done, and why. To the sender only."""

    type: Literal["refused"] = "refused"
    session_id: str | None
    code: Code
    event_id: Uuid | None = None
    turn_id: Uuid | None = None
    client_message_id: str | None = None


class ErrorFrame(Contract):
    """A frame could not be read, or the stream ends before the answer does."""

    type: Literal["error"] = "error"
    code: Code


class Attached(Contract):
    """The session's frames follow; everything up to version has been sent."""

    type: Literal["attached"] = "attached"
    session_id: Uuid
    epoch: str
    version: Annotated[int, Field(ge=0)]


class Resync(Contract):
    """The cursor cannot be served: forget this session's state and attach again without one."""

    type: Literal["resync"] = "resync"
    session_id: Uuid
    reason: Literal["epoch", "version", "too_slow"]


class TurnQueued(Contract):
    """ahead turns are served before this one."""

    type: Literal["turn_queued"] = "turn_queued"
    session_id: Uuid
    turn_id: Uuid
    ahead: Annotated[int, Field(ge=0)]
    eta_s: Annotated[float, Field(ge=0)] | None = None


class Loading(Contract):
    """The worker waits for its server to load the model."""

    type: Literal["loading"] = "loading"
    session_id: Uuid
    turn_id: Uuid
    model: ModelName


class Pong(Contract):
    type: Literal["pong"] = "pong"


class Attach(Contract):
    """Watch a session. after: a cursor, epoch.version[.attempt.index]; left out: everything from the start."""

    type: Literal["attach"]
    session: Annotated[Text, Field(min_length=1, max_length=300)]
    after: Annotated[str, Field(max_length=100)] | None = None


class Authenticate(Contract):
    """The key of a socket that brought none in its handshake: its first frame, within 5 s."""

    type: Literal["auth"]
    key: Annotated[str, Field(max_length=200)]


class Detach(Contract):
    type: Literal["detach"]
    session: Annotated[Text, Field(min_length=1, max_length=300)]


class Send(Contract):
    """A user message. client_message_id is the idempotency key: repeat it when the outcome is not known."""

    type: Literal["send"]
    session: Annotated[Text, Field(min_length=1, max_length=300)]
    text: Text
    client_message_id: Key | None = None
    parent_id: Uuid | None = None
    model: ModelName | None = None
    options: Options | None = None
    on_busy: OnBusy | None = None


class Cancel(Contract):
    """Stop a turn, whoever sent its message. To stop it twice is to stop it once."""

    type: Literal["cancel"]
    session: Annotated[Text, Field(min_length=1, max_length=300)]
    turn: Annotated[Text, Field(min_length=1, max_length=100)]


class Ping(Contract):
    type: Literal["ping"]


ServerFrame = Token | AnswerSoFar | Accepted | Refused | ErrorFrame | Attached | Resync | TurnQueued | Loading | Pong
ClientFrame = Authenticate | Attach | Detach | Send | Cancel | Ping
CLIENT_FRAME: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])


class EventFrame(Contract):
    """For readers and schemas; writers use event_frame, which never re-encodes the body."""

    type: Literal["event"]
    session_id: Uuid
    position: Annotated[int, Field(ge=1)]
    version: Annotated[int, Field(ge=1)]
    recorded_at: Time
    event: dict[str, Any]


def encode(frame: ServerFrame) -> bytes:
    """A frame's bytes, for every watcher the same. type is always written."""
    given = frame.model_dump(mode="json", exclude_unset=True)
    return compact({"type": frame.type, **given})


def event_frame(body: bytes, session_id: str, position: int, version: int, recorded_at: str) -> bytes:
    """The frame of a recorded event around its stored body, byte for byte the same whenever it is built."""
    return b'{"event":%b,"position":%d,"recorded_at":"%b","session_id":"%b","type":"event","version":%d}' % (
        body,
        position,
        recorded_at.encode(),
        session_id.encode(),
        version,
    )


def read_client_frame(raw: str) -> ClientFrame:
    """What a client sent. Raises ContractError(bad_frame) with the fields that are wrong, never their values."""
    try:
        return CLIENT_FRAME.validate_python(parse(raw))
    except ContractError as error:
        raise ContractError("bad_frame", error.reason) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "frame"
        raise ContractError("bad_frame", f"{where}: {first['type']}") from error


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a client is in a session: epoch.version, and inside an answer .attempt.index."""

    epoch: str
    version: int
    attempt: int = 0
    index: int = 0

    def __str__(self) -> str:
        inside = f".{self.attempt}.{self.index}" if self.attempt else ""
        return f"{self.epoch}.{self.version}{inside}"


def read_cursor(text: str) -> Cursor:
    """Raises ContractError(bad_request) for text that no door of ours gave out."""
    epoch, *numbers = text.split(".")
    if not (epoch.isalnum() and len(epoch) <= 40 and len(numbers) in (1, 3)):
        raise ContractError("bad_request", "not a cursor")
    if not all(number.isascii() and number.isdigit() and len(number) <= 15 for number in numbers):
        raise ContractError("bad_request", "not a cursor")
    return Cursor(epoch, *(int(number) for number in numbers))
