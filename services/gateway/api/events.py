"""Step 13, gateway/api/events: a session's events and tokens as server-sent events.

Owns the route that an EventSource follows, and when it may stop coming back. Must never end while something may come.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from contracts.frames import Cursor
from services.gateway.api.requests import EVENT_STREAM, CurrentUser, Gateway, check_accepts
from services.gateway.api.sse import EventStream
from services.gateway.attach import Watch
from services.gateway.parts import Parts
from services.gateway.queries import cursor_of
from services.gateway.sends import session_id_of
from services.gateway.watching import attach_within

# How long a stream that has begun waits for a history that restarts, before it says so and ends.
ATTACH_PATIENCE_S = 5.0


async def follow_session(
    request: Request,
    session: str,
    user_id: CurrentUser,
    parts: Gateway,
    after: Annotated[str | None, Query(max_length=100, description="a cursor: epoch.version[.attempt.index]")] = None,
) -> Response:
    """Everything of a session after a cursor, then live. Last-Event-ID, which a browser sends by itself, comes before
    ?after=. 204 tells a browser to stop: it has everything, and nothing runs or waits."""
    check_accepts(request, EVENT_STREAM)
    session_id = session_id_of(user_id, session)
    last_event_id = request.headers.get("last-event-id")
    cursor = cursor_of(last_event_id or after)
    if await _is_at_the_end(parts, user_id, session_id, cursor) and last_event_id:
        return Response(status_code=204)

    async def follow(stream: EventStream) -> None:
        watch = Watch(user_id, session_id, stream)
        try:
            await parts.feeds.join(watch)
            watch.start(cursor)
            await attach_within(parts.feeds, watch, ATTACH_PATIENCE_S)
            await stream.over()
        finally:
            parts.feeds.leave(watch)

    stream = EventStream(parts, follow)
    stream.session_id = session_id
    return stream


async def _is_at_the_end(parts: Parts, user_id: str, session_id: str, cursor: Cursor | None) -> bool:
    """Whether nothing is left after the cursor, and nothing runs or waits. Raises Refused where there is no session."""
    version = 0 if cursor is None else cursor.version
    page = await parts.history.events(user_id, session_id, after=version, limit=1)
    if cursor is None or (page.epoch, page.version) != (cursor.epoch, version) or page.running_turn_id is not None:
        return False
    row = await parts.history.session(user_id, session_id)
    return row.version == version and row.active_turn_id is None
