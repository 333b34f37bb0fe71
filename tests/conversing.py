"""What a gateway and a worker say to history, said by a test: real events on a real bus.

Owns a connection that publishes intake events as their writers do, and keeps what history answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uuid_utils
from nats.aio.msg import Msg

from contracts import ids, subjects
from contracts.base import dump, time_text
from contracts.envelope import Envelope, Event, write_event
from contracts.events import schema_version_of
from contracts.queries import EventsQuery, EventsReply, Query, TurnQuery, read_events_reply
from contracts.turns import (
    ModelPresence,
    OutcomeMessage,
    Presence,
    QueuedContext,
    RunPresence,
    read_context,
    read_outcome,
)
from services.runtime.bus import Bus, BusAddress
from services.runtime.streams import ensure_context_consumer
from tests.brokers import Broker
from tests.polling import eventually

USER = "local"
MODEL = "tiny:1m"
# After this a writer would publish it again: a lost acknowledgement never comes.
PUBLISH_TIMEOUT_S = 5.0
HEARD_TIMEOUT_S = 60.0


def new_id() -> str:
    return str(uuid_utils.uuid7())


def now_text() -> str:
    return time_text(datetime.now(UTC))


def make_event(
    event_type: str,
    session_id: str,
    data: dict[str, Any],
    *,
    user_id: str = USER,
    turn_id: str | None = None,
    event_id: str | None = None,
    causation_id: str | None = None,
) -> Event:
    """An event in today's shape."""
    return write_event(
        Envelope(
            event_id=event_id or new_id(),
            type=event_type,
            schema_version=schema_version_of(event_type),
            user_id=user_id,
            session_id=session_id,
            turn_id=turn_id,
            causation_id=causation_id,
            occurred_at=now_text(),
            data=data,
        )
    )


def session_started(session_id: str, *, user_id: str = USER, **data: Any) -> Event:
    return make_event("session_started", session_id, data, user_id=user_id)


def message(session_id: str, text: str = "hello", *, user_id: str = USER, key: str | None = None, **data: Any) -> Event:
    """A user_message_submitted with its derived ids."""
    event_id = ids.event_id_of_key(user_id, session_id, "user_message_submitted", key) if key else new_id()
    turn_id = ids.turn_id_of(event_id)
    whole = {
        "message_id": ids.message_id_of(event_id),
        "answer_id": ids.answer_id_of(turn_id),
        "text": text,
        **data,
    }
    return make_event("user_message_submitted", session_id, whole, user_id=user_id, turn_id=turn_id, event_id=event_id)


def claim(session_id: str, turn_id: str, run: str, *, user_id: str = USER) -> Event:
    return make_event("turn_claimed", session_id, {"run": run}, user_id=user_id, turn_id=turn_id)


def completed(session_id: str, turn_id: str, attempt: int = 1, text: str = "hi", *, user_id: str = USER) -> Event:
    data = {"attempt": attempt, "end": "stop", "last_index": 1, "text": text, "usage": {}, "model": MODEL}
    return make_event("answer_completed", session_id, data, user_id=user_id, turn_id=turn_id)


