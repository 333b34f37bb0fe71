"""`chatlog parked`: ask history about parked events, and tell it what to do with one.

Owns the questions. Must never print an event's bytes unless they were asked for.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from contracts import parked
from services.operator.queries import ask, who
from services.operator.running import AskFailed
from services.runtime.bus import Bus


class ParkedRefused(AskFailed):
    """What was asked cannot be done. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A parked event whole. body None: its bytes were not asked for."""

    row: parked.ParkedRow
    headers: dict[str, str]
    sha256: str
    body: bytes | None


async def listed(bus: Bus) -> list[parked.ParkedRow]:
    """All of them, oldest first."""
    rows: list[parked.ParkedRow] = []
    following: int | None = 0
    while following is not None:
        reply = await ask(bus, "parked_list", parked.ParkedListQuery(after=following), parked.ParkedListReply)
        rows += reply.parked
        following = reply.next
    return rows


async def shown(bus: Bus, parked_id: int, *, with_body: bool) -> Shown:
    """One of them. Raises ParkedRefused where it is not parked (any more)."""
    body = b""
    while True:
        query = parked.ParkedShowQuery(parked_id=parked_id, offset=len(body))
        reply = await ask(bus, "parked_show", query, parked.ParkedShowReply)
        if reply.row is None:
            raise ParkedRefused(f"no event is parked under {parked_id}")
        body += base64.b64decode(reply.part)
        if not with_body or not reply.part or len(body) >= reply.row.bytes:
            return Shown(reply.row, reply.headers, reply.sha256, body if with_body else None)


async def act(bus: Bus, query: str, parked_id: int) -> parked.ParkedActReply:
    """Retry or discard. Raises ParkedRefused where it is not parked (any more)."""
    asked = parked.ParkedActQuery(parked_id=parked_id, by=who())
    reply = await ask(bus, query, asked, parked.ParkedActReply)
    if reply.status == "gone":
        raise ParkedRefused(f"no event is parked under {parked_id}")
    return reply
