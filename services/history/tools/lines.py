"""Beside the road, history/tools (core): the lines of an exported file, which an import reads.

Owns their form: a header, each session's events in version order with their stored bytes verbatim, after them a line
that closes the session, and one that ends the file, so that a cut file is not taken for a whole one. Must never make an
event's bytes anew: they are what the log's hashes are over.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from contracts.base import Contract, Time, UserId, Uuid, dump, parse
from contracts.errors import ContractError
from contracts.events import Hash

Count = Annotated[int, Field(ge=0)]


class Header(Contract):
    """The first line: what the file is, and whose sessions it holds."""

    type: Literal["export"] = "export"
    format: Literal["chatlog"] = "chatlog"
    version: Literal[1] = 1
    user_id: UserId


class Close(Contract):
    """After a session's events: how many there are, and the hash of the state that they make."""

    type: Literal["session"] = "session"
    session_id: Uuid
    events: Annotated[int, Field(ge=1)]
    state_hash: Hash


class End(Contract):
    """The last line."""

    type: Literal["end"] = "end"
    sessions: Count
    events: Count


class _Encoded(Contract):
    """An event whose bytes hold a line's end, as no writer of ours makes them: base64."""

    type: Literal["event"] = "event"
    version: Annotated[int, Field(ge=1)]
    recorded_at: Time
    body: str


@dataclass(frozen=True, slots=True)
class EventLine:
    """A recorded event without its place in the whole log, which another log gives it anew."""

    version: int
    recorded_at: str
    body: bytes


Line = Header | EventLine | Close | End
_LINE: TypeAdapter[Header | Close | End | _Encoded] = TypeAdapter(
    Annotated[Header | Close | End | _Encoded, Field(discriminator="type")]
)
_EVENT = re.compile(rb'\{"event":(\{.*\}),"recorded_at":"([0-9TZ:.-]{24})","type":"event","version":([1-9]\d{0,9})\}')


def write_line(line: Line) -> bytes:
    """The line's bytes with their end."""
    if not isinstance(line, EventLine):
        return dump(line) + b"\n"
    if b"\n" in line.body:
        body = base64.b64encode(line.body).decode()
        return dump(_Encoded(version=line.version, recorded_at=line.recorded_at, body=body)) + b"\n"
    return b'{"event":%b,"recorded_at":"%b","type":"event","version":%d}\n' % (
        line.body,
        line.recorded_at.encode(),
        line.version,
    )


def read_line(raw: bytes) -> Line:
    """Raises ContractError for what no export writes. An event's own bytes are not looked into."""
    found = _EVENT.fullmatch(raw.rstrip(b"\r\n"))
    if found:
        return EventLine(int(found[3]), found[2].decode(), found[1])
    try:
        line = _LINE.validate_python(parse(raw))
        if isinstance(line, _Encoded):
            return EventLine(line.version, line.recorded_at, base64.b64decode(line.body, validate=True))
    except (ValidationError, ValueError) as error:
        raise ContractError("bad_request", "not a line of an export") from error
    return line
