"""Step 2, gateway/api/problems: every error of the HTTP doors as RFC 9457's problem+json with a stable code.

Owns the one shape of an error. Must never show a stack, a class name or what the client sent, but for a model's
name.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Route

from contracts.errors import MEANING, STATUS, Code
from services.gateway.intake import Refused
from services.gateway.queries import HistoryAway

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
# A name, not an address: a browser's error page is no place to look a code up.
TYPE_BASE = "urn:chatlog:problem:"
# The one scheme there is. No error= beside it: what is wrong with a key is not told.
CHALLENGE = 'Bearer realm="chatlog"'
# What a client is asked to wait where something of ours is not there yet.
RETRY_AFTER_S = 1

_CODE_OF_STATUS: dict[int, Code] = {
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    415: "unsupported_media_type",
}

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(STATUS)},
        "event_id": {"type": "string", "format": "uuid"},
        "turn_id": {"type": "string", "format": "uuid"},
    },
}


def problem(
    code: Code, detail: str = "", *, headers: dict[str, str] | None = None, **members: str | None
) -> JSONResponse:
    """The response of a code. members that are None are left out."""
    body: dict[str, Any] = {
        "type": TYPE_BASE + code,
        "title": MEANING[code],
        "status": STATUS[code],
        "code": code,
    }
    if detail:
        body["detail"] = detail
    body |= {name: value for name, value in members.items() if value is not None}
    if code == "unauthorized":
        headers = {**(headers or {}), "WWW-Authenticate": CHALLENGE}
    return _Problem(body, status_code=STATUS[code], headers=headers)


class _Problem(JSONResponse):
    """With a line's end: most are read in a terminal."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"


def of_refusal(refusal: Refused, *, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response of a refusal."""
    headers = dict(headers or {})
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    return problem(refusal.code, refusal.detail, headers=headers, event_id=refusal.event_id, turn_id=refusal.turn_id)


def install(app: FastAPI) -> None:
    """Every way in which a route can fail ends here."""

    async def refused(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refused)
        return of_refusal(error)

    async def history_away(_request: Request, _error: Exception) -> JSONResponse:
        return problem("not_ready", "history does not answer", headers={"Retry-After": str(RETRY_AFTER_S)})

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return problem("bad_request", where_of(error.errors()))

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return problem("method_not_allowed", headers={"Allow": ", ".join(_methods_at(request))})
        return problem(_CODE_OF_STATUS.get(error.status_code, "bad_request"))

    async def fault(request: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", path=request.url.path, exc_info=error)
        return problem("internal")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HistoryAway, history_away)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, fault)


def _methods_at(request: Request) -> list[str]:
    """The methods of all routes with this path: Starlette tells those of the first one alone."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found | {"HEAD"} if "GET" in found else found)


def where_of(errors: Any) -> str:
    """Which fields are wrong and how, without their values."""
    return "; ".join(
        f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['type']}" for error in list(errors)[:5]
    )
