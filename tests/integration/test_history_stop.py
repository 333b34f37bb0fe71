"""A stop on real parts (D8): its worker is told every second, from the log, and ends the turn, or history does."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from contracts import subjects
from contracts.envelope import Event
from services.history.effects import Queue, Unqueue
from services.history.publisher import Publisher
from services.runtime import streams
from tests.brokers import broker
from tests.conversing import MODEL, USER, claim, make_event, message, new_id, talker
from tests.polling import eventually
from tests.recording import cancel, ended
from tests.roads import Road, road

SOON_S = 60.0
# Contexts that are withdrawn while they are on their way, each some turns of the loop later.
WITHDRAWN = 200


async def running_turn(walk: Road, session_id: str) -> Event:
    """A turn that a worker has been given: its message."""
    said = message(session_id, model=MODEL)
    await walk.talk.say(said)
    context, _ = await walk.talk.context()
    assert context.turn_id == said.turn_id
    await walk.talk.publish(claim(session_id, context.turn_id, new_id()))
    await walk.recorded(session_id, "answer_started")
    return said


async def last_event(walk: Road, session_id: str) -> dict[str, Any]:
    reply = await walk.talk.events(session_id)
    event: dict[str, Any] = json.loads(reply.frames[-1])["event"]
    return event


async def hears(walk: Road, turn_id: str, kind: str, count: int = 1) -> None:
    """Wait until the worker was told so often."""
    words = walk.talk.words[turn_id]
    await eventually(
        lambda: [word["type"] for word in words].count(kind) >= count,
        reason=f"{count} times {kind}",
        timeout_s=SOON_S,
    )


async def test_a_worker_that_does_not_answer_is_told_every_second_and_its_turn_ends(tmp_path: Path) -> None:
    async with road(tmp_path, cancel_s=3) as walk:
        session_id = await walk.begin()
        said = await running_turn(walk, session_id)
        turn_id = str(said.turn_id)
        await walk.talk.hold(turn_id)
        behind, stop = message(session_id, "next", model=MODEL), cancel(said)
        await walk.talk.say(behind)
        began = time.monotonic()
        assert (await walk.talk.say(stop)).code is None
        assert (await walk.talk.say(cancel(said))).code is None, "asked already: nothing new"
        await hears(walk, turn_id, "stop")
        assert 3 <= time.monotonic() - began < 6
        assert [word["type"] for word in walk.talk.words[turn_id]].count("cancel") in (4, 5, 6), (
            "two at once, then 2 to 4"
        )
        assert walk.talk.words[turn_id][-1] == {"type": "stop", "turn_id": turn_id, "code": "turn_cancelled"}
        events = [json.loads(frame)["event"] for frame in (await walk.talk.events(session_id)).frames]
        [terminal] = [event for event in events if event["type"] == "answer_cancelled"]
        assert terminal["data"] == {"attempt": 1, "code": "cancelled", "last_index": 0}
        assert terminal["causation_id"] == stop.event_id
        late = await walk.talk.say(ended(said, "answer_cancelled", 1, text="late"))
        assert late.code == "turn_finished"
        context, _ = await walk.talk.context()
        assert context.turn_id == behind.turn_id

        async def only_the_next() -> bool:
            return await walk.queued() == 1

        await eventually(only_the_next, reason="the stopped turn's context has left the queue", timeout_s=SOON_S)


async def test_a_history_that_died_before_it_told_tells_from_the_log(tmp_path: Path) -> None:
    """The worker listens only once history is dead: whatever that one said is lost."""
    async with road(tmp_path, cancel_s=60) as walk:
        session_id = await walk.begin()
        said = await running_turn(walk, session_id)
        turn_id = str(said.turn_id)
        assert (await walk.talk.say(cancel(said))).code is None
        await walk.history.kill()
        await walk.talk.hold(turn_id)
        await walk.history.start()
        await hears(walk, turn_id, "cancel", 2)
        await walk.nats.kill()
        await walk.nats.start()
        await eventually(lambda: walk.talk.bus.connected, reason="the test is connected again", timeout_s=SOON_S)
        told = len(walk.talk.words[turn_id])
        await hears(walk, turn_id, "cancel", told + 2)
        assert (await walk.talk.say(ended(said, "answer_cancelled", 1, text="so f"))).code is None
        await hears(walk, turn_id, "recorded")
        assert (await last_event(walk, session_id))["data"]["text"] == "so f"
        [view] = [row for row in (await walk.views(session_id))[1]["messages"] if row["role"] == "assistant"]
        assert (view["status"], view["code"], view["text"]) == ("cancelled", "cancelled", "so f")


async def test_a_stop_that_waited_for_history_is_decided_in_its_place(tmp_path: Path) -> None:
    """A message and its stop lie in the intake while history is down: its context is never queued."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.history.kill()
        said = message(session_id, model=MODEL)
        stop = cancel(said)
        early = make_event("cancel_requested", session_id, {}, turn_id=said.turn_id)
        for event in (early, said, stop):
            await walk.talk.publish(event)
        await walk.history.start()
        assert (await walk.talk.outcome(stop.event_id)).code is None
        assert (await walk.talk.outcome(early.event_id)).code == "turn_unknown"
        assert (await walk.talk.types(session_id))[1:] == [
            "user_message_submitted",
            "cancel_requested",
            "answer_cancelled",
        ]
        assert await walk.queued() == 0


