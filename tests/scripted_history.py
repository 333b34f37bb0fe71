"""History's side of the talk with workers, on a real broker, for tests of the worker alone: it does what a test says.

It reads the intake by sequence, answers claims and queries as the real one does, and queues contexts. What reaches
clients is collected beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import nats
import nats.errors
import nats.js.errors
import uuid_utils
from nats.aio.client import Client
from nats.aio.msg import Msg

from contracts import ids, subjects
from contracts.base import compact, dump
from contracts.envelope import Event, read_event
from contracts.events import TERMINALS, TurnClaimed
from contracts.frames import AnswerSoFar
from contracts.queries import TurnQuery, TurnReply, read_query
from contracts.turns import (
    PRESENCE_FORGOTTEN_S,
    Go,
    Presence,
    Recorded,
    Snapshot,
    Stop,
    Word,
    encode_context,
    read_presence,
)
from services.runtime.lifecycle import cancel_all
from tests.brokers import Broker
from tests.polling import POLL_EVERY_S, eventually

USER = "anna"
# Ollama lists a model without a tag as :latest, so these have one.
MODEL = "small:1b"
OTHER_MODEL = "other:1b"
# A worker's process takes half a second to start, on a machine that is busy with other tests twenty.
SEEN_TIMEOUT_S = 60.0


def new_id() -> str:
    return str(uuid_utils.uuid7())


@dataclass
class Turn:
    """One queued turn and what has become of it."""

    turn_id: str
    session_id: str
    run: str | None = None
    attempt: int = 0
    end: Event | None = None
    frames: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == "token"]

    def text(self, attempt: int) -> str:
        return "".join(frame["text"] for frame in self.tokens if frame["attempt"] == attempt)

    def indexes(self, attempt: int) -> list[int]:
        return [frame["index"] for frame in self.tokens if frame["attempt"] == attempt]


class ScriptedHistory:
    """speaks: it tells words by itself. answers: it answers queries. reading: it reads the intake."""

    def __init__(self, client: Client, attempts: int = 3) -> None:
        self.client = client
        self.attempts = attempts
        self.speaks = True
        self.answers = True
        self.reading = asyncio.Event()
        self.reading.set()
        self.asked = 0
        self.turns: dict[str, Turn] = {}
        self.claims: list[Event] = []
        self.presences: list[Presence] = []
        self._latest: dict[str, tuple[float, Presence]] = {}

    async def queue_turn(self, model: str = MODEL, text: str = "hello", **options: Any) -> Turn:
        """A turn as history dispatches it."""
        turn = Turn(turn_id=new_id(), session_id=new_id())
        self.turns[turn.turn_id] = turn
        subject = subjects.context("answer", model, turn.turn_id)
        await self.client.jetstream().publish(subject, queued_context(turn, model, text, options))
        return turn

    async def say(self, turn: Turn, word: Word | None = None) -> None:
        """Tell the turn's workers a word; none given: the one that is true now."""
        told = word or self.word(turn)
        assert told is not None
        await self.client.publish(subjects.turn(USER, turn.turn_id), dump(told))

    def word(self, turn: Turn) -> Go | Stop | None:
        if turn.end is not None:
            return Stop(turn_id=turn.turn_id, code="turn_finished")
        if turn.run is None:
            return None
        return Go(turn_id=turn.turn_id, run=turn.run, attempt=turn.attempt, last=turn.attempt >= self.attempts)

    async def snapshot(self, turn: Turn, attempt: int) -> AnswerSoFar:
        """The text so far, asked as a gateway does."""
        request = dump(Snapshot(turn_id=turn.turn_id, attempt=attempt))
        reply = await self.client.request(subjects.turn(USER, turn.turn_id), request, timeout=2)
        return AnswerSoFar.model_validate_json(reply.data)

    async def queued(self) -> int:
        """How many contexts the queue holds."""
        return int((await self.client.jetstream().stream_info(subjects.CONTEXT_STREAM)).state.messages)

    async def ended(self, turn: Turn, timeout_s: float = SEEN_TIMEOUT_S) -> Event:
        """The turn's terminal."""
        await eventually(lambda: turn.end is not None, reason="the turn ends", timeout_s=timeout_s)
        assert turn.end is not None
        return turn.end

    async def emptied(self) -> None:
        async def empty() -> bool:
            return await self.queued() == 0

        await eventually(empty, reason="the context is acked")

    async def presence(self, **wanted: Any) -> Presence:
        """The latest presence, once one from now on (or the one before) says all of this."""
        seen = max(0, len(self.presences) - 1)

        def fitting() -> list[Presence]:
            return [
                presence
                for presence in self.presences[seen:]
                if all(getattr(presence, name) == value for name, value in wanted.items())
            ]

        return (await eventually(fitting, reason=f"a presence with {wanted}", timeout_s=SEEN_TIMEOUT_S))[-1]

    async def follow(self) -> None:
        """Read the intake, one event after the other, for ever."""
        sequence = 1
        while True:
            try:
                found = await self.client.jetstream(timeout=1).get_msg(subjects.INTAKE_STREAM, seq=sequence)
            except (nats.errors.Error, nats.js.errors.Error, OSError):
                await asyncio.sleep(POLL_EVERY_S)  # pace: the intake is polled
                continue
            await self.reading.wait()
            sequence += 1
            await self._record(read_event(found.data or b""), found.headers or {})

    async def _record(self, event: Event, headers: dict[str, str]) -> None:
        turn = self.turns[str(event.turn_id)]
        assert (headers["Chat-Event"], headers["Chat-User"], headers["Chat-Turn"]) == (
            event.event_id,
            USER,
            turn.turn_id,
        )
        assert event.envelope.causation_id == ids.context_event_id_of(turn.turn_id)
        if isinstance(event.data, TurnClaimed):
            self.claims.append(event)
            if turn.end is None and turn.run != event.data.run and not self._alive(turn):
                turn.run, turn.attempt = event.data.run, turn.attempt + 1
            if self.speaks:
                await self.say(turn)
        elif event.type in TERMINALS and turn.end is None and event.envelope.data["attempt"] == turn.attempt:
            turn.end = event
            if self.speaks:
                await self.say(turn, Recorded(turn_id=turn.turn_id))

    def _alive(self, turn: Turn) -> bool:
        """Whether a worker that was heard of lately works on the turn's run: then no other one may have it."""
        lately = time.monotonic() - PRESENCE_FORGOTTEN_S
        heard = [presence for at, presence in self._latest.values() if at > lately]
        return any(turn.run == run.run for presence in heard for run in presence.runs)

    async def on_query(self, msg: Msg) -> None:
        query = read_query("turn", msg.data)
        assert isinstance(query, TurnQuery)
        self.asked += 1
        if self.answers:
            reply = TurnReply(turn=None, word=self.word(self.turns[query.turn_id]), position=0)
            await msg.respond(dump(reply))

    async def on_frame(self, msg: Msg) -> None:
        frame = json.loads(msg.data)
        self.turns[frame["turn_id"]].frames.append(frame)

    async def on_presence(self, msg: Msg) -> None:
        presence = read_presence(msg.data)
        self.presences.append(presence)
        self._latest[presence.worker_id] = (time.monotonic(), presence)


