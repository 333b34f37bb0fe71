"""Steps 2 and 13, gateway/api/ws: the WebSocket door: one socket, many sessions, plain ASGI.

Owns one client's socket: what it sends is read, one frame after the other, what it watches is written as it comes. Must
never keep a task of its own for a socket where nothing happens, nor let one bad frame end more than itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from contracts import frames
from contracts.base import parse
from contracts.errors import Code, ContractError
from contracts.turns import OutcomeMessage
from services.gateway.api.problems import of_refusal, problem
from services.gateway.attach import ResyncReason, Watch
from services.gateway.auth import Caller
from services.gateway.bus import Sent
from services.gateway.connections import EXPEL_S, retry_ms
from services.gateway.direct import DirectProtocol, direct_of, text_message
from services.gateway.intake import Refused
from services.gateway.outbox import Outbox
from services.gateway.parts import Parts
from services.gateway.queries import HistoryAway, cursor_of
from services.gateway.relay import Step
from services.gateway.sends import session_id_of, uuid_of
from services.gateway.watching import attach_within

log = structlog.get_logger(__name__)

PATH = "/v1/ws"
SUBPROTOCOL = "chat.v1"
CLOSE_RESTART = 1012
CLOSE_TOO_SLOW = 1008
CLOSE_TOO_MANY = 1008
# HTTP's number, in the range that is free: a client must not come back with the same key.
CLOSE_UNAUTHORIZED = 4401
# Frames that change nothing; any other, a new one too, needs the scope `chat`.
READING = (frames.Authenticate, frames.Attach, frames.Detach, frames.Ping)
# How long an attach waits for a history that restarts before it is refused not_ready.
ATTACH_PATIENCE_S = 5.0
# Answers of ours that may wait before the next frame of a client is read: pings beyond it wait in the client's socket.
UNWRITTEN_BEFORE_READING = 100
GOODBYE_S = 5.0


class WebSocketDoor:
    """The ASGI application behind /v1/ws."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._sockets: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = scope.get("subprotocols", [])
        if scope["path"] != PATH:
            await problem("not_found")(scope, receive, send)
            return
        if offered and SUBPROTOCOL not in offered:
            await problem("bad_request", f"subprotocol: only {SUBPROTOCOL}")(scope, receive, send)
            return
        try:
            caller = self._parts.auth.caller_of(scope)
        except Refused as refusal:
            await of_refusal(refusal)(scope, receive, send)
            return
        await receive()
        # Of what was offered only the protocol is named: an answer must not repeat a key.
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})
        direct = direct_of(scope)
        direct.forget_handshake()
        try:
            caller = caller or await self._introduced(receive)
            if caller is not None:
                await self._serve(caller, receive, send, direct)
        except Refused as refusal:
            await _turn_away(refusal.code, send)

    async def _introduced(self, receive: Receive) -> Caller | None:
        """Who the first frame says it is; None where the client went. Raises Refused(unauthorized), as it does after
        some seconds without a frame."""
        try:
            async with asyncio.timeout(self._parts.settings.gateway_auth_s):
                message = await receive()
            if message["type"] == "websocket.disconnect":
                return None
            frame = frames.read_client_frame(message.get("text") or "")
        except (TimeoutError, ContractError) as error:
            raise Refused("unauthorized") from error
        if not isinstance(frame, frames.Authenticate):
            raise Refused("unauthorized")
        return self._parts.auth.caller_with(frame.key)

    async def _serve(self, caller: Caller, receive: Receive, send: Send, direct: DirectProtocol) -> None:
        """Raises Refused(too_many_sockets)."""
        bounded = not self._parts.auth.is_open
        if bounded and self._sockets[caller.user_id] >= self._parts.settings.gateway_user_sockets:
            raise Refused("too_many_sockets")
        self._sockets[caller.user_id] += 1
        try:
            await Socket(self._parts, caller, receive, send, direct).run()
        finally:
            self._sockets[caller.user_id] -= 1
            if not self._sockets[caller.user_id]:
                del self._sockets[caller.user_id]


