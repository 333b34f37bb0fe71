"""Step 2, gateway/api/messages: list a session's messages, and send one.

Owns the three ways to be told of a send: when it is recorded, when its answer is there, or as a stream of the answer.
Must never end an answer by itself: its terminal event does, or an error says that the stream was cut.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.responses import JSONResponse, Response

from contracts import frames
from contracts.errors import Code
from contracts.queries import PAGE_ROWS, MessagesReply
from contracts.turns import OutcomeMessage
from services.gateway.api.outcomes import accepted, keyed, recorded, refusal_of
from services.gateway.api.problems import problem
from services.gateway.api.requests import (
    JSON,
    CurrentUser,
    Gateway,
    MessageBody,
    Moment,
    check_accepts,
    read_body,
    wants_stream,
)
from services.gateway.api.sse import EventStream
from services.gateway.attach import Watch
from services.gateway.bus import Sent
from services.gateway.intake import Refused
from services.gateway.parts import Parts
from services.gateway.queries import HistoryAway, at_of
from services.gateway.sends import session_id_of
from services.gateway.watching import AnswerViewer, attach_within


async def list_messages(
    session: str,
    user_id: CurrentUser,
    parts: Gateway,
    limit: Annotated[int, Query(ge=1, le=PAGE_ROWS)] = PAGE_ROWS,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    at: Moment = None,
) -> MessagesReply:
    """A session's messages in order, now or as they were. after: next of the page before."""
    return await parts.history.messages(user_id, session_id_of(user_id, session), after, limit, at_of(at))


async def send_message(
    request: Request,
    session: str,
    user_id: CurrentUser,
    parts: Gateway,
    wait: Annotated[Literal["answer"] | None, Query()] = None,
) -> Response:
    """Send a message. 201 once it is recorded, 202 after 2 s; ?wait=answer waits for the answer's end; with
    Accept: text/event-stream the answer is streamed."""
    stream = wants_stream(request)
    if not stream:
        check_accepts(request, JSON)
    session_id = session_id_of(user_id, session)

    async def send(key: str) -> Response:
        given = await read_body(request, MessageBody)
        if stream:
            return await _streamed(parts, user_id, session_id, key, given)
        if wait is not None:
            viewer = AnswerViewer(request.scope["caller"])
            parts.connections.add(viewer)
            try:
                return await _with_answer(parts, viewer, await parts.sends.message(user_id, session_id, key, given))
            finally:
                parts.connections.discard(viewer)
        sent = await parts.sends.message(user_id, session_id, key, given)
        outcome = await sent.outcome_within(parts.settings.gateway_outcome_s)
        return accepted(sent) if outcome is None else _recorded(sent, outcome)

    return await keyed(request, parts, send)


def _recorded(sent: Sent, outcome: OutcomeMessage, **more: Any) -> Response:
    if not outcome.recorded:
        raise refusal_of(outcome)
    return JSONResponse(recorded(sent, outcome) | more, status_code=201)


async def _with_answer(parts: Parts, viewer: AnswerViewer, sent: Sent) -> Response:
    """Hold until the terminal event, within the longest time that a turn may take."""
    watch = Watch(sent.event.user_id, sent.event.session_id, viewer)
    viewer.turn_id = sent.event.turn_id
    try:
        async with asyncio.timeout(parts.settings.gateway_answer_s):
            either: list[asyncio.Future[Any]] = [sent.outcome, viewer.terminal]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if viewer.terminal.done():
                viewer.terminal.result()  # nothing is watched yet, so this is why it cannot come
            outcome = sent.outcome.result()
            if not outcome.recorded:
                raise refusal_of(outcome)
            await parts.feeds.join(watch)
            watch.start_after(int(outcome.version or 1) - 1)
            await attach_within(parts.feeds, watch, parts.settings.gateway_answer_s)
            ended = await viewer.terminal
    except (TimeoutError, HistoryAway):
        return accepted(sent)
    finally:
        parts.feeds.leave(watch)
    return _answered(sent, outcome, ended["event"])


def _answered(sent: Sent, outcome: OutcomeMessage, terminal: dict[str, Any]) -> Response:
    """The answer, or the problem that it ended with: recorded the message is in both cases."""
    code: Code | None = terminal["data"].get("code")
    if code is not None:
        return problem(code, event_id=sent.event.event_id, turn_id=sent.event.turn_id)
    return _recorded(sent, outcome, answer=terminal["data"])


async def _streamed(parts: Parts, user_id: str, session_id: str, key: str, given: dict[str, Any]) -> Response:
    """The answer as it comes. The feed is subscribed before the send, so that no token has to be asked for."""

    async def follow(stream: EventStream) -> None:
        stream.put(frames.Accepted(session_id=session_id, event_id=sent.event.event_id, turn_id=sent.event.turn_id))
        try:
            await _follow(parts, stream, watch, sent)
        finally:
            parts.feeds.leave(watch)

    stream = EventStream(parts, follow)
    stream.session_id = session_id
    watch = Watch(user_id, session_id, stream)
    await parts.feeds.join(watch)
    try:
        sent = await parts.sends.message(user_id, session_id, key, given)
        stream.only_turn_id = sent.event.turn_id
        outcome = await sent.outcome_within(parts.settings.gateway_outcome_s)
        if outcome is not None and not outcome.recorded:
            raise refusal_of(outcome)
    except BaseException:
        parts.feeds.leave(watch)
        raise
    return stream


async def _follow(parts: Parts, stream: EventStream, watch: Watch, sent: Sent) -> None:
    """From the outcome to the terminal event."""
    await asyncio.wait({sent.outcome}, timeout=parts.settings.gateway_answer_s)
    if not sent.outcome.done() or sent.outcome.cancelled() or sent.outcome.exception() is not None:
        raise HistoryAway("no outcome")
    outcome = sent.outcome.result()
    if not outcome.recorded:
        refusal: Refused = refusal_of(outcome)
        stream.put(
            frames.Refused(
                session_id=sent.event.session_id,
                code=refusal.code,
                event_id=sent.event.event_id,
                turn_id=sent.event.turn_id,
            )
        )
        stream.finish()
        return
    watch.start_after(int(outcome.version or 1) - 1)
    await attach_within(parts.feeds, watch, parts.settings.gateway_answer_s)
    if not await stream.over_within(parts.settings.gateway_answer_s):
        raise HistoryAway("no end of the answer")
