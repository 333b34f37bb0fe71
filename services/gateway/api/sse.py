"""Step 13, gateway/api/sse: one stream of server-sent events, and how it ends.

Owns the byte form of the stream and its last frame: a stream that is cut ends with an error, never as if it were whole.
Must never put a blank line after a heartbeat: some clients dispatch an empty event there once an id was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from contracts.errors import Code
from contracts.frames import Attached, ErrorFrame, Resync, ServerFrame, encode
from services.gateway.api.requests import EVENT_STREAM
from services.gateway.attach import ResyncReason, Watch
from services.gateway.auth import LOCAL
from services.gateway.connections import EXPEL_S, retry_ms
from services.gateway.intake import Refused
from services.gateway.outbox import Outbox
from services.gateway.parts import Parts
from services.gateway.queries import HistoryAway
from services.gateway.relay import Step

log = structlog.get_logger(__name__)

HEARTBEAT = b": hb\n"
# An id without a value makes the client forget its cursor: its next try begins anew.
FORGET_CURSOR = ""
# How long the last frames of a stream that ends may take to be written.
GOODBYE_S = 5.0

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Watches one session for one client; with turn_id, only that turn, to its end."""

    media_type = EVENT_STREAM

    def __init__(self, parts: Parts, watch: Callable[[EventStream], Awaitable[None]]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self.caller = LOCAL
        self._parts = parts
        self._watch_it = watch
        self._over = asyncio.Event()
        self._closed = asyncio.Event()
        self._last: list[bytes] | None = None
        self._goodbye_s = GOODBYE_S
        self._send: Send | None = None
        self._outbox = Outbox(
            self._write,
            frames=parts.settings.gateway_client_frames,
            size=parts.settings.gateway_client_bytes,
            on_overflow=self._too_slow,
        )
        self.only_turn_id: str | None = None
        self.session_id: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self.caller = scope["caller"]
        self._parts.connections.add(self)
        tasks = [asyncio.create_task(self._watching()), asyncio.create_task(self._until_gone(receive))]
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._beat_until_over()
            await self._say_goodbye()
        finally:
            self._outbox.abandon()
            self._parts.connections.discard(self)
            self._closed.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """P5: an answer that goes on elsewhere must not look finished here."""
        self._end([ErrorFrame(code="stream_cut")])
        await self._closed.wait()

    def expel(self) -> None:
        """The key is no longer valid: nothing that is queued is for whoever holds it."""
        self._goodbye_s = EXPEL_S
        self._end([ErrorFrame(code="unauthorized")])

    def put(self, frame: ServerFrame) -> None:
        """A frame of the door's own, without a cursor."""
        self._outbox.put(_event(encode(frame), None))

    def finish(self) -> None:
        """What is queued is sent, then the stream ends: its last frame was a terminal, a refusal or a resync."""
        self._over.set()

    async def over(self) -> None:
        """Wait for the stream's end."""
        await self._over.wait()

    async def over_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    def deliver(self, watch: Watch, step: Step, *, counted: bool) -> None:
        if self.only_turn_id is not None and step.frame.turn_id != self.only_turn_id:
            return
        self._outbox.put(_event(step.frame.raw, watch.cursor_at(step)), counted=counted)
        if self.only_turn_id is not None and step.frame.is_terminal:
            watch.end()
            self.finish()

    def attached(self, watch: Watch, version: int) -> None:
        if self.only_turn_id is None:
            frame = Attached(session_id=watch.session_id, epoch=watch.epoch or "", version=version)
            self._outbox.put(_event(encode(frame), watch.cursor), counted=False)

    def resync(self, watch: Watch, reason: ResyncReason) -> None:
        frame = Resync(session_id=watch.session_id, reason=reason)
        self._outbox.put(_event(encode(frame), FORGET_CURSOR), counted=False)
        self.finish()

    async def drained(self) -> bool:
        if await self._outbox.drained(self._parts.settings.gateway_client_stall_s):
            return True
        self._too_slow()
        return False

    async def _watching(self) -> None:
        code: Code = "stream_cut"
        try:
            await self._watch_it(self)
            return
        except HistoryAway:
            code = "stream_cut"
        except Refused as refusal:
            code = refusal.code
        except Exception as error:  # whatever it is, the client must not take the stream for whole
            log.error("stream_failed", session_id=self.session_id, exc_info=error)
            code = "internal"
        self._end([ErrorFrame(code=code)])

    async def _beat_until_over(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._parts.settings.gateway_heartbeat_s):
                    await self._over.wait()
            if not self._over.is_set():
                self._outbox.put(HEARTBEAT)

    async def _say_goodbye(self) -> None:
        if self._last is None:
            await self._outbox.drained(GOODBYE_S)
        else:
            await self._outbox.finish(self._last, self._goodbye_s)
        await self._write(b"", more=False)

    async def _until_gone(self, receive: Receive) -> None:
        message: Message = {}
        while message.get("type") != "http.disconnect":
            message = await receive()
        self._outbox.abandon()
        self.finish()

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        assert self._send is not None
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    def _too_slow(self) -> None:
        last: list[ServerFrame] = [ErrorFrame(code="too_slow")]
        if self.session_id is not None:
            last.insert(0, Resync(session_id=self.session_id, reason="too_slow"))
        self._end(last)

    def _end(self, last: list[ServerFrame]) -> None:
        """End with these frames, and say when to come back; a stream that ends already keeps its own end."""
        if not self._over.is_set():
            events = [_event(encode(frame), None) for frame in last]
            # With a frame that has data: a block without any is an empty event to some clients.
            events[-1] = b"retry: %d\n" % retry_ms() + events[-1]
            self._last = events
            self._over.set()


def _event(text: bytes, cursor: str | None) -> bytes:
    """id: where the client is after it; without one the client keeps the id that it has."""
    head = "" if cursor is None else f"id: {cursor}\n"
    return b"%bdata: %b\n\n" % (head.encode(), text)
