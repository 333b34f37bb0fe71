"""`chatlog parked`: ask history about parked events, and tell it what to do with one.

Owns the questions. Must never print an event's bytes unless they were asked for.
"""

from __future__ import annotations

import base64
import getpass
from dataclasses import dataclass
from typing import TypeVar

from contracts import parked, subjects
from contracts.base import Contract, dump
from contracts.errors import ContractError
from contracts.queries import Failure, read_reply
from services.runtime.bus import Bus, NoAnswer, NotSent

T = TypeVar("T", bound=Contract)

# A retry waits for a transaction with its fsync, behind those that are under way.
ASK_TIMEOUT_S = 10.0


class ParkedRefused(Exception):
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
        reply = await _ask(bus, "parked_list", parked.ParkedListQuery(after=following), parked.ParkedListReply)
        rows += reply.parked
        following = reply.next
    return rows


async def shown(bus: Bus, parked_id: int, *, with_body: bool) -> Shown:
    """One of them. Raises ParkedRefused where it is not parked (any more)."""
    body = b""
    while True:
        query = parked.ParkedShowQuery(parked_id=parked_id, offset=len(body))
        reply = await _ask(bus, "parked_show", query, parked.ParkedShowReply)
        if reply.row is None:
            raise ParkedRefused(f"no event is parked under {parked_id}")
        body += base64.b64decode(reply.part)
        if not with_body or not reply.part or len(body) >= reply.row.bytes:
            return Shown(reply.row, reply.headers, reply.sha256, body if with_body else None)


async def act(bus: Bus, query: str, parked_id: int) -> parked.ParkedActReply:
    """Retry or discard. Raises ParkedRefused where it is not parked (any more)."""
    asked = parked.ParkedActQuery(parked_id=parked_id, by=_who())
    reply = await _ask(bus, query, asked, parked.ParkedActReply)
    if reply.status == "gone":
        raise ParkedRefused(f"no event is parked under {parked_id}")
    return reply


async def _ask(bus: Bus, name: str, query: Contract, shape: type[T]) -> T:
    try:
        reply = read_reply(shape, await bus.request(subjects.operator_query(name), dump(query), ASK_TIMEOUT_S))
    except NotSent as error:
        raise ParkedRefused("history does not answer; `chatlog status` says more") from error
    except NoAnswer as error:
        raise ParkedRefused("history did not answer in time; asking again is safe") from error
    except ContractError as error:
        raise ParkedRefused(f"history answered what this version cannot read: {error.reason}") from error
    if isinstance(reply, Failure):
        raise ParkedRefused(f"history says {reply.error}")
    return reply


def _who() -> str:
    """For history's log: the account that runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        return "unknown"