class Socket:
    """One client's socket."""

    def __init__(self, parts: Parts, caller: Caller, receive: Receive, send: Send, direct: DirectProtocol) -> None:
        self.caller = caller
        self._parts = parts
        self._user_id = caller.user_id
        self._receive = receive
        self._send = send
        self._outbox = Outbox(
            direct.write,
            frames=parts.settings.gateway_client_frames,
            size=parts.settings.gateway_client_bytes,
            on_overflow=self._too_slow,
            write_now=direct.write_now,
        )
        self._watches: dict[str, Watch] = {}
        # Attaches of one socket go one after the other, so that their pages share its one buffer.
        self._attaching = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._ending = False

    async def run(self) -> None:
        self._parts.connections.add(self)
        self._reader = asyncio.current_task()
        try:
            await self._read()
        except asyncio.CancelledError:
            # Only _end cancels the reader, of a client that does not even read its goodbye.
            if not self._ending:
                raise
        finally:
            self._parts.connections.discard(self)
            self._outbox.abandon()
            for watch in self._watches.values():
                self._parts.feeds.leave(watch)
            for task in self._tasks - {asyncio.current_task()}:
                task.cancel()

    async def drain(self) -> None:
        """P5: answers in flight must not look finished; the client comes back, to another gateway or to the next."""
        self._end([frames.ErrorFrame(code="stream_cut")], CLOSE_RESTART, f"retry_ms={retry_ms()}")
        assert self._reader is not None
        await asyncio.wait({self._reader})

    def expel(self) -> None:
        """The key is no longer valid: nothing that is queued is for whoever holds it."""
        self._end([frames.ErrorFrame(code="unauthorized")], CLOSE_UNAUTHORIZED, "unauthorized", EXPEL_S)

    def deliver(self, _watch: Watch, step: Step, *, counted: bool) -> None:
        self._outbox.put(text_message(step.frame.raw), counted=counted)

    def attached(self, watch: Watch, version: int) -> None:
        self._put(frames.Attached(session_id=watch.session_id, epoch=watch.epoch or "", version=version))

    def resync(self, watch: Watch, reason: ResyncReason) -> None:
        self._put(frames.Resync(session_id=watch.session_id, reason=reason))
        self._forget(watch)

    async def drained(self) -> bool:
        if await self._outbox.drained(self._parts.settings.gateway_client_stall_s):
            return True
        self._too_slow()
        return False

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is None:
                self._put(frames.ErrorFrame(code="bad_frame"))
            else:
                await self._handle(text)
            if self._outbox.unwritten > UNWRITTEN_BEFORE_READING:
                await self._outbox.drained(self._parts.settings.gateway_client_stall_s)

    async def _handle(self, text: str) -> None:
        try:
            frame = frames.read_client_frame(text)
        except ContractError as error:
            self._put(_bad_frame(text, error.code))
            return
        try:
            self._parts.auth.check(self.caller, "read" if isinstance(frame, READING) else "chat")
            match frame:
                case frames.Authenticate():
                    self._stay(frame)
                case frames.Ping():
                    self._put(frames.Pong())
                case frames.Attach():
                    await self._attach(frame)
                case frames.Detach():
                    self._detach(frame)
                case frames.Send():
                    await self._send_message(frame, text)
                case frames.Cancel():
                    await self._cancel(frame)
        except Refused as refusal:
            if refusal.code == "unauthorized":
                self.expel()
            else:
                self._put(self._refused(frame, refusal))
        except Exception as error:  # one frame's fault is one frame's error; the socket's others live on
            log.error("frame_failed", frame=frame.type, exc_info=error)
            self._put(frames.ErrorFrame(code="internal"))

    def _stay(self, frame: frames.Authenticate) -> None:
        """A key that says the same user changes nothing; a socket never changes hands. Raises Refused."""
        if self._parts.auth.caller_with(frame.key).user_id != self._user_id:
            raise Refused("unauthorized")

    async def _attach(self, frame: frames.Attach) -> None:
        session_id = session_id_of(self._user_id, frame.session)
        after = cursor_of(frame.after)
        before = self._watches.get(session_id)
        if before is not None:
            self._forget(before)
        elif len(self._watches) >= self._parts.settings.gateway_attached:
            raise Refused("too_many_attached")
        watch = self._watches[session_id] = Watch(self._user_id, session_id, self)
        await self._parts.feeds.join(watch)
        watch.start(after)
        self._spawn(self._bring_up(watch))

    async def _bring_up(self, watch: Watch) -> None:
        async with self._attaching:
            if watch.ended:
                return
            try:
                await attach_within(self._parts.feeds, watch, ATTACH_PATIENCE_S)
            except Refused as refusal:
                self._put(frames.Refused(session_id=watch.session_id, code=refusal.code))
                self._forget(watch)
            except HistoryAway:
                self._put(frames.Refused(session_id=watch.session_id, code="not_ready"))
                self._forget(watch)

    def _detach(self, frame: frames.Detach) -> None:
        watch = self._watches.get(session_id_of(self._user_id, frame.session))
        if watch is not None:
            self._forget(watch)

    async def _send_message(self, frame: frames.Send, text: str) -> None:
        session_id = session_id_of(self._user_id, frame.session)
        # The client's own JSON, not the model's: 1 and 1.0, absent and null are different sends under one key.
        sent = await self._parts.sends.message(self._user_id, session_id, frame.client_message_id, parse(text))
        self._accepted(sent, frame.client_message_id)

    async def _cancel(self, frame: frames.Cancel) -> None:
        """Repeated, it needs no key: to stop twice is to stop once."""
        session_id = session_id_of(self._user_id, frame.session)
        turn_id = uuid_of(frame.turn, "turn_unknown")
        self._accepted(await self._parts.sends.cancel(self._user_id, session_id, turn_id, None), None)

    def _accepted(self, sent: Sent, client_message_id: str | None) -> None:
        self._put(_accepted_frame(sent, client_message_id))
        sent.outcome.add_done_callback(lambda task: self._tell_outcome(task, sent, client_message_id))

    def _tell_outcome(self, task: asyncio.Task[OutcomeMessage], sent: Sent, client_message_id: str | None) -> None:
        """A refusal after the accepted; what was recorded shows itself on the feed."""
        if task.cancelled() or task.exception() is not None or task.result().code is None:
            return
        refusal = Refused(_as_code(task.result()), event_id=sent.event.event_id, turn_id=sent.event.turn_id)
        self._put(_refused_frame(sent.event.session_id, refusal, client_message_id))

    def _refused(self, frame: frames.ClientFrame, refusal: Refused) -> frames.Refused:
        session = getattr(frame, "session", None)
        try:
            session_id = session_id_of(self._user_id, session) if session is not None else None
        except Refused:
            session_id = session
        return _refused_frame(session_id, refusal, getattr(frame, "client_message_id", None))

    def _forget(self, watch: Watch) -> None:
        self._parts.feeds.leave(watch)
        if self._watches.get(watch.session_id) is watch:
            del self._watches[watch.session_id]

    def _put(self, frame: frames.ServerFrame) -> None:
        self._outbox.put(_message(frame))

    def _too_slow(self) -> None:
        resyncs = [frames.Resync(session_id=session, reason="too_slow") for session in self._watches]
        self._end([*resyncs, frames.ErrorFrame(code="too_slow")], CLOSE_TOO_SLOW, "too_slow")

    def _end(self, last: list[frames.ServerFrame], code: int, reason: str, within_s: float = GOODBYE_S) -> None:
        if self._ending:
            return
        self._ending = True
        for watch in self._watches.values():
            watch.end()
        self._spawn(self._close([_message(frame) for frame in last], code, reason, within_s))

    async def _close(self, last: list[bytes], code: int, reason: str, within_s: float) -> None:
        if await self._outbox.finish(last, within_s):
            try:
                async with asyncio.timeout(within_s):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
                return
            except (TimeoutError, OSError):
                log.info("socket_cut", code=code)
        if self._reader is not None:
            self._reader.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _message(frame: frames.ServerFrame) -> bytes:
    return text_message(frames.encode(frame))


