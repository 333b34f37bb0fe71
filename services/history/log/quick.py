"""Off the road, history/log/quick: the events of stored rows in one pass, for who folds a million of them.

Owns a form of the envelope for each type, with the type's newest data in it. Must never take what read_event refuses:
what is not just as today's writers make it goes the long way.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError, create_model

from contracts import events
from contracts.base import Uuid
from contracts.envelope import Envelope, Event, read_event


def quick_event(event_type: str, body: bytes) -> Event:
    """As read_event has it, but that its envelope holds the very data. Raises ContractError where that does."""
    form = _FORMS.get(event_type)
    if form is not None:
        try:
            envelope = form.__pydantic_validator__.validate_json(body)
        except ValidationError:
            pass  # read_event takes it, or says what is wrong
        else:
            return Event(envelope, envelope.data, body)
    return read_event(body)


def _form(event_type: str, schema_version: int, shape: type[events.EventData]) -> type[Any]:
    fields: dict[str, Any] = {
        "type": (Literal[event_type], ...),
        "schema_version": (Literal[schema_version], ...),
        "data": (shape, ...),
    }
    if events.needs_turn(event_type):
        fields["turn_id"] = (Uuid, ...)
    return create_model(f"Quick_{event_type}", __base__=Envelope, **fields)


_FORMS = {event_type: _form(event_type, *entry) for event_type, entry in events.REGISTRY.items()}
