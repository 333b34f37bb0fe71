"""Step 10, history/views: a session at a version or a time, from the log: what GET ...?at= is answered.

Owns which events count, and how long the past of a deleted session is shown. Reads a few rows at a time, so that others
are served meanwhile. Must never read the stored views: they know the present only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from contracts.base import seconds_between
from contracts.envelope import read_event
from contracts.queries import At, MessagesQuery, SessionQuery
from services.history.log.reader import LogReader
from services.history.views.fold import Recorded
from services.history.views.pages import NoSession
from services.history.views.past import Past

# Some milliseconds of the event loop that answers everybody.
ROWS_AT_ONCE = 256
# A long session takes a while: they wait for each other rather than slow everything else.
AT_ONCE = 2


class Travel:
    """now: history's clock, for the retention of what was deleted."""

    def __init__(self, log: LogReader, keep_deleted_s: float, now: Callable[[], str]) -> None:
        self._log = log
        self._keep_deleted_s = keep_deleted_s
        self._now = now
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def past(self, query: SessionQuery | MessagesQuery, at: At) -> Past | NoSession:
        """The session right after that version, or at that time, with the page of messages that the query asks for. A
        version or time beyond the present is the present.
        """
        page = (query.limit, query.after) if isinstance(query, MessagesQuery) else ()
        past = Past(query.user_id, query.session_id, *page)
        key = query.user_id, query.session_id
        version = await self._log.version_at(*key, at)
        deleted_at = await self._log.deleted_after(*key, version)
        if deleted_at is not None and seconds_between(deleted_at, self._now()) > self._keep_deleted_s:
            return "retention_over"
        reached = 0
        async with self._slots:
            while rows := await self._log.session_rows(*key, (reached, version), ROWS_AT_ONCE):
                for row in rows:
                    past.fold(Recorded(row.position, row.version, row.recorded_at, read_event(row.body)))
                reached = rows[-1].version
        return past
