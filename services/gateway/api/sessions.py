"""Step 2, gateway/api/sessions: create, resume, list, get, change, delete and restore sessions.

Owns the session routes. Must never decide whether a session exists: history does, and a name is only another id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from contracts.frames import EventFrame
from contracts.queries import PAGE_ROWS, SessionRow, SessionsReply
from contracts.turns import OutcomeMessage
from services.gateway.api.outcomes import accepted, keyed, outcome_response, refusal_of
from services.gateway.api.requests import (
    JSON,
    ChangeBody,
    CurrentUser,
    Gateway,
    Moment,
    SessionBody,
    check_accepts,
    read_body,
    read_nothing,
)
from services.gateway.bus import Sent
from services.gateway.intake import Refused
from services.gateway.parts import Parts
from services.gateway.queries import at_of
from services.gateway.sends import session_id_of


async def create_session(request: Request, user_id: CurrentUser, parts: Gateway) -> Response:
    """Create a session, or resume the one of this name: 201 where it is new, 200 where it was there."""
    check_accepts(request, JSON)

    async def create(key: str) -> Response:
        sent = await parts.sends.session(user_id, key, await read_body(request, SessionBody))
        return await _session_response(parts, user_id, sent.event.session_id, [sent])

    return await keyed(request, parts, create)


async def change_session(request: Request, session: str, user_id: CurrentUser, parts: Gateway) -> Response:
    """Change a session's title, or what a message does while an answer is on its way."""
    check_accepts(request, JSON)

    async def change(key: str) -> Response:
        given = await read_body(request, ChangeBody)
        session_id = session_id_of(user_id, session)
        sent = await parts.sends.change(user_id, session_id, key, given)
        return await _session_response(parts, user_id, session_id, sent)

    return await keyed(request, parts, change)


async def delete_session(request: Request, session: str, user_id: CurrentUser, parts: Gateway) -> Response:
    """Delete a session, which stops what is unfinished in it. It can be restored for a while. It takes no body."""
    check_accepts(request, JSON)
    session_id = session_id_of(user_id, session)

    async def delete(key: str) -> Response:
        await read_nothing(request)
        sent = await parts.sends.delete(user_id, session_id, key)
        return await outcome_response(parts, sent)

    return await keyed(request, parts, delete)


async def restore_session(request: Request, session: str, user_id: CurrentUser, parts: Gateway) -> Response:
    """Bring a deleted session back with its messages, within the time for it. It takes no body."""
    check_accepts(request, JSON)
    session_id = session_id_of(user_id, session)

    async def restore(key: str) -> Response:
        await read_nothing(request)
        sent = await parts.sends.restore(user_id, session_id, key)
        return await _session_response(parts, user_id, session_id, [sent])

    return await keyed(request, parts, restore)


async def list_sessions(
    request: Request,
    user_id: CurrentUser,
    parts: Gateway,
    limit: Annotated[int, Query(ge=1, le=PAGE_ROWS)] = 50,
    before: Annotated[str | None, Query(pattern=r"^[0-9]{1,18}$")] = None,
) -> SessionsReply:
    """The user's sessions, newest activity first. before: next of the page before."""
    if "at" in request.query_params:
        raise Refused("bad_request", "at: the list has no past; a session and its messages have")
    return await parts.history.sessions(user_id, limit, before)


async def get_session(session: str, user_id: CurrentUser, parts: Gateway, at: Moment = None) -> SessionRow:
    """One session, by its id or as name:<its name>: now, or as it was."""
    return await parts.history.session(user_id, session_id_of(user_id, session), at_of(at))


async def _session_response(parts: Parts, user_id: str, session_id: str, sent: Sequence[Sent]) -> Response:
    """The session once these events are recorded; 202 where that takes longer."""
    status = 200
    for each in sent:
        outcome = await each.outcome_within(parts.settings.gateway_outcome_s)
        if outcome is None:
            return accepted(each)
        if not outcome.recorded:
            raise refusal_of(outcome)
        if each.event.type == "session_started" and await _began_with(parts, user_id, outcome):
            status = 201
    row = await parts.history.session(user_id, session_id)
    parts.sends.know(user_id, row)
    return JSONResponse(row.model_dump(mode="json"), status_code=status)


async def _began_with(parts: Parts, user_id: str, outcome: OutcomeMessage) -> bool:
    """Whether the session began, or began again, with this very event: a start of one that is there leaves no row."""
    if outcome.version is None:
        return False
    page = await parts.history.events(user_id, outcome.session_id, after=outcome.version - 1, limit=1)
    first = [EventFrame.model_validate_json(raw) for raw in page.frames]
    return any(frame.event["event_id"] == outcome.event_id for frame in first)
