"""Step 10, history/swapping: an operator's word that the views that were rebuilt beside those that serve take over.

Owns the handler of chat.operator.views_swap. Must never stop a query: those under way end on the views they began on.
"""

from __future__ import annotations

from typing import Literal

import structlog
from faststream.nats import NatsMessage

from contracts import subjects
from contracts.base import dump
from contracts.replay import SWAP_QUERY, SwapViewsReply, read_swap_query
from services.history.queries import OnBroken, Question, serve
from services.history.views.folder import ViewFolder
from services.history.views.store import NotFinished
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)


class Swapping:
    """One swap after the other."""

    def __init__(self, views: ViewFolder) -> None:
        self._views = views

    def register(self, bus: Bus, on_broken: OnBroken) -> None:
        serve(bus, Question(SWAP_QUERY, subjects.operator_query(SWAP_QUERY), 1, self.swapped), on_broken)

    async def swapped(self, message: NatsMessage) -> bytes:
        query = read_swap_query(message.body)
        try:
            await self._views.swap()
        except NotFinished as error:
            return dump(self._reply("refused", str(error)))
        log.info("views_swapped", file=self._views.file, position=self._views.position, by=query.by)
        return dump(self._reply("swapped"))

    def _reply(self, status: Literal["swapped", "refused"], reason: str | None = None) -> SwapViewsReply:
        return SwapViewsReply(status=status, reason=reason, file=self._views.file, position=self._views.position)