@dataclass
class Talker:
    """One connection. Frames are kept by session, words by turn, outcomes by event."""

    bus: Bus
    reply: str
    outcomes: dict[str, list[OutcomeMessage]] = field(default_factory=dict)
    frames: dict[str, list[bytes]] = field(default_factory=dict)
    words: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    async def publish(self, event: Event, timeout_s: float = PUBLISH_TIMEOUT_S) -> int:
        """As its writer does; the intake's sequence."""
        return await self.publish_raw(
            subjects.intake(event.user_id, event.session_id, event.type),
            event.body,
            {
                subjects.CHAT_EVENT: event.event_id,
                subjects.CHAT_USER: event.user_id,
                **({subjects.CHAT_TURN: event.turn_id} if event.turn_id else {}),
            },
            timeout_s,
        )

    async def publish_raw(
        self, subject: str, body: bytes, headers: dict[str, str], timeout_s: float = PUBLISH_TIMEOUT_S
    ) -> int:
        return await self.bus.publish_durable(
            subjects.INTAKE_STREAM, subject, body, {subjects.CHAT_REPLY: self.reply, **headers}, timeout_s
        )

    async def outcome(self, event_id: str, count: int = 1) -> OutcomeMessage:
        """The count-th outcome that history sent for this event."""
        await eventually(
            lambda: len(self.outcomes.get(event_id, [])) >= count,
            reason=f"outcome {count} of {event_id}",
            timeout_s=HEARD_TIMEOUT_S,
        )
        return self.outcomes[event_id][count - 1]

    async def say(self, event: Event) -> OutcomeMessage:
        """Publish, and wait for what became of it."""
        before = len(self.outcomes.get(event.event_id, []))
        await self.publish(event)
        return await self.outcome(event.event_id, before + 1)

    async def watch(self, session_id: str, user_id: str = USER) -> None:
        """Keep the session's frames from now on."""
        kept = self.frames.setdefault(session_id, [])

        async def keep(frame: Msg) -> None:
            kept.append(frame.data)

        await self.bus.subscribe(subjects.session_feed(user_id, session_id), keep)
        await self.barrier()

    async def hold(self, turn_id: str, user_id: str = USER) -> None:
        """Keep the words on a turn, as a worker that holds it does."""
        kept = self.words.setdefault(turn_id, [])

        async def keep(word: Msg) -> None:
            kept.append(json.loads(word.data))

        await self.bus.subscribe(subjects.turn(user_id, turn_id), keep)
        await self.barrier()

    async def barrier(self) -> None:
        await self.bus.request(f"$JS.API.STREAM.INFO.{subjects.INTAKE_STREAM}", b"", 5.0)

    async def word(self, turn_id: str, count: int = 1) -> dict[str, Any]:
        """The count-th word on this turn."""
        await eventually(
            lambda: len(self.words[turn_id]) >= count, reason=f"word {count} on {turn_id}", timeout_s=HEARD_TIMEOUT_S
        )
        return self.words[turn_id][count - 1]

    async def ask(self, name: str, query: Query) -> dict[str, Any]:
        raw = await self.bus.request(subjects.history_query(name, query.user_id), dump(query), 5.0)
        answer: dict[str, Any] = json.loads(raw)
        return answer

    async def ask_word(self, turn_id: str, run: str, user_id: str = USER) -> dict[str, Any] | None:
        reply = await self.ask("turn", TurnQuery(user_id=user_id, turn_id=turn_id, run=run))
        word: dict[str, Any] | None = reply["word"]
        return word

    async def events(self, session_id: str, after: int = 0, user_id: str = USER) -> EventsReply:
        """All recorded events after a version, page by page."""
        frames: list[bytes] = []
        while True:
            query = EventsQuery(user_id=user_id, session_id=session_id, after=after + len(frames))
            raw = await self.bus.request(subjects.history_query("events", user_id), dump(query), 5.0)
            page = read_events_reply(raw)
            assert isinstance(page, EventsReply), page
            frames += page.frames
            if not page.more:
                return EventsReply(
                    page.epoch, page.version, False, page.running_turn_id, page.running_attempt, tuple(frames)
                )

    async def types(self, session_id: str, user_id: str = USER) -> list[str]:
        """The types of a session's recorded events, in order."""
        reply = await self.events(session_id, user_id=user_id)
        return [json.loads(frame)["event"]["type"] for frame in reply.frames]

    async def context(self, timeout_s: float = 60.0, model: str = MODEL) -> tuple[QueuedContext, Msg]:
        """Take the next context from the queue, as a worker does."""
        jetstream = self.bus.jetstream()
        name = await ensure_context_consumer(jetstream, model)
        subscription = await jetstream.pull_subscribe_bind(consumer=name, stream=subjects.CONTEXT_STREAM)
        try:
            [delivery] = await subscription.fetch(1, timeout=timeout_s)
        finally:
            await subscription.unsubscribe()
        return read_context(delivery.data), delivery

    async def be_worker(
        self, *, runs: list[tuple[str, str]] | None = None, server: str = "ok", model: str = MODEL, worker: str = "w1"
    ) -> None:
        """One beat of a worker's presence."""
        presence = Presence(
            worker_id=worker,
            models=[ModelPresence(name=model, window=4096)],
            server=server,
            server_kind="ollama",
            slots=4,
            free=4,
            runs=[RunPresence(turn_id=turn, run=run) for turn, run in runs or []],
        )
        await self.bus.publish_live(subjects.presence(worker), dump(presence))

    async def beat_for_ever(self) -> None:
        while True:
            await self.be_worker()
            await asyncio.sleep(1)  # pace: a worker's beat

    async def _hear(self, delivery: Msg) -> None:
        outcome = read_outcome(delivery.data)
        self.outcomes.setdefault(outcome.event_id, []).append(outcome)


@asynccontextmanager
async def talker(broker: Broker) -> AsyncIterator[Talker]:
    """A connection that plays gateway and worker."""
    bus = Bus(BusAddress(broker.url, broker.user, broker.password), "test")
    await bus.connect()
    running = Talker(bus=bus, reply=f"_INBOX.test.{new_id()}")
    await bus.subscribe(running.reply, running._hear)
    await running.barrier()
    try:
        yield running
    finally:
        await bus.stop()
