"""Step 2, gateway/api/guards: what every request passes before any route: bounds, Host, Origin.

Owns the refusals that come before a body is read or a socket accepted. Without the two lists any web page could read a
local user's chats, by a name that it points here or by a WebSocket, which no browser keeps within its origin. Must
never look at who asks: that is auth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.errors import Code
from services.gateway.api.problems import RETRY_AFTER_S, problem
from services.gateway.intake import Refused

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443}

# Nothing of ours is for another page to embed, sniff or link out of.
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
]


@dataclass(frozen=True, slots=True)
class Names:
    """What this gateway is called, and whose pages may use it. Compared whole: no suffix, prefix or case counts."""

    hosts: frozenset[str]
    origins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much one request may be, and how many there may be."""

    body_bytes: int
    header_bytes: int
    connections: int


def names_of(port: int, more_hosts: str, more_origins: str) -> Names:
    """The loopback names with the port, and what the settings add."""
    own = [f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")]
    if port == _DEFAULT_PORTS["http"]:
        own += ["127.0.0.1", "localhost", "[::1]"]
    return Names(
        hosts=frozenset([*own, *_listed(more_hosts)]),
        origins=frozenset([*(f"http://{host}" for host in own), *_listed(more_origins)]),
    )


class Guards:
    """Plain ASGI around the whole application."""

    def __init__(self, app: ASGIApp, names: Names, bounds: Bounds) -> None:
        self._app = app
        self._names = names
        self._bounds = bounds
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        self._open += 1
        try:
            code = self._refusal(scope)
            if code is not None:
                await _refuse(code, scope, receive, send)
            elif scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._serve(scope, receive, send)
        finally:
            self._open -= 1

    def _refusal(self, scope: Scope) -> Code | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._open > self._bounds.connections:
            return "too_many_connections"
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if size + sum(len(name) + len(value) for name, value in headers) > self._bounds.header_bytes:
            return "headers_too_large"
        if _only(headers, b"host") not in self._names.hosts:
            return "host_not_allowed"
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        foreign = any(name == b"origin" for name, _ in headers) and _only(headers, b"origin") not in self._names.origins
        if unsafe and foreign:
            return "origin_not_allowed"
        length = _only(headers, b"content-length")
        if length is not None and (not length.isdigit() or int(length) > self._bounds.body_bytes):
            return "body_too_large"
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The route, with its body counted as it comes: a chunked one says no length."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._bounds.body_bytes:
                raise Refused("body_too_large")
            return message

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_SECURITY_HEADERS]}
            await send(message)

        if scope["method"] == "HEAD":
            # As a GET of which uvicorn leaves the body out. Whoever asks so waits for no stream: it ends as it begins.
            await self._app({**scope, "method": "GET"}, _gone, secured)
        else:
            await self._app(scope, counted, secured)


async def _gone() -> Message:
    return {"type": "http.disconnect"}


async def _refuse(code: Code, scope: Scope, receive: Receive, send: Send) -> None:
    """A problem response; on a WebSocket in place of the handshake."""
    # The connection stays: closing it under a body that still comes would reset it, and the client would read nothing.
    headers = {"Retry-After": str(RETRY_AFTER_S)} if code == "too_many_connections" else {}
    response = problem(code, headers=headers)
    response.raw_headers.extend(_SECURITY_HEADERS)
    await response(scope, receive, send)


def _only(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """The value of a header that is there once. Twice is as wrong as never."""
    values = [value for name, value in headers if name == wanted]
    return values[0].decode("latin-1") if len(values) == 1 else None


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