async def test_a_context_that_is_on_its_way_when_it_is_withdrawn_does_not_stay(tmp_path: Path) -> None:
    """A purge that overtook the publish left 21 of 50 in the queue, for a worker to take."""
    async with broker(tmp_path) as nats, talker(nats) as talk:
        publisher = Publisher(talk.bus)
        for n in range(WITHDRAWN):
            turn_id = new_id()
            await publisher.carry_out([Queue(USER, turn_id, MODEL, b"context")])
            for _ in range(n % 10):
                await asyncio.sleep(0)
            await publisher.carry_out([Unqueue(turn_id, MODEL)])

        async def all_came_and_went() -> bool:
            state = (await talk.bus.jetstream().stream_info(subjects.CONTEXT_STREAM)).state
            return (state.last_seq, state.messages) == (WITHDRAWN, 0)

        await eventually(all_came_and_went, reason="every context was queued and purged", timeout_s=SOON_S)
        await publisher.stop()


async def test_a_withdrawn_context_takes_no_other_one_along(tmp_path: Path) -> None:
    """Purged by its subject, one context made the server forget an earlier one that a worker held: killed with it, that
    turn waited for ever (the soak's seed 1366058749).
    """
    async with broker(tmp_path) as nats, talker(nats) as talk:
        jetstream, publisher = talk.bus.jetstream(), Publisher(talk.bus)
        held, withdrawn, later = new_id(), new_id(), new_id()
        for turn_id in (held, withdrawn, later):
            await jetstream.publish(subjects.context("answer", MODEL, turn_id), turn_id.encode())
        consumer = await streams.ensure_context_consumer(jetstream, MODEL)
        pull = await jetstream.pull_subscribe_bind(consumer, subjects.CONTEXT_STREAM)
        first, _ = await pull.fetch(2, timeout=SOON_S)
        await publisher.carry_out([Unqueue(withdrawn, MODEL)])

        async def is_withdrawn() -> bool:
            return (await jetstream.stream_info(subjects.CONTEXT_STREAM)).state.messages == 2

        await eventually(is_withdrawn, reason="the withdrawn context is gone", timeout_s=SOON_S)
        [next_one] = await pull.fetch(1, timeout=SOON_S)
        await next_one.ack_sync()
        await first.nak()
        [again] = await pull.fetch(1, timeout=SOON_S)
        assert again.data == held.encode()
        await publisher.stop()
