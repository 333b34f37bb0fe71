"""Step 4, gateway/api/outcomes: how an accepted send is told over HTTP: its key, its outcome, where to ask.

Owns the answer to a send that was recorded, refused or not yet decided. Must never say recorded of what is accepted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from starlette.responses import JSONResponse, Response

from contracts.turns import OutcomeMessage
from services.gateway.api.problems import of_refusal
from services.gateway.api.requests import KEY_HEADER, key_of
from services.gateway.bus import Sent
from services.gateway.intake import RETRY_AFTER_S, Refused
from services.gateway.parts import Parts


async def keyed(request: Request, parts: Parts, act: Callable[[str], Awaitable[Response]]) -> Response:
    """Act under the client's key, or a new one, and tell it: with it the client may repeat the request."""
    key = key_of(request) or parts.sends.new_key()
    try:
        response = await act(key)
    except Refused as refusal:
        response = of_refusal(refusal)
    response.raw_headers.append((KEY_HEADER.lower().encode(), key.encode()))
    return response


def refusal_of(outcome: OutcomeMessage) -> Refused:
    """The refusal that history recorded."""
    return Refused(
        outcome.code,  # type: ignore[arg-type]  # history writes codes of contracts/errors only
        retry_after_s=RETRY_AFTER_S if outcome.code == "queue_full" else None,
        event_id=outcome.event_id,
        turn_id=outcome.turn_id,
    )


def recorded(sent: Sent, outcome: OutcomeMessage) -> dict[str, Any]:
    """What a client is told of an event that is in the log."""
    of_turn = {} if sent.event.turn_id is None else {"turn_id": sent.event.turn_id}
    return {
        **of_turn,
        "status": "recorded",
        "event_id": sent.event.event_id,
        "session_id": sent.event.session_id,
        "position": outcome.position,
        "version": outcome.version,
    }


async def outcome_response(parts: Parts, sent: Sent) -> Response:
    """The outcome, where that is all there is to tell; 202 where it takes longer. Raises Refused."""
    outcome = await sent.outcome_within(parts.settings.gateway_outcome_s)
    if outcome is None:
        return accepted(sent)
    if not outcome.recorded:
        raise refusal_of(outcome)
    return JSONResponse(recorded(sent, outcome))


def accepted(sent: Sent) -> Response:
    """202: durable, and not decided yet. A turn's Location holds all that any gateway needs to answer."""
    event = sent.event
    of_turn = {} if event.turn_id is None else {"turn_id": event.turn_id}
    address = f"/v1/sessions/{event.session_id}" if event.turn_id is None else turn_address(sent)
    body = {**of_turn, "status": "accepted", "event_id": event.event_id, "session_id": event.session_id}
    return JSONResponse(body, status_code=202, headers={"Location": address})


def turn_address(sent: Sent) -> str:
    asked = urlencode({"event_id": sent.event.event_id, "data_hash": sent.event.data_hash})
    return f"/v1/sessions/{sent.event.session_id}/turns/{sent.event.turn_id}?{asked}"
