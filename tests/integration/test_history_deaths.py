"""History dies at every point between two steps, and of a disk that takes nothing more: nothing is lost or doubled (P1,
P2, P3).

Where the kills of test_history_kills fall is luck; here each falls where it hurts.
"""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from contracts.envelope import Event
from services.runtime.bus import NoAnswer, NotSent
from tests.conversing import MODEL, claim, completed, make_event, message, new_id
from tests.polling import eventually
from tests.roads import Road, road

T = TypeVar("T")

FOR_EVER_S = 120.0
# In the order in which one turn meets them; the last two while history starts.
DEATHS = (
    "before_the_publish:user_message_submitted",
    "before_the_publish:answer_started",
    "in_the_transaction:answer_completed",
    "before_the_publish:answer_completed",
    "in_the_views:answer_completed",
)
TURN = ["user_message_submitted", "context_assembled", "answer_started", "answer_completed"]
# More than the log's first pages, less than what one burst writes.
ROOM_BYTES = (100_000, 200_000)
BURST = 200


async def asked(question: Callable[[], Awaitable[T | None]], reason: str) -> T:
    """Again and again, as who waits does while history is away."""

    async def answer() -> T | None:
        try:
            return await question()
        except (NotSent, NoAnswer):
            return None

    return await eventually(answer, reason=reason, timeout_s=FOR_EVER_S)


async def whole_turn(walk: Road, session_id: str) -> None:
    """Each step waits for what the log says, never for a frame or a word that may be lost."""
    said = message(session_id, model=MODEL)
    await walk.talk.publish(said)
    context, delivery = await asked(walk.talk.context, "the context is in the queue")
    assert context.turn_id == said.turn_id
    run = new_id()
    await walk.talk.publish(claim(session_id, context.turn_id, run))
    word = await asked(lambda: walk.talk.ask_word(context.turn_id, run), "the word on the claim")
    assert (word["type"], word["run"], word["attempt"]) == ("go", run, 1), word
    answer = completed(session_id, context.turn_id)
    await walk.talk.publish(answer)

    async def recorded() -> bool:
        return (await walk.outcome_of(answer)).status == "recorded"

    await asked(recorded, "the answer is recorded")
    await delivery.ack_sync()


@pytest.mark.timeout(400)  # seven starts of a process
async def test_a_death_between_two_steps_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.history.stop()
        turn = asyncio.create_task(whole_turn(walk, session_id))
        for death in DEATHS:
            walk.history.module = "tests.dying_history"
            walk.history.environment["DIE_AT"] = death
            walk.history.spawn()
            assert await walk.history.ended(FOR_EVER_S) == -signal.SIGKILL, death
        walk.history.module = ""
        await walk.history.start()
        await turn
        assert await walk.talk.types(session_id) == ["session_started", *TURN]
        views = await walk.views(session_id)
        await walk.history.stop()
        for path in walk.data_dir.glob("views-*"):
            path.unlink()
        await walk.history.start()
        assert await walk.views(session_id) == views


async def test_a_disk_that_takes_no_more_ends_history_and_loses_nothing(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        told: list[Event] = []
        for room in ROOM_BYTES:
            resource.prlimit(walk.history.pid, resource.RLIMIT_FSIZE, (room, room))
            burst = [make_event("session_renamed", session_id, {"title": "x" * 150}) for _ in range(BURST)]
            await asyncio.gather(*(walk.talk.publish(event) for event in burst))
            told += burst
            assert await walk.history.ended(FOR_EVER_S) == 1
            died = walk.said("task_died")[-1]["exception"][0]
            assert died["kind"] == "LogError"
            assert "disk" in died["words"], "an operator is told what it is"
            await walk.history.start()
        last = told[-1]

        async def recorded() -> bool:
            return (await walk.outcome_of(last)).status == "recorded"

        await asked(recorded, "all that was accepted is recorded")
        rows = walk.sql("SELECT version, event_id FROM events WHERE session_id = ? ORDER BY position", session_id)
        assert [version for version, _ in rows] == list(range(1, len(rows) + 1))
        assert sorted(event_id for _, event_id in rows[1:]) == sorted(event.event_id for event in told)