async def _turn_away(code: Code, send: Send) -> None:
    """The end of a socket that nobody was given: the error first, then the close."""
    closed = CLOSE_UNAUTHORIZED if code == "unauthorized" else CLOSE_TOO_MANY
    with contextlib.suppress(OSError, TimeoutError):  # it went by itself
        async with asyncio.timeout(EXPEL_S):
            await send({"type": "websocket.send", "text": frames.encode(frames.ErrorFrame(code=code)).decode()})
            await send({"type": "websocket.close", "code": closed, "reason": code})


def _bad_frame(text: str, code: Code) -> frames.ServerFrame:
    """To whom it belongs, where that can be read: a refusal of a session's frame; else just an error."""
    try:
        given = parse(text)
    except ContractError:
        return frames.ErrorFrame(code=code)
    if not isinstance(given, dict) or not isinstance(given.get("session"), str):
        return frames.ErrorFrame(code=code)
    key = given.get("client_message_id")
    return _refused_frame(given["session"], Refused(code), key if isinstance(key, str) else None)


def _accepted_frame(sent: Sent, client_message_id: str | None) -> frames.Accepted:
    present = {} if client_message_id is None else {"client_message_id": client_message_id}
    named = {"session_id": sent.event.session_id, "event_id": sent.event.event_id, "turn_id": sent.event.turn_id}
    return frames.Accepted.model_validate({**named, **present})


def _refused_frame(session_id: str | None, refusal: Refused, client_message_id: str | None) -> frames.Refused:
    """Fields that are not there are left out, but for session_id, which a client looks for."""
    optional = {"event_id": refusal.event_id, "turn_id": refusal.turn_id, "client_message_id": client_message_id}
    present = {name: value for name, value in optional.items() if value is not None}
    return frames.Refused.model_validate({"session_id": session_id, "code": refusal.code, **present})


def _as_code(outcome: OutcomeMessage) -> Code:
    return outcome.code  # type: ignore[return-value]  # history writes codes of contracts/errors only
