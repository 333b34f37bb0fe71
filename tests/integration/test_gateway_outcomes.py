"""Step 4: an outcome that went lost on its way is asked for: who was told `accepted` learns what became of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nats.aio.msg import Msg

from contracts import subjects
from contracts.base import dump
from contracts.queries import OutcomeQuery, OutcomeReply, read_query
from contracts.turns import OutcomeMessage
from services.gateway.bus import Intake
from services.gateway.queries import History
from services.runtime.bus import Bus, BusAddress
from tests.brokers import broker
from tests.conversing import USER, new_id, session_started


async def test_an_outcome_that_went_lost_is_asked_for(tmp_path: Path) -> None:
    """History died between the commit and the word, say. Its first answer, too, may be that it does not know yet."""
    event = session_started(new_id())
    found = OutcomeMessage(
        event_id=event.event_id, user_id=USER, session_id=event.session_id, turn_id=None, position=7, version=1
    )
    replies = [OutcomeReply(status="pending", outcome=None), OutcomeReply(status="recorded", outcome=found)]
    asked: list[OutcomeQuery] = []
    seen: list[tuple[str, str, int]] = []

    async def answer(msg: Msg) -> None:
        query = read_query("outcome", msg.data)
        assert isinstance(query, OutcomeQuery)
        asked.append(query)
        await msg.respond(dump(replies.pop(0)))

    async with broker(tmp_path) as b:
        bus = Bus(BusAddress(b.url, b.user, b.password), "gateway")
        await bus.connect()
        intake = Intake(bus, History(bus), lambda *recorded: seen.append(recorded))
        await intake.start()
        await bus.subscribe(subjects.history_query("outcome", USER), answer)
        try:
            sent = await intake.publish(event)
            assert intake.unrecorded(USER, event.session_id) == 1
            assert await asyncio.wait_for(sent.outcome, 30) == found
            assert intake.unrecorded(USER, event.session_id) == 0
        finally:
            await intake.stop()
            await bus.stop()
    assert seen == [(USER, event.session_id, 1)], "who watches is to see it"
    assert {(query.event_id, query.data_hash) for query in asked} == {(event.event_id, event.data_hash)}
