"""Step 2, gateway/api/requests: what a route reads of a request: user, key, body, what is accepted, cursor.

Owns the shapes of bodies and the strictness with which they are read. The client's own JSON goes on unchanged: a model
checks it, and what is written is what was sent. Must never fill in a default.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query, Request
from pydantic import Field, ValidationError

from contracts.base import KEY_BYTES, Contract, Key, ModelName, Text, Uuid, parse
from contracts.errors import ContractError
from contracts.events import OnBusy, Options
from services.gateway.api.guards import SAFE_METHODS
from services.gateway.api.problems import where_of
from services.gateway.intake import Refused
from services.gateway.parts import Parts

T = TypeVar("T", bound=Contract)

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
# A MiB over the slowest line that anybody chats on; a body that never ends must not keep its request for ever.
BODY_TIMEOUT_S = 30.0
KEY_HEADER = "Idempotency-Key"


class SessionBody(Contract):
    """A session to create, or to resume by its name."""

    name: Key | None = None
    title: Annotated[Text, Field(max_length=200)] | None = None
    model: ModelName | None = None
    system: Annotated[Text, Field(max_length=100_000)] | None = None
    on_busy: OnBusy | None = None


class ChangeBody(Contract):
    """What is to change of a session. What is left out stays, so null is nothing that either can be."""

    title: Annotated[Text, Field(max_length=200)] = ""
    on_busy: OnBusy = "queue"


class MessageBody(Contract):
    """A message. parent_id left out: after the session's last answer; null: a new beginning."""

    text: Text
    parent_id: Uuid | None = None
    model: ModelName | None = None
    options: Options | None = None
    on_busy: OnBusy | None = None


class NoBody(Contract):
    """Nothing: the address says it all."""


# async, though nothing waits: FastAPI takes a thread for each dependency that is not (a tenth of its time, measured).
async def parts_of(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def user_of(request: Request, parts: Annotated[Parts, Depends(parts_of)]) -> str:
    """The user of a request that may do what its method does. Raises Refused(unauthorized), Refused(forbidden)."""
    caller = parts.auth.caller_of(request.scope)
    if caller is None:
        raise Refused("unauthorized")
    parts.auth.check(caller, "read" if request.method in SAFE_METHODS else "chat")
    # A stream outlives its route: it must end when the key does.
    request.scope["caller"] = caller
    return caller.user_id


Moment = Annotated[str | None, Query(max_length=40, description="a version, or a time: 2026-11-20T10:00:00Z")]
CurrentUser = Annotated[str, Depends(user_of)]
Gateway = Annotated[Parts, Depends(parts_of)]


def key_of(request: Request) -> str | None:
    """The client's idempotency key. Raises Refused(bad_request)."""
    values = [value for name, value in request.scope["headers"] if name == KEY_HEADER.lower().encode()]
    if not values:
        return None
    try:
        key: str = values[0].decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_request", f"{KEY_HEADER}: not UTF-8") from error
    if len(values) > 1 or not 1 <= len(values[0]) <= KEY_BYTES:
        raise Refused("bad_request", f"{KEY_HEADER}: once, of 1 to {KEY_BYTES} bytes")
    return key


async def read_body(request: Request, shape: type[T]) -> dict[str, Any]:
    """The body as the client sent it, once it has the documented shape. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Refused("unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.body()
        given = parse(body)
        shape.model_validate(given)
    except TimeoutError as error:
        raise Refused("bad_request", "the body did not come in time") from error
    except ContractError as error:
        raise Refused("bad_request", error.reason) from error
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refused("bad_request", where_of(problems)) from error
    assert isinstance(given, dict)
    return given


async def read_nothing(request: Request) -> None:
    """Where no body is needed, one that comes is read and checked all the same. Raises Refused."""
    if "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0":
        await read_body(request, NoBody)


def check_accepts(request: Request, media_type: str) -> None:
    """Raises Refused(not_acceptable) where the client takes no such answer."""
    if not _accepts(request, media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        raise Refused("not_acceptable")


def wants_stream(request: Request) -> bool:
    """Whether the client names text/event-stream itself: a wildcard is no wish for a stream."""
    return bool(request.headers.get("accept")) and _accepts(request, EVENT_STREAM)


def _accepts(request: Request, *media_types: str) -> bool:
    accept = request.headers.get("accept", "")
    named = {part.partition(";")[0].strip().lower() for part in accept.split(",")} - {""}
    return not named or not named.isdisjoint(media_types)
