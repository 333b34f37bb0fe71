"""Beside the road, gateway/api/health: is the process alive, and can it keep its promises.

Owns the two routes that probes ask. Must never tell a prober anything about a user.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse

from services.gateway.api.requests import Gateway


async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


async def ready(parts: Gateway) -> JSONResponse:
    """Whether a message would be accepted and recorded now; reasons names what is missing."""
    reasons = await parts.ready()
    body: dict[str, Any] = {"ready": not reasons, "reasons": [asdict(reason) for reason in reasons]}
    return JSONResponse(body, status_code=503 if reasons else 200, headers={"Cache-Control": "no-store"})
