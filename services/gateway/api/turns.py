"""Steps 2 and 4, gateway/api/turns: what became of a send, where its turn is, and how it is stopped.

Owns the route that a 202 points to, and the one that stops a turn. Must never keep what it needs in this process: any
gateway answers it; nor decide whether a turn can still be stopped: history does.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request
from starlette.responses import Response

from contracts.queries import TurnRow
from contracts.receipts import Receipt
from services.gateway.api.outcomes import keyed, outcome_response
from services.gateway.api.requests import JSON, CurrentUser, Gateway, check_accepts, read_nothing
from services.gateway.intake import Refused
from services.gateway.parts import Parts
from services.gateway.sends import session_id_of, uuid_of


async def get_turn(
    session: str,
    turn: str,
    user_id: CurrentUser,
    parts: Gateway,
    event_id: Annotated[str | None, Query(max_length=36)] = None,
    data_hash: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """pending, recorded or refused, and the turn once it is recorded. event_id and data_hash: of the send or the stop,
    as a 202's Location has them; without them a turn that is not recorded is turn_unknown."""
    session_id = session_id_of(user_id, session)
    turn_id = uuid_of(turn, "turn_unknown")
    row = await _row(parts, user_id, turn_id)
    if row is not None and row.session_id != session_id:
        raise Refused("turn_unknown")
    found = None if row is None else row.model_dump(mode="json")
    if row is not None and event_id in (None, row.event_id):
        return {"status": "recorded", "turn": found}
    if event_id is None or data_hash is None:
        raise Refused("turn_unknown")
    told = await parts.history.outcome(user_id, event_id, data_hash)
    outcome = told.outcome
    if outcome is not None and (outcome.session_id, outcome.turn_id) != (session_id, turn_id):
        raise Refused("turn_unknown")
    return {"status": told.status, "turn": found, "code": None if outcome is None else outcome.code}


async def get_receipt(
    session: str,
    turn: str,
    user_id: CurrentUser,
    parts: Gateway,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> Receipt:
    """What is behind a turn's answer: what its model was shown, by which rules, and how often it was tried. messages is
    a page; after: next of the page before. not_assembled: that is not chosen yet, or the turn ended before."""
    return await parts.history.receipt(user_id, session_id_of(user_id, session), uuid_of(turn, "turn_unknown"), after)


async def cancel_turn(request: Request, session: str, turn: str, user_id: CurrentUser, parts: Gateway) -> Response:
    """Stop a turn. 200 once that is recorded, 202 after 2 s; the turn's end comes on the feed. It takes no body."""
    check_accepts(request, JSON)
    session_id = session_id_of(user_id, session)
    turn_id = uuid_of(turn, "turn_unknown")

    async def cancel(key: str) -> Response:
        await read_nothing(request)
        sent = await parts.sends.cancel(user_id, session_id, turn_id, key)
        return await outcome_response(parts, sent)

    return await keyed(request, parts, cancel)


async def _row(parts: Parts, user_id: str, turn_id: str) -> TurnRow | None:
    try:
        return await parts.history.turn(user_id, turn_id)
    except Refused as refusal:
        if refusal.code != "turn_unknown":
            raise
        return None
