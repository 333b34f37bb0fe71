"""Step 4, gateway/api/turns: what became of a send, and where its turn is.

Owns the route that a 202 points to. Must never keep what it needs in this process: any gateway answers it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query

from contracts import ids
from contracts.queries import TurnRow
from services.gateway.api.requests import CurrentUser, Gateway
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
    """pending, recorded or refused, and the turn once it is recorded. event_id and data_hash: as a 202's Location has
    them; without them a turn that is not recorded is turn_unknown."""
    session_id = session_id_of(user_id, session)
    turn_id = uuid_of(turn, "turn_unknown")
    row = await _row(parts, user_id, turn_id)
    if row is not None and row.session_id == session_id:
        return {"status": "recorded", "turn": row.model_dump(mode="json")}
    if row is not None or event_id is None or data_hash is None or ids.turn_id_of(event_id) != turn_id:
        raise Refused("turn_unknown")
    told = await parts.history.outcome(user_id, event_id, data_hash)
    outcome = told.outcome
    if outcome is not None and outcome.session_id != session_id:
        raise Refused("turn_unknown")
    return {"status": told.status, "turn": None, "code": None if outcome is None else outcome.code}


async def _row(parts: Parts, user_id: str, turn_id: str) -> TurnRow | None:
    try:
        return await parts.history.turn(user_id, turn_id)
    except Refused as refusal:
        if refusal.code != "turn_unknown":
            raise
        return None
