"""Parked events: what an operator asks of history about them, and the shapes of its answers.

Owns request and reply of each chat.operator.parked_* query. A list holds no bytes of an event: they are only in what
was asked for by its number. Must never write anything.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Contract, Key, Time

PARKED_ROWS = 200
# The largest event is as large as the largest NATS message, so it comes in parts.
PARKED_PART_BYTES = 512 * 1024

ParkedId = Annotated[int, Field(ge=1)]


class ParkedRow(Contract):
    """One parked event as a list shows it. type, session_id, user_id: as its subject and headers say, unchecked."""

    parked_id: ParkedId
    sequence: int
    parked_at: Time
    reason: str
    subject: str
    type: str | None
    session_id: str | None
    user_id: str | None
    bytes: int


class ParkedListQuery(Contract):
    """after: the next of the page before."""

    after: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=PARKED_ROWS)] = PARKED_ROWS


class ParkedListReply(Contract):
    parked: list[ParkedRow]
    next: int | None


class ParkedShowQuery(Contract):
    """offset: of the part of its bytes that is wanted."""

    parked_id: ParkedId
    offset: Annotated[int, Field(ge=0)] = 0


class ParkedShowReply(Contract):
    """row None: there is no such parked event (any more). part: base64."""

    row: ParkedRow | None
    headers: dict[str, str]
    sha256: str
    part: str


class ParkedActQuery(Contract):
    """Retry or discard this one. by: who says so, for history's log."""

    parked_id: ParkedId
    by: Key


class ParkedActReply(Contract):
    """What became of it. answered: a worker's claim, which has no outcome; gone: it is not parked (any more)."""

    status: Literal["recorded", "refused", "answered", "parked", "discarded", "gone"]
    code: str | None = None
    reason: str | None = None
    position: int | None = None
    version: int | None = None


PARKED_QUERIES: dict[str, tuple[type[Contract], type[Contract]]] = {
    "parked_list": (ParkedListQuery, ParkedListReply),
    "parked_show": (ParkedShowQuery, ParkedShowReply),
    "parked_retry": (ParkedActQuery, ParkedActReply),
    "parked_discard": (ParkedActQuery, ParkedActReply),
}
