"""Health: is the broker fit for an accepted message, and the small listener that answers /healthz and /readyz.

Owns the broker's part of readiness, read over its system account and from its streams, and the listener of services
that have no door of their own. Asking costs no interpreter start-up: it is plain HTTP. Must never be reachable by a web
page: a unix socket, or loopback with a list of hosts.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nats.errors
from nats.js.api import StreamConfig

from services.runtime import streams
from services.runtime.bus import Bus, NoAnswer, NotSent

# Asked by probes every few seconds and by people: an answer of two seconds ago is as good, and bounds the cost.
CACHE_S = 2.0
BROKER_TIMEOUT_S = 2.0
# A request line and a few headers; a probe sends 100 bytes.
_MAX_HEAD_BYTES = 8 * 1024
_HEAD_TIMEOUT_S = 2.0
_MAX_CONNECTIONS = 16
_UNIX = "unix:"
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PHRASES = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 421: "Misdirected Request",
            503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a service is not ready: a stable name, and words for an operator."""

    name: str
    detail: str


Readiness = Callable[[], Awaitable[Sequence[Reason]]]


class BrokerHealth:
    """Whether the broker keeps its promises: it is there, healthy, syncs always, and its streams are as declared."""

    def __init__(self, bus: Bus, system: Bus, wanted: Sequence[StreamConfig]) -> None:
        self._bus = bus
        self._system = system
        self._wanted = wanted
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")
        self._reasons: list[Reason] = []

    async def reasons(self) -> list[Reason]:
        """Why it is not fit; empty: it is."""
        async with self._lock:
            if time.monotonic() - self._asked_at > CACHE_S:
                self._reasons = await self._ask()
                self._asked_at = time.monotonic()
            return list(self._reasons)

    async def _ask(self) -> list[Reason]:
        if not self._bus.connected:
            return [Reason("broker_disconnected", "no connection to NATS")]
        return [*await server_reasons(self._system), *await self._stream_reasons()]

    async def _stream_reasons(self) -> list[Reason]:
        try:
            found = await streams.check_streams(self._bus.jetstream(BROKER_TIMEOUT_S), self._wanted)
        except (nats.errors.Error, OSError) as error:
            return [Reason("streams_unknown", f"JetStream does not answer: {type(error).__name__}")]
        return [Reason("stream_differs", str(difference)) for difference in found]


async def server_reasons(system: Bus) -> list[Reason]:
    """What the server itself says over its system account."""
    try:
        health = await _server(system, "HEALTHZ")
        jetstream = await _server(system, "JSZ", config=True)
    except (NotSent, NoAnswer, ValueError, KeyError) as error:
        return [Reason("broker_unknown", f"the system account does not answer: {error}")]
    reasons = []
    if health.get("status") != "ok":
        reasons.append(Reason("broker_unhealthy", f"{health.get('status')}: {health.get('error', '')}"))
    if not jetstream.get("config", {}).get("sync_always", False):
        reasons.append(Reason("broker_unsynced", "sync_interval is not always: an accepted message could be lost"))
    return reasons


async def _server(system: Bus, question: str, **options: Any) -> dict[str, Any]:
    raw = await system.request(f"$SYS.REQ.SERVER.PING.{question}", json.dumps(options).encode(), BROKER_TIMEOUT_S)
    answer: dict[str, Any] = json.loads(raw)["data"]
    return answer


@asynccontextmanager
async def listening(address: str, ready: Readiness) -> AsyncIterator[None]:
    """Answer at address (unix:PATH or HOST:PORT) while inside; an empty address answers nowhere."""
    if not address:
        yield
        return
    if address.startswith(_UNIX):
        inside = _on_unix_socket(Path(address.removeprefix(_UNIX)), ready)
    else:
        inside = _on_tcp(address, ready)
    async with inside:
        yield


@asynccontextmanager
async def _on_unix_socket(path: Path, ready: Readiness) -> AsyncIterator[None]:
    # A killed process leaves its socket behind, and asyncio replaces a socket but no other file.
    with suppress(FileNotFoundError):
        os.unlink(path)
    server = await asyncio.start_unix_server(_Listener(ready, _LOOPBACK_NAMES).serve, path, limit=_MAX_HEAD_BYTES)
    os.chmod(path, 0o600)
    try:
        yield
    finally:
        server.close()
        with suppress(FileNotFoundError):
            os.unlink(path)


@asynccontextmanager
async def _on_tcp(address: str, ready: Readiness) -> AsyncIterator[None]:
    host, _, port = address.rpartition(":")
    listener = _Listener(ready, _LOOPBACK_NAMES | {host})
    server = await asyncio.start_server(listener.serve, host.strip("[]"), int(port), limit=_MAX_HEAD_BYTES)
    try:
        yield
    finally:
        server.close()


class _Listener:
    """One request per connection, answered and closed."""

    def __init__(self, ready: Readiness, hosts: frozenset[str]) -> None:
        self._ready = ready
        self._hosts = hosts
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MAX_CONNECTIONS:
                await self._answer(reader, writer)
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):  # the peer went first, which is its right
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        status, body = await self._route(head.decode("latin-1").split("\r\n"))
        payload = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(payload)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n".encode()
            + payload
        )
        with suppress(OSError):
            await writer.drain()

    async def _route(self, lines: list[str]) -> tuple[int, dict[str, Any]]:
        method, _, rest = lines[0].partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        hosts = [line.partition(":")[2].strip() for line in lines[1:] if line.lower().startswith("host:")]
        if len(hosts) != 1:
            return 400, {"error": "bad_request"}
        if _without_port(hosts[0]) not in self._hosts:
            return 421, {"error": "host_not_allowed"}
        if path not in ("/healthz", "/readyz"):
            return 404, {"error": "not_found"}
        if method != "GET":
            return 405, {"error": "method_not_allowed"}
        if path == "/healthz":
            return 200, {"status": "ok"}
        reasons = await self._ready()
        return (503 if reasons else 200), {"ready": not reasons, "reasons": [asdict(reason) for reason in reasons]}


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()
