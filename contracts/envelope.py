"""The envelope that every event travels and is stored in, and the functions that read one.

Owns the read side of events: known types become typed data, unknown ones say so, and the bytes stay as they came. Must
never guess at a type or schema_version that it does not know: a reader parks those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from contracts import events, upcasters
from contracts.base import Contract, Time, UserId, Uuid, compact, data_hash, parse
from contracts.errors import ContractError


class Envelope(Contract):
    """What is the same in every event. It has no version of its own and only ever gains optional fields."""

    event_id: Uuid
    type: str
    schema_version: int
    user_id: UserId
    session_id: Uuid
    turn_id: Uuid | None = None
    causation_id: Uuid | None = None
    occurred_at: Time
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Event:
    """An event that was read: its envelope, its data in the newest shape, and the bytes it was read from."""

    envelope: Envelope
    data: events.EventData
    body: bytes

    @property
    def type(self) -> str:
        return self.envelope.type

    @property
    def event_id(self) -> str:
        return self.envelope.event_id

    @property
    def user_id(self) -> str:
        return self.envelope.user_id

    @property
    def session_id(self) -> str:
        return self.envelope.session_id

    @property
    def turn_id(self) -> str | None:
        return self.envelope.turn_id

    @property
    def data_hash(self) -> str:
        """Of the data as received: what a repeated send is compared by."""
        return data_hash(self.envelope.data)


def read_event(body: bytes) -> Event:
    """The event in body. Raises ContractError(event_parked) for what this version cannot read."""
    value = _parsed(body)
    try:
        envelope = Envelope.model_validate(value, extra="ignore")
        newest = upcasters.upcast(envelope.type, envelope.schema_version, envelope.data)
        data = events.shape_of(envelope.type).model_validate(newest, extra="ignore")
    except ValidationError as error:
        raise ContractError("event_parked", _where(error)) from error
    if events.needs_turn(envelope.type) and envelope.turn_id is None:
        raise ContractError("event_parked", f"{envelope.type} without turn_id")
    return Event(envelope=envelope, data=data, body=body)


def write_event(envelope: Envelope) -> Event:
    """The event that a writer made, with its bytes. Raises ContractError where a reader would not take it."""
    shape = events.shape_of(envelope.type)
    if envelope.schema_version != events.schema_version_of(envelope.type):
        raise ContractError("event_parked", f"{envelope.type} is written in its newest schema_version only")
    try:
        data = shape.model_validate(envelope.data)
    except ValidationError as error:
        raise ContractError("event_parked", _where(error)) from error
    body = compact(envelope.model_dump(mode="json", exclude_none=True, exclude={"data"}) | {"data": envelope.data})
    return Event(envelope=envelope, data=data, body=body)


def _parsed(body: bytes) -> Any:
    try:
        return parse(body)
    except ContractError as error:
        raise ContractError("event_parked", error.reason) from error


def _where(error: ValidationError) -> str:
    """Which fields are wrong and how, without their values: a reason is logged and shown, a text is not."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'event'}: {problem['type']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)[:5]
    )