@asynccontextmanager
async def scripted_history(b: Broker) -> AsyncIterator[ScriptedHistory]:
    """One that runs, and that outlives restarts of its broker."""
    client = await nats.connect(
        b.url, user=b.user, password=b.password, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet
    )
    history = ScriptedHistory(client)
    await client.subscribe("chat.history.turn.*", cb=history.on_query)
    await client.subscribe("chat.feed.*.*", cb=history.on_frame)
    await client.subscribe(subjects.PRESENCE_ALL, cb=history.on_presence)
    following = asyncio.create_task(history.follow())
    try:
        yield history
        assert not following.done(), following.exception()
    finally:
        # Again and again: one cancel may be swallowed by the answer that it meets, and the wait would be for ever.
        await cancel_all([following])
        await client.close()


async def _quiet(_error: Exception) -> None:
    """A broker that is restarted by the test is no news."""


def queued_context(turn: Turn, model: str = MODEL, text: str = "hello", options: dict[str, Any] | None = None) -> bytes:
    """A turn's message in the queue."""
    envelope = {
        "event_id": ids.context_event_id_of(turn.turn_id),
        "type": "context_assembled",
        "schema_version": 2,
        "user_id": USER,
        "session_id": turn.session_id,
        "turn_id": turn.turn_id,
        "occurred_at": "2026-11-20T10:00:00.000Z",
        "data": {
            "purpose": "answer",
            "model": model,
            "message_ids": [],
            "left_out": {},
            "options": options or {},
            "seed": ids.seed_of(turn.turn_id),
            "budget": {"tokens": 4096, "reserve": 512, "estimated": 10},
            "rendered_hash": "0" * 64,
        },
    }
    return encode_context(compact(envelope), [{"role": "user", "content": text}])
