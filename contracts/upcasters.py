"""Upcasters: pure steps from one schema_version of an event's data to the next, applied when it is read.

Owns the way an old log stays readable: each shape that was ever written, and the step from it to the next. Stored bytes
are never rewritten. Must never need anything but the data itself, nor make up what its writer did not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from contracts import events
from contracts.base import Contract, ModelName, Text, Uuid
from contracts.errors import ContractError

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


class ContextAssembled1(Contract):
    """Schema_version 1 of context_assembled: left_out is a bare count, and the model's digest is not there."""

    model_config = ConfigDict(title="ContextAssembled")

    purpose: Literal["answer"]
    model: ModelName
    system: Text | None = None
    message_ids: list[Uuid]
    left_out: Annotated[int, Field(ge=0)]
    options: events.Options
    seed: Annotated[int, Field(ge=0, le=events.MAX_SEED)]
    budget: events.Budget
    rendered_hash: events.Hash


def _context_assembled_2(data: dict[str, Any]) -> dict[str, Any]:
    count = data["left_out"]
    return {**data, "left_out": {"unexplained": count} if count else {}}


@dataclass(frozen=True, slots=True)
class Former:
    """A shape that is not written any more, and the step to the next one. Data is checked before the step."""

    shape: type[Contract]
    upcast: Upcaster


# (type, schema_version) -> the shape it had. Golden files keep every version that was ever written.
FORMER: dict[tuple[str, int], Former] = {("context_assembled", 1): Former(ContextAssembled1, _context_assembled_2)}


def upcast(event_type: str, schema_version: int, data: dict[str, Any]) -> dict[str, Any]:
    """data in the newest shape of its type. Raises ContractError(event_parked) for a version without a way here, and
    pydantic's ValidationError for data that its own version did not allow.
    """
    newest = events.schema_version_of(event_type)
    version = schema_version
    while version != newest:
        former = FORMER.get((event_type, version))
        if former is None:
            raise ContractError("event_parked", f"{event_type} in an unknown schema_version")
        former.shape.model_validate(data, extra="ignore")
        data = former.upcast(data)
        version += 1
    return data


def versions_of(event_type: str) -> list[int]:
    """Every schema_version of the type that is read; the last one is written."""
    former = [version for name, version in FORMER if name == event_type]
    return [*sorted(former), events.schema_version_of(event_type)]
