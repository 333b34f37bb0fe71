"""Upcasters: pure steps from one schema_version of an event's data to the next, applied when it is read.

Owns the way an old log stays readable. Stored bytes are never rewritten. Must never need anything but the data itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import events
from contracts.errors import ContractError

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

# (type, from schema_version) -> the step to the next one. Golden files keep every version that was ever written.
UPCASTERS: dict[tuple[str, int], Upcaster] = {}


def upcast(event_type: str, schema_version: int, data: dict[str, Any]) -> dict[str, Any]:
    """data in the newest shape of its type. Raises ContractError(event_parked) for a version without a way here."""
    newest = events.schema_version_of(event_type)
    version = schema_version
    while version != newest:
        step = UPCASTERS.get((event_type, version))
        if step is None:
            raise ContractError("event_parked", f"{event_type} in an unknown schema_version")
        data = step(data)
        version += 1
    return data
