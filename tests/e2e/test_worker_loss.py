"""D7 with real processes: workers killed until no attempt is left, all asleep with their pulls, asleep and taken over.

Each turn is watched over WebSocket and SSE by clients that check every frame (tests/folding.py): a token of another
attempt than the last answer_started, a gap, or a second end is a broken rule.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
import pytest_asyncio

from contracts import subjects
from contracts.frames import Token, encode
from services.runtime import streams
from services.runtime.lifecycle import cancel_all
from tests.chatting import chatter, http, new_session, send
from tests.conversing import completed, talker
from tests.folding import Answer, SessionView
from tests.installations import MODEL, QUICK, Installation, installation
from tests.polling import eventually
from tests.services import Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

USER = "local"
# An attempt is lost after 6 s of silence, and a process may take 20 s to start beside other tests.
PATIENT_S = 90.0
ATTEMPTS = 3
WORDS = [f"word{number} " for number in range(200)]
STORY = "".join(WORDS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with installation(tmp_path_factory.mktemp("stack"), workers=2) as up:
        yield up


@pytest_asyncio.fixture(loop_scope="module")
async def running(started: Installation) -> Installation:
    """Both workers up; an answer takes 40 s unless its test says less."""
    for worker in started.workers:
        if not worker.alive:
            await worker.start()
    await started.standin.control.reset()
    await started.standin.control.script(WORDS, times=None)
    await started.standin.control.speed(**QUICK | {"token_gap_ms": 200})
    return started


@dataclass
class Watched:
    """One turn, as the watchers of both doors see it."""

    session_id: str
    turn_id: str
    views: tuple[SessionView, SessionView]

    def shown(self) -> list[Answer]:
        return [view.answers.get(self.turn_id, Answer()) for view in self.views]

    async def tells(self, attempt: int) -> None:
        """Wait until both watchers are told some tokens of this attempt."""

        def told() -> bool:
            return all(answer.attempt == attempt and answer.index >= 3 for answer in self.shown())

        await eventually(told, reason=f"attempt {attempt} is told", timeout_s=PATIENT_S)

    async def ends(self, by: str, **data: object) -> None:
        """Wait for the end: the same for both watchers, the only one, and by the rules all along."""

        def over() -> bool:
            return all(answer.ended_by for answer in self.shown())

        await eventually(over, reason="the turn ends", timeout_s=PATIENT_S)
        for answer in self.shown():
            assert (answer.ended_by, {name: answer.data.get(name) for name in data}) == (by, data)
        assert [view.broken for view in self.views] == [[], []]


@asynccontextmanager
async def watched(running: Installation) -> AsyncIterator[Watched]:
    """A message of a new session, watched on the WebSocket and as server-sent events."""
    async with http(running.http()) as web, chatter(running.ws()) as socket:
        session_id = await new_session(web)
        stream = SessionView(session_id)
        reading = asyncio.create_task(read_events(web, stream))
        try:
            view = await socket.attach(session_id, session_id)
            turn_id = str((await send(web, session_id, "Tell me a long story.")).json()["turn_id"])
            yield Watched(session_id, turn_id, (view, stream))
        finally:
            await cancel_all([reading])


async def read_events(web: httpx.AsyncClient, view: SessionView) -> None:
    async with web.stream("GET", f"/v1/sessions/{view.session_id}/events", timeout=PATIENT_S) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                view.take(line.removeprefix("data: "))


async def soon_delivered_again(running: Installation) -> int:
    """Shorten the queue's patience with silent workers: each worker's start sets it to 10 s. Its deliveries so far."""
    client = await running.broker.connect()
    try:
        consumer = dataclasses.replace(streams.context_consumer(MODEL), ack_wait=2.0)
        info = await client.jetstream().add_consumer(subjects.CONTEXT_STREAM, consumer)
    finally:
        await client.close()
    assert info.delivered is not None
    return info.delivered.consumer_seq


async def emptied(running: Installation) -> None:
    """Wait until no context is queued."""
    client = await running.broker.connect()

    async def empty() -> bool:
        return (await client.jetstream().stream_info(subjects.CONTEXT_STREAM)).state.messages == 0

    try:
        await eventually(empty, reason="the context is acked", timeout_s=PATIENT_S)
    finally:
        await client.close()


async def test_a_turn_whose_every_worker_is_killed_fails_once(running: Installation) -> None:
    """Whoever has the turn is killed in mid-answer, three times; the fourth claim is told that no attempt is left."""
    has_it, next_one = running.workers
    await next_one.kill()
    async with watched(running) as one, watched(running) as other:
        for attempt in range(1, ATTEMPTS + 1):
            await asyncio.gather(one.tells(attempt), other.tells(attempt))
            await has_it.kill()
            await next_one.start()
            await soon_delivered_again(running)
            has_it, next_one = next_one, has_it
        for turn in (one, other):
            await turn.ends("answer_failed", code="worker_lost", attempt=ATTEMPTS, last_index=0, text=None)
            assert [view.order.count("answer_started") for view in turn.views] == [ATTEMPTS, ATTEMPTS]
    await emptied(running)


async def test_workers_that_all_sleep_with_waiting_pulls_answer_once_when_they_wake(running: Installation) -> None:
    """The queue gives the context to each of them in turn, and nobody hears of it: deliveries are no attempts."""
    await running.standin.control.speed(token_gap_ms=1)
    async with watched(running) as first:
        await first.ends("answer_completed", text=STORY)
    before = await soon_delivered_again(running)
    for worker in running.workers:
        worker.pause()
    try:
        async with watched(running) as turn:

            async def delivered_to_both() -> bool:
                return await soon_delivered_again(running) >= before + len(running.workers)

            await eventually(delivered_to_both, reason="each worker was given the context", timeout_s=PATIENT_S)
            for worker in running.workers:
                worker.resume()
            await turn.ends("answer_completed", text=STORY)
        await emptied(running)
    finally:
        for worker in running.workers:
            worker.resume()


async def test_a_worker_that_wakes_up_after_its_turn_was_taken_over_ends_nobodys_answer(running: Installation) -> None:
    """It is full of tokens that it could not send, and holds a delivery that it could ack; its end comes late, too."""
    asleep, second = running.workers
    await second.kill()
    await running.standin.control.speed(token_gap_ms=50)
    async with watched(running) as turn:
        await turn.tells(1)
        asleep.pause()
        try:
            await all_said(running)
            await second.start()
            await soon_delivered_again(running)
            await turn.tells(2)
            await running.standin.control.runner(MODEL, "stop")
        finally:
            asleep.resume()
        await let_go(asleep)
        await told_late(running, turn)
        assert not any(answer.ended_by for answer in turn.shown())
        await running.standin.control.runner(MODEL, "continue")
        await turn.ends("answer_completed", text=STORY, attempt=2)
        assert [view.order.count("answer_started") for view in turn.views] == [2, 2]
    await emptied(running)


async def all_said(running: Installation) -> None:
    """Wait until the model server has said the whole answer into the sleeping worker's socket."""

    async def done() -> bool:
        return [record["outcome"] for record in await running.standin.control.requests()] == ["done"]

    await eventually(done, reason="the model has said all of it", timeout_s=PATIENT_S)


async def let_go(worker: Service) -> None:
    """Wait until its run is over without an ack: another one has the turn."""

    def left() -> bool:
        return any(line.get("event") == "run_over" and line["step"] == "LEAVE" for line in worker.logged())

    await eventually(left, reason="the worker lets go of the turn", timeout_s=PATIENT_S)


async def told_late(running: Installation, turn: Watched) -> None:
    """What the first attempt may still have on its way: tokens, and an end that the log does not take."""
    async with talker(running.broker) as talk:
        feed = subjects.session_feed(USER, turn.session_id)
        for index in (4, 5, 1000):
            late = Token(session_id=turn.session_id, turn_id=turn.turn_id, attempt=1, index=index, text="late")
            await talk.bus.publish_live(feed, encode(late))
        outcome = await talk.say(completed(turn.session_id, turn.turn_id, 1, "late"))
        assert outcome.code == "attempt_stale"
