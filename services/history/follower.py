"""Step 5, history/follower: fetch the intake's events in order, without a gap, from the cursor on.

Owns the pull consumer: without acks, opened at cursor + 1 and opened again after any error, each reconnect, a step in
its own sequence, or silence while the stream is ahead (a cut connection skips what was in flight, without an error:
measured). Must never trust acks or a redelivery's order, and never start where events are missing.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, ReplayPolicy

from contracts import subjects
from services.history.arrivals import Delivery
from services.history.continuity import IntakeRefused, Stream, check_stream, read_stream
from services.history.log.port import Cursor
from services.history.writer import Writer
from services.runtime.bus import Bus, NoAnswer, NotSent

log = structlog.get_logger(__name__)

# A fetch returns with the first message there is; this is how long an idle one waits.
FETCH_TIMEOUT_S = 1.0
# The stream is ahead of the cursor and nothing came: the consumer has gone silent.
SILENT_S = 2.0
REOPEN_DELAY_S = 0.2
ASK_TIMEOUT_S = 5.0
# An abandoned consumer (we were killed) leaves the server after this.
INACTIVE_S = 300.0
# For who reads why history does not start.
REMEDY = "the part on restore of docs/operations.md says how to go on"


class _Reopen(Exception):
    """What was delivered is not what follows the cursor."""


async def ask_stream(bus: Bus, name: str = subjects.INTAKE_STREAM) -> Stream:
    """Raises NotSent or NoAnswer, also where there is no such stream."""
    found = read_stream(await bus.request(f"$JS.API.STREAM.INFO.{name}", b"", ASK_TIMEOUT_S))
    if isinstance(found, str):
        raise NotSent(f"{name}: {found}")
    return found


class Follower:
    """Feeds the writer with batches, for ever."""

    def __init__(self, bus: Bus, writer: Writer, batch_events: int, accept_gap: bool) -> None:
        self._bus = bus
        self._writer = writer
        self._batch_events = batch_events
        self._accept_gap = accept_gap
        self._target = 0
        self.caught_up = asyncio.Event()
        self.stream: Stream | None = None

    async def run(self) -> None:
        """Raises IntakeRefused and LogError; everything else is tried again."""
        while True:
            try:
                await self._follow()
            except (_Reopen, NotSent, NoAnswer, nats.errors.Error, OSError) as error:
                log.info("follower_reopens", error=type(error).__name__, reason=str(error))
            await asyncio.sleep(REOPEN_DELAY_S)

    async def prepare(self) -> Stream:
        """At start: the stream must continue the log; what it holds now is the target of catching up."""
        stream = await ask_stream(self._bus)
        try:
            cursor = check_stream(stream, self._writer.cursor, self._accept_gap)
        except IntakeRefused as refused:
            raise IntakeRefused(f"{refused}; {REMEDY}") from None
        if cursor != self._writer.cursor:
            if self._writer.cursor.stream_created is not None:
                # Who accepts a gap may have put an older log in place, and nothing tells how much it has lost.
                await self._writer.begin_epoch("a gap was accepted")
            await self._writer.record([], cursor)
        self._target = stream.last_sequence
        self._note_progress()
        return stream

    async def _follow(self) -> None:
        self.stream = await ask_stream(self._bus)
        cursor = check_stream(self.stream, self._writer.cursor, accept_gap=False)
        generation = self._bus.generation
        jetstream = self._bus.jetstream(ASK_TIMEOUT_S)
        name = await _open_consumer(jetstream, cursor.sequence + 1)
        subscription = await jetstream.pull_subscribe_bind(
            consumer=name, stream=subjects.INTAKE_STREAM, pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        expected = 1
        ahead_since_s: float | None = None
        try:
            while True:
                try:
                    messages = await subscription.fetch(self._batch_events, timeout=FETCH_TIMEOUT_S)
                except TimeoutError:
                    messages = []  # nats-py raises its own and asyncio's
                if self._bus.generation != generation:
                    raise _Reopen("the connection was cut")
                if messages:
                    expected = await self._take(messages, expected)
                    ahead_since_s = None
                else:
                    ahead_since_s = await self._watch_silence(ahead_since_s)
        finally:
            await _close_consumer(jetstream, name)
            await _unsubscribe(subscription)

    async def _take(self, messages: list[Msg], expected: int) -> int:
        """Hand a batch on if it is what follows; the cursor moves with it."""
        cursor = self._writer.cursor
        deliveries: list[Delivery] = []
        for message in messages:
            sequence = message.metadata.sequence
            if sequence.consumer != expected:
                raise _Reopen(f"consumer sequence {sequence.consumer}, expected {expected}")
            expected += 1
            deliveries.append(Delivery(sequence.stream, message.subject, dict(message.headers or {}), message.data))
        await self._writer.record(deliveries, Cursor(cursor.stream_created, deliveries[-1].sequence))
        self._note_progress()
        return expected

    async def _watch_silence(self, ahead_since_s: float | None) -> float | None:
        """Since when the stream has been ahead with nothing delivered. One look alone may meet a delivery under way."""
        self.stream = await ask_stream(self._bus)
        if self.stream.last_sequence <= self._writer.cursor.sequence:
            return None
        since_s = ahead_since_s or time.monotonic()
        if time.monotonic() - since_s >= SILENT_S:
            raise _Reopen(f"the stream is at {self.stream.last_sequence} and nothing was delivered")
        return since_s

    def _note_progress(self) -> None:
        if self._writer.cursor.sequence >= self._target:
            self.caught_up.set()


async def _open_consumer(jetstream: JetStreamContext, start: int) -> str:
    consumer = await jetstream.add_consumer(
        subjects.INTAKE_STREAM,
        ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.NONE,
            replay_policy=ReplayPolicy.INSTANT,
            inactive_threshold=INACTIVE_S,
            max_deliver=-1,
            num_replicas=1,
            mem_storage=True,
            max_waiting=8,
        ),
    )
    return consumer.name


async def _unsubscribe(subscription: JetStreamContext.PullSubscription) -> None:
    """Deliveries that nobody fetched any more stay in its queue, and a drain waits for them."""
    with suppress(nats.errors.Error):  # the connection may be gone, and the subscription with it
        await subscription.unsubscribe()


async def _close_consumer(jetstream: JetStreamContext, name: str) -> None:
    try:
        await jetstream.delete_consumer(subjects.INTAKE_STREAM, name)
    except (nats.errors.Error, OSError):
        log.info("follower_left_a_consumer", consumer=name)  # it leaves the server by itself (INACTIVE_S)
