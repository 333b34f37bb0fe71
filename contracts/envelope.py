"""The envelope that every event travels and is stored in, and the functions that read one.

Owns the read side of events: known types become typed data, unknown ones say so, and the bytes stay as they came. Must
never guess at a type or schema_version that it does not know: a reader parks those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from contracts import events, upcasters
from contracts.base import Contract, Time, UserId, Uuid, compact, data_hash, parse
from contracts.errors import ContractError
from contracts.quick import event_form


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


# Nobody changes one. It is not frozen, because a frozen one takes three times as long to make, and a rebuild makes one
# of each event.
@dataclass(slots=True)
class Event:
    """An event that was read: what it is about, its data in the newest shape, and the bytes that it was read from."""

    event_id: str
    type: str
    user_id: str
    session_id: str
    turn_id: str | None
    data: events.EventData
    body: bytes
    _envelope: Envelope | None = field(default=None, compare=False, repr=False)

    @property
    def envelope(self) -> Envelope:
        """All that the bytes say, the data as it was received. Read when it is asked for: a fold never does."""
        if self._envelope is None:
            self._envelope = Envelope.model_validate(_parsed(self.body), extra="ignore")
        return self._envelope

    @property
    def data_hash(self) -> str:
        """Of the data as received: what a repeated send is compared by."""
        return data_hash(self.envelope.data)


_read_as_written = event_form(Envelope)


def read_event(body: bytes) -> Event:
    """The event in body. Raises ContractError(event_parked) for what this version cannot read."""
    try:
        read = _read_as_written(body)
    except ValidationError:
        return _read_with_care(body)
    return Event(
        read["event_id"], read["type"], read["user_id"], read["session_id"], read.get("turn_id"), read["data"], body
    )


def _read_with_care(body: bytes) -> Event:
    """What is not just as today's writers write it: older shapes, fields of later, and what is wrong with the rest."""
    value = _parsed(body)
    try:
        envelope = Envelope.model_validate(value, extra="ignore")
        newest = upcasters.upcast(envelope.type, envelope.schema_version, envelope.data)
        data = events.shape_of(envelope.type).model_validate(newest, extra="ignore")
    except ValidationError as error:
        raise ContractError("event_parked", _where(error)) from error
    if events.needs_turn(envelope.type) and envelope.turn_id is None:
        raise ContractError("event_parked", f"{envelope.type} without turn_id")
    return _event(envelope, data, body)


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
    return _event(envelope, data, body)


def _event(envelope: Envelope, data: events.EventData, body: bytes) -> Event:
    of = envelope
    return Event(of.event_id, of.type, of.user_id, of.session_id, of.turn_id, data, body, of)


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
