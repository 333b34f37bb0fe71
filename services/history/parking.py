"""Step 10, history/parking: what an operator asks about parked events, and what they do with one.

Owns the handlers of chat.operator.parked_*. Reading is from the log; a retry is the writer's, through the very path
that an event of the intake takes. Must never show an event's bytes where its number was not asked for, nor log them.
"""

from __future__ import annotations

import base64
import hashlib

import structlog
from faststream.nats import NatsMessage

from contracts import subjects
from contracts.base import dump
from contracts.errors import ContractError
from contracts.parked import (
    PARKED_PART_BYTES,
    PARKED_QUERIES,
    ParkedActQuery,
    ParkedActReply,
    ParkedListQuery,
    ParkedListReply,
    ParkedRow,
    ParkedShowQuery,
    ParkedShowReply,
)
from contracts.queries import read_request
from services.history.batch import Retried
from services.history.log.reader import LogReader, ParkedEvent
from services.history.queries import Answer, OnBroken, Question, serve
from services.history.writer import Writer
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)

# An operator asks one thing after the other; a script may be two.
CONCURRENT_QUERIES = 2


class Parking:
    """One method per query."""

    def __init__(self, reader: LogReader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def register(self, bus: Bus, on_broken: OnBroken) -> None:
        answers: dict[str, Answer] = {
            "parked_list": self.listed,
            "parked_show": self.shown,
            "parked_retry": self.retried,
            "parked_discard": self.discarded,
        }
        for name, answer in answers.items():
            self._subscribe(bus, name, answer, on_broken)

    def _subscribe(self, bus: Bus, name: str, answer: Answer, on_broken: OnBroken) -> None:
        async def asked(message: NatsMessage) -> bytes:
            return await answer(read_request(PARKED_QUERIES[name][0], message.body))

        serve(bus, Question(name, subjects.operator_query(name), CONCURRENT_QUERIES, asked), on_broken)

    async def listed(self, query: ParkedListQuery) -> bytes:
        found = await self._reader.parked_after(query.after, query.limit)
        following = found[-1].parked_id if len(found) == query.limit else None
        return dump(ParkedListReply(parked=[_row(each) for each in found], next=following))

    async def shown(self, query: ParkedShowQuery) -> bytes:
        found = await self._reader.parked_event(query.parked_id)
        if found is None:
            return dump(ParkedShowReply(row=None, headers={}, sha256="", part=""))
        body = await self._reader.parked_bytes(query.parked_id)
        part = body[query.offset : query.offset + PARKED_PART_BYTES]
        return dump(
            ParkedShowReply(
                row=_row(found),
                headers=found.headers,
                sha256=hashlib.sha256(body).hexdigest(),
                part=base64.b64encode(part).decode(),
            )
        )

    async def retried(self, query: ParkedActQuery) -> bytes:
        retried = await self._writer.retry_parked(query.parked_id)
        reply = _what_became(retried)
        log.warning("parked_retried", parked_id=query.parked_id, by=query.by, status=reply.status, code=reply.code)
        return dump(reply)

    async def discarded(self, query: ParkedActQuery) -> bytes:
        """What goes is named in history's own log, with who said so: the row is not kept."""
        found = await self._reader.parked_event(query.parked_id)
        if found is None or not await self._writer.discard_parked(query.parked_id):
            return dump(ParkedActReply(status="gone"))
        log.warning(
            "parked_discarded",
            parked_id=query.parked_id,
            by=query.by,
            sequence=found.sequence,
            subject=found.subject,
            reason=found.reason,
        )
        return dump(ParkedActReply(status="discarded"))


def _what_became(retried: Retried | None) -> ParkedActReply:
    if retried is None:
        return ParkedActReply(status="gone")
    if retried.reason is not None:
        return ParkedActReply(status="parked", reason=retried.reason)
    outcome = retried.outcome
    if outcome is None:
        return ParkedActReply(status="answered")
    return ParkedActReply(
        status="recorded" if outcome.recorded else "refused",
        code=outcome.code,
        position=outcome.position,
        version=outcome.version,
    )


def _row(found: ParkedEvent) -> ParkedRow:
    try:
        address = subjects.parse_intake(found.subject)
    except ContractError:
        address = None
    return ParkedRow(
        parked_id=found.parked_id,
        sequence=found.sequence,
        parked_at=found.parked_at,
        reason=found.reason,
        subject=found.subject,
        type=address.type if address else None,
        session_id=address.session_id if address else None,
        user_id=found.headers.get(subjects.CHAT_USER),
        bytes=found.size,
    )
