"""History and the broker die again and again under load: nothing accepted is missing, nothing is there twice (P1, P2).

The talker plays a gateway that repeats what it has no answer for, and a worker as D7 describes one.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors

from contracts.envelope import Event
from services.runtime.bus import NoAnswer, NotSent
from tests.conversing import MODEL, claim, completed, make_event, message, new_id, session_started
from tests.polling import eventually
from tests.roads import Road, road

KILLS = 20
BROKER_KILLS = 10
SESSIONS = 6
# Long enough for all that is under way to be claimed again after the last kill.
SETTLED_S = 120.0


@dataclass
class Load:
    """What was accepted, and who is at work."""

    walk: Road
    sessions: list[str] = field(default_factory=lambda: [new_id() for _ in range(SESSIONS)])
    accepted: dict[str, Event] = field(default_factory=dict)
    running: set[tuple[str, str]] = field(default_factory=set)
    stopping: bool = False

    async def insist(self, event: Event) -> None:
        """As a gateway's client does: again with the same key until it is accepted."""
        while True:
            try:
                await self.walk.talk.publish(event)
            except (NotSent, NoAnswer):
                await asyncio.sleep(0.05)  # pace: as a client tries again
            else:
                self.accepted[event.event_id] = event
                return

    async def send_for_ever(self, session_id: str, chance: random.Random) -> None:
        await self.insist(session_started(session_id))
        said = None
        while not self.stopping:
            if said is not None and chance.random() < 0.2:
                await self.insist(said)
                await self.insist(make_event("cancel_requested", session_id, {}, turn_id=said.turn_id))
            else:
                said = message(session_id, "hello", key=new_id(), model=MODEL)
                await self.insist(said)
            await asyncio.sleep(chance.random() * 0.2)  # pace: as a person types

    async def work_for_ever(self) -> None:
        while True:
            try:
                context, delivery = await self.walk.talk.context(timeout_s=1)
                await self.run(context.event.session_id, context.turn_id)
                await delivery.ack()
            except (nats.errors.Error, OSError, NotSent, NoAnswer):
                await asyncio.sleep(0.05)  # pace: as a worker tries again

    async def run(self, session_id: str, turn_id: str) -> None:
        """Until history says that the turn has its end."""
        run = new_id()
        self.running.add((turn_id, run))
        try:
            await self.walk.talk.be_worker(runs=list(self.running))
            await self.insist(claim(session_id, turn_id, run))
            answer = None
            while (word := await self.word(turn_id, run))["type"] == "go":
                if word["run"] != run:
                    return
                if answer is None:
                    answer = completed(session_id, turn_id, word["attempt"])
                    await self.insist(answer)
                await asyncio.sleep(0.02)  # pace: as a worker asks
        finally:
            self.running.discard((turn_id, run))

    async def word(self, turn_id: str, run: str) -> dict[str, Any]:
        while True:
            try:
                word = await self.walk.talk.ask_word(turn_id, run)
            except (NotSent, NoAnswer):
                word = None
            if word is not None:
                return dict(word)
            await asyncio.sleep(0.05)  # pace: as a worker asks

    async def beat_for_ever(self) -> None:
        while True:
            await self.walk.talk.be_worker(runs=list(self.running))
            await asyncio.sleep(1)  # pace: a worker's beat

    async def supervise_for_ever(self) -> None:
        """As the supervisor does: what died is started again."""
        while True:
            if not self.walk.history.alive:
                self.walk.history.spawn()
            await asyncio.sleep(0.1)  # pace: as a supervisor looks


async def test_nothing_accepted_is_missing_and_nothing_is_there_twice(tmp_path: Path) -> None:
    async with road(tmp_path, requeue_s=3) as walk:
        load = Load(walk)
        chance = random.Random(7)
        sending = [asyncio.create_task(load.send_for_ever(s, random.Random(s))) for s in load.sessions]
        endless: list[Callable[[], Awaitable[None]]] = [load.beat_for_ever, load.supervise_for_ever]
        others = [asyncio.ensure_future(each()) for each in [*endless, *[load.work_for_ever] * 4]]
        try:
            for kill in range(KILLS):
                await asyncio.sleep(0.3 + chance.random())  # pace: a moment of load between two kills
                if walk.history.process is not None:
                    await walk.history.kill()
                if kill % (KILLS // BROKER_KILLS):
                    await walk.nats.kill()
                    await walk.nats.start()
            load.stopping = True
            async with asyncio.timeout(SETTLED_S):
                await asyncio.gather(*sending)
            await eventually(lambda: settled(load), reason="all has an outcome and an end", timeout_s=SETTLED_S)
        finally:
            for task in others + sending:
                task.cancel()
            await asyncio.gather(*others, *sending, return_exceptions=True)
        check_log(load)
        await check_views(load)


def open_turns(walk: Road) -> int:
    return int(
        walk.sql(
            "SELECT count(*) FROM events AS said WHERE type = 'user_message_submitted' AND NOT EXISTS (SELECT 1 FROM"
            " events AS ended WHERE ended.turn_id = said.turn_id AND ended.type IN"
            " ('answer_completed', 'answer_failed', 'answer_cancelled'))"
        )[0][0]
    )


def outcomes(walk: Road) -> dict[str, str | None]:
    kept = walk.sql("SELECT event_id, NULL FROM events UNION ALL SELECT event_id, code FROM outcomes")
    assert len({event_id for event_id, _ in kept}) == len(kept), "one outcome for each event"
    return dict(kept)


def settled(load: Load) -> bool:
    known = outcomes(load.walk)
    return open_turns(load.walk) == 0 and all(
        event_id in known for event_id, event in load.accepted.items() if event.type != "turn_claimed"
    )


def check_log(load: Load) -> None:
    walk = load.walk
    assert walk.sql("SELECT * FROM parked") == []
    assert set(outcomes(walk).values()) <= {
        None, "turn_finished", "turn_unknown", "attempt_stale", "queue_full",
    }  # fmt: skip
    rows = walk.sql("SELECT position, session_id, version FROM events ORDER BY position")
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    for session_id in load.sessions:
        versions = [version for _, of, version in rows if of == session_id]
        assert versions == list(range(1, len(versions) + 1))
    ends = walk.sql(
        "SELECT turn_id, count(*) FROM events WHERE type IN ('answer_completed', 'answer_failed', 'answer_cancelled')"
        " GROUP BY turn_id"
    )
    assert {count for _, count in ends} == {1}
    assert len(ends) > 50, "there was a load"
    failed = walk.sql("SELECT json_extract(body, '$.data.code') FROM events WHERE type = 'answer_failed'")
    assert failed == [], "the worker lived all the time: no kill of others costs an answer"


async def check_views(load: Load) -> None:
    before = await load.walk.views(*load.sessions)
    await load.walk.history.stop()
    for path in load.walk.data_dir.glob("views-*"):
        path.unlink()
    await load.walk.history.start()
    assert await load.walk.views(*load.sessions) == before
    assert {row["session_id"] for row in before[0]["sessions"]} == set(load.sessions)
