"""Beside the road, history/imports: what an operator gives history to append, over the bus.

Owns the handlers of chat.operator.import_*. Each is one transaction of the writer's. Must never log a text: ids and
codes only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
from faststream.nats import NatsMessage

from contracts import subjects
from contracts.base import dump
from contracts.imports import (
    ImportCheckQuery,
    ImportConversationQuery,
    ImportEventsQuery,
    ImportReply,
)
from contracts.queries import read_request
from services.history.backup_note import note_import
from services.history.importing import Importing
from services.history.queries import OnBroken, Question, serve
from services.history.writer import Writer
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)

Answered = Callable[[NatsMessage], Awaitable[bytes]]
Q = TypeVar("Q", ImportCheckQuery, ImportEventsQuery, ImportConversationQuery)

# A part waits for the one before it: chats go between them.
CONCURRENT_QUERIES = 1


class Imports:
    """One handler per query."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        self._writer = writer
        self._folder = folder

    def register(self, bus: Bus, on_broken: OnBroken) -> None:
        self._serve(bus, "import_check", self._answered(ImportCheckQuery, Importing.check), on_broken)
        self._serve(bus, "import_events", self._answered(ImportEventsQuery, Importing.events), on_broken)
        answered = self._answered(ImportConversationQuery, Importing.conversation)
        self._serve(bus, "import_conversation", answered, on_broken)

    def _serve(self, bus: Bus, name: str, answered: Answered, on_broken: OnBroken) -> None:
        serve(bus, Question(name, subjects.operator_query(name), CONCURRENT_QUERIES, answered), on_broken)

    def _answered(self, shape: type[Q], work: Callable[[Importing, Q], ImportReply]) -> Answered:
        async def answer(message: NatsMessage) -> bytes:
            query = read_request(shape, message.body)
            reply = await self._writer.import_into(lambda importing: work(importing, query))
            if reply.status == "imported":
                await asyncio.to_thread(note_import, self._folder, self._writer.position)
            told = {"session_id": query.session_id, "by": query.by, "status": reply.status, "code": reply.code}
            log.info("import_asked", query=shape.__name__, version=reply.version, **told)
            return dump(reply)

        return answer
