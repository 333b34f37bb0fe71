"""Step 2, gateway/api/routes: every route with its one policy, in one table.

Owns what is served at all: a route that is not here does not exist, and none is here without a policy. Must never hold
what a route does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI

from contracts.base import Contract
from contracts.queries import MessagesReply, SessionRow, SessionsReply
from contracts.receipts import Receipt
from services.gateway.api import documents, events, health, messages, models, sessions, turns, ws
from services.gateway.api.problems import MEDIA_TYPE, PROBLEM_SCHEMA
from services.gateway.api.requests import EVENT_STREAM, JSON, KEY_HEADER, ChangeBody, MessageBody, SessionBody

# user: it needs a user, whose token is in all that it reaches. public: it tells nothing of anybody.
Policy = Literal["user", "public"]


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the HTTP doors. statuses: what it answers beside a problem."""

    method: str
    path: str
    policy: Policy
    endpoint: Callable[..., Any]
    statuses: dict[int, str] = field(default_factory=lambda: {200: "OK"})
    body: type[Contract] | None = None
    reply: type[Contract] | None = None
    streams: bool = False
    listed: bool = True


_RECORDED = {201: "It is recorded", 202: "It is accepted and not yet recorded; Location says where to ask"}

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/sessions", "user", sessions.create_session, {200: "It was there", **_RECORDED}, SessionBody),
    Route("GET", "/v1/sessions", "user", sessions.list_sessions, reply=SessionsReply),
    Route("GET", "/v1/sessions/{session}", "user", sessions.get_session, reply=SessionRow),
    Route(
        "PATCH",
        "/v1/sessions/{session}",
        "user",
        sessions.change_session,
        {200: "It is recorded", 202: _RECORDED[202]},
        ChangeBody,
    ),
    Route(
        "DELETE",
        "/v1/sessions/{session}",
        "user",
        sessions.delete_session,
        {200: "It is recorded", 202: _RECORDED[202]},
    ),
    Route(
        "POST",
        "/v1/sessions/{session}/restore",
        "user",
        sessions.restore_session,
        {200: "It is recorded", 202: _RECORDED[202]},
    ),
    Route("GET", "/v1/sessions/{session}/messages", "user", messages.list_messages, reply=MessagesReply),
    Route(
        "POST",
        "/v1/sessions/{session}/messages",
        "user",
        messages.send_message,
        {200: "The answer, as a stream", **_RECORDED},
        MessageBody,
        streams=True,
    ),
    Route("GET", "/v1/sessions/{session}/turns/{turn}", "user", turns.get_turn),
    Route("GET", "/v1/sessions/{session}/turns/{turn}/receipt", "user", turns.get_receipt, reply=Receipt),
    Route(
        "POST",
        "/v1/sessions/{session}/turns/{turn}/cancel",
        "user",
        turns.cancel_turn,
        {200: "It is recorded", 202: _RECORDED[202]},
    ),
    Route(
        "GET",
        "/v1/sessions/{session}/events",
        "user",
        events.follow_session,
        {200: "Events and tokens, as a stream", 204: "Nothing is left, and nothing runs or waits"},
        streams=True,
    ),
    Route("GET", "/v1/models", "user", models.list_models),
    Route("GET", "/healthz", "public", health.alive),
    Route("GET", "/readyz", "public", health.ready, {200: "Ready", 503: "Not ready; reasons says why"}),
    Route("GET", "/", "public", documents.front, listed=False),
    Route("GET", "/openapi.json", "public", documents.openapi, listed=False),
    Route("GET", "/docs", "public", documents.openapi_page, listed=False),
    Route("GET", "/docs/{name}", "public", documents.static_file, listed=False),
    Route("GET", "/asyncapi.json", "public", documents.asyncapi, listed=False),
    Route("GET", "/asyncapi", "public", documents.asyncapi_page, listed=False),
)

# The WebSocket door is plain ASGI, beside FastAPI.
WEBSOCKET_ROUTES: tuple[tuple[str, Policy], ...] = ((ws.PATH, "user"),)


def install(app: FastAPI) -> None:
    """Add every route to the application."""
    for route in ROUTES:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            response_model=None,
            status_code=min(route.statuses),
            responses=_responses(route),
            openapi_extra=_extra(route),
            include_in_schema=route.listed,
        )


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {
        "default": {"description": "A problem (RFC 9457)", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}}
    }
    for status, description in route.statuses.items():
        found[status] = {"description": description}
        if route.reply is not None:
            found[status]["content"] = {JSON: {"schema": _schema(route.reply)}}
        elif route.streams and status == min(route.statuses):
            found[status]["content"] = {EVENT_STREAM: {"schema": {"type": "string"}}}
    return found


def _extra(route: Route) -> dict[str, Any]:
    """What FastAPI cannot see, since bodies are read as the client wrote them."""
    if route.method in ("GET", "HEAD"):
        return {}
    key = {
        "name": KEY_HEADER,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        "description": "Repeat it to repeat the request; a new one is made and returned where it is absent.",
    }
    if route.body is None:
        return {"parameters": [key]}
    body = {"required": True, "content": {JSON: {"schema": _schema(route.body)}}}
    return {"parameters": [key], "requestBody": body}


def _schema(shape: type[Contract]) -> dict[str, Any]:
    """Whole in itself: a $ref into another document would be broken in OpenAPI."""
    schema = shape.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolved(definitions[value["$ref"].rpartition("/")[2]])
            return {name: resolved(item) for name, item in value.items()}
        return [resolved(item) for item in value] if isinstance(value, list) else value

    whole: dict[str, Any] = resolved(schema)
    return whole
