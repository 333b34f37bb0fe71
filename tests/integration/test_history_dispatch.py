"""Step 9 on real parts: contexts reach the queue and stay there until their turn ends, or the turn ends (D7)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contracts import ids, subjects
from contracts.envelope import Event
from contracts.queries import TurnQuery
from services.runtime.streams import declared
from tests.conversing import MODEL, USER, claim, completed, make_event, message, new_id
from tests.polling import eventually
from tests.roads import Road, road

SOON_S = 60.0


async def empty_queue(walk: Road) -> None:
    await walk.talk.bus.jetstream().purge_stream(subjects.CONTEXT_STREAM)


async def in_queue(walk: Road, count: int, reason: str) -> None:
    async def there() -> bool:
        return await walk.queued() == count

    await eventually(there, reason=reason, timeout_s=SOON_S)


@contextlib.asynccontextmanager
async def beating(walk: Road, server: str = "ok", runs: list[tuple[str, str]] | None = None) -> AsyncIterator[None]:
    """A worker whose presence is heard while the test goes on."""

    async def beat() -> None:
        while True:
            await walk.talk.be_worker(server=server, runs=runs)
            await asyncio.sleep(0.5)  # pace: a worker's beat

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


async def last_failure(walk: Road, session_id: str) -> str:
    await walk.recorded(session_id, "answer_failed")
    reply = await walk.talk.events(session_id)
    return str(json.loads(reply.frames[-1])["event"]["data"]["code"])


async def test_contexts_are_queued_again_at_start_after_a_reconnect_and_after_silence(tmp_path: Path) -> None:
    async with road(tmp_path, requeue_s=3) as walk:
        session_id = await walk.begin()
        await walk.talk.say(message(session_id, model=MODEL))
        first, delivery = await walk.talk.context()
        await delivery.term()
        await in_queue(walk, 1, "queued again after silence")
        await walk.history.stop()
        await empty_queue(walk)
        walk.history.environment["CHATLOG_REQUEUE_S"] = "3600"
        await walk.history.start()
        await in_queue(walk, 1, "queued again at start")
        await empty_queue(walk)
        await walk.nats.kill()
        await walk.nats.start()
        await eventually(lambda: walk.talk.bus.connected, reason="the test is connected again", timeout_s=SOON_S)
        await in_queue(walk, 1, "queued again after a reconnect")
        again, _ = await walk.talk.context()
        assert again == first, "the same message, byte for byte"


async def test_a_context_that_is_there_already_is_fine(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.talk.say(message(session_id, model=MODEL))
        await in_queue(walk, 1, "queued")
        await walk.history.stop()
        await walk.history.start()
        await walk.talk.say(message(await walk.begin(), model=MODEL))
        await in_queue(walk, 2, "the next one is queued behind it")
        assert not walk.said("context_not_queued")


async def test_a_full_queue_is_tried_again_until_there_is_room(tmp_path: Path) -> None:
    async with road(tmp_path, context_max_bytes=20_000, started=False) as walk:
        context = declared(context_max_bytes=20_000)[1]
        await walk.talk.bus.jetstream().update_stream(context)
        await walk.history.start()
        turns = [message(await walk.begin(), "x" * 7_000, model=MODEL) for _ in range(4)]
        for said in turns:
            await walk.talk.say(said)
        await eventually(lambda: walk.said("context_not_queued"), reason="the queue is full", timeout_s=SOON_S)
        for _ in turns:
            context_, delivery = await walk.talk.context(timeout_s=SOON_S)
            await walk.talk.publish(claim(context_.event.session_id, context_.turn_id, new_id()))
            await walk.recorded(context_.event.session_id, "answer_started")
            await walk.talk.say(completed(context_.event.session_id, context_.turn_id))
            await delivery.ack_sync()
        assert await walk.queued() == 0


async def test_a_context_that_no_message_can_carry_ends_its_turn_and_the_next_starts(tmp_path: Path) -> None:
    async with road(tmp_path, num_ctx=100_000_000) as walk:
        session_id = await walk.begin(model=MODEL)
        for number in range(5):
            await walk.run_turn(session_id, f"q{number}", "y" * 1_900_000)
        large, small = message(session_id, "too much"), message(session_id, "alone", parent_id=None)
        await walk.history.stop()
        await walk.talk.publish(large)
        await walk.talk.publish(small)
        await walk.history.start()
        context, _ = await walk.talk.context(timeout_s=SOON_S)
        assert context.turn_id == small.turn_id
        types = await walk.talk.types(session_id)
        assert types[-2:] == ["answer_failed", "context_assembled"]
        frames = [json.loads(frame)["event"] for frame in (await walk.talk.events(session_id)).frames]
        assert frames[-2]["data"]["code"] == "context_too_long"
        assert frames[-2]["turn_id"] == large.turn_id
        await walk.views(session_id)


@pytest.mark.parametrize(("server", "code"), [(None, "no_worker"), ("model_unreachable", "model_unreachable")])
async def test_a_turn_that_nobody_can_take_fails(tmp_path: Path, server: str | None, code: str) -> None:
    async with road(tmp_path, no_worker_s=4, turns_ahead=1) as walk:
        session_id, behind = await walk.begin(), await walk.begin()
        await walk.talk.watch(behind)
        async with beating(walk, server) if server else contextlib.nullcontext():
            await walk.talk.say(message(session_id, model=MODEL))
            waiting = message(behind, model=MODEL)
            await walk.talk.say(waiting)
            assert await walk.queued() == 1, "the other waits in history"
            for each in (session_id, behind):
                assert await last_failure(walk, each) == code
            told = [frame for frame in map(json.loads, walk.talk.frames[behind]) if frame["type"] == "turn_queued"]
            assert told[0] == {"ahead": 1, "session_id": behind, "turn_id": waiting.turn_id, "type": "turn_queued"}
            await in_queue(walk, 0, "its context has left the queue")
            await walk.talk.say(message(session_id))
            await walk.recorded(session_id, "answer_failed", 2)
        types = await walk.talk.types(session_id)
        assert types[-2:] == ["user_message_submitted", "answer_failed"], "no model was known: it waited, then failed"


async def test_a_turn_without_a_model_waits_for_the_first_worker(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        said = message(session_id)
        await walk.talk.say(said)
        assert await walk.queued() == 0
        async with beating(walk):
            context, _ = await walk.talk.context(timeout_s=SOON_S)
        assert (context.turn_id, context.data.model) == (said.turn_id, MODEL)
        assert context.data.budget.tokens == 4096, "the window that the worker tells"


async def started_turn(walk: Road) -> tuple[Event, str]:
    session_id = await walk.begin()
    said, run = message(session_id, model=MODEL), new_id()
    await walk.talk.say(said)
    await walk.talk.hold(str(said.turn_id))
    await walk.talk.publish(claim(session_id, str(said.turn_id), run))
    assert (await walk.talk.word(str(said.turn_id)))["run"] == run
    return said, run


async def test_after_its_start_history_calls_no_run_dead_for_a_while(tmp_path: Path) -> None:
    """A worker that wakes up with an old delivery ends nobody's answer, also if history has just come back."""
    async with road(tmp_path) as walk:
        said, run = await started_turn(walk)
        turn_id = str(said.turn_id)
        await walk.history.kill()
        await walk.history.start()
        other = new_id()
        await walk.talk.publish(claim(said.session_id, turn_id, other))
        assert (await walk.talk.word(turn_id, 2))["run"] == run
        async with beating(walk, runs=[(turn_id, run)]):
            await asyncio.sleep(7)  # pace: the grace has passed; the run is alive by its worker's word
            await walk.talk.publish(claim(said.session_id, turn_id, other))
            assert (await walk.talk.word(turn_id, 3))["run"] == run

        async def taken_over() -> bool:
            await walk.talk.publish(claim(said.session_id, turn_id, other))
            word = await walk.talk.ask_word(turn_id, other)
            return word is not None and (word["run"], word["attempt"]) == (other, 2)

        await eventually(taken_over, reason="its worker is silent: the next attempt", timeout_s=SOON_S)


async def test_after_standing_still_history_calls_no_run_dead(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        said, run = await started_turn(walk)
        async with beating(walk, runs=[(str(said.turn_id), run)]):
            await eventually(lambda: walk.said("stopping") == [], reason="it runs")
            walk.history.pause()
            await walk.talk.publish(claim(said.session_id, str(said.turn_id), new_id()))
            await asyncio.sleep(8)  # pace: longer than presence is remembered
            walk.history.resume()
            assert (await walk.talk.word(str(said.turn_id), 2))["run"] == run
        assert (await walk.talk.types(said.session_id)).count("answer_started") == 1


async def test_words_can_be_asked_for(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        said, run = await started_turn(walk)
        turn_id = str(said.turn_id)
        asked = await walk.talk.ask_word(turn_id, run)
        assert asked == await walk.talk.word(turn_id)
        unknown = await walk.talk.ask_word(new_id(), run)
        assert unknown is not None
        assert unknown["code"] == "turn_unknown"
        foreign = await walk.talk.ask_word(turn_id, run, user_id="other")
        assert foreign is not None
        assert foreign["code"] == "turn_unknown"


async def test_a_restored_log_meets_what_its_stream_holds(tmp_path: Path) -> None:
    """Nothing is run again: claims and answers of the tail are believed, whatever their attempt; ids are the same. But
    versions may be others, so the epoch is: the views, which are left as they were, have seen what the log lost."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.run_turn(session_id, "before the copy")
        await walk.history.stop()
        shutil.copy(walk.data_dir / "log.db", tmp_path / "backup.db")
        await walk.history.start()
        turns = [await walk.run_turn(session_id, f"after {n}", f"answer {n}") for n in range(3)]
        waiting = message(session_id, "not yet run", model=MODEL)
        await walk.talk.say(waiting)
        rename = make_event("session_renamed", session_id, {"title": "tail"})
        await walk.talk.say(rename)
        _, delivery = await walk.talk.context()
        before = (await walk.talk.events(session_id)).frames
        answers = (await walk.views(session_id))[1]
        epoch = (await walk.status()).epoch
        await walk.history.stop()
        assert not (walk.data_dir / "log.db-wal").exists(), "a log that was closed is one file"
        shutil.copy(tmp_path / "backup.db", walk.data_dir / "log.db")
        await walk.history.start()
        renewed = (await walk.status()).epoch
        assert epoch != renewed == (await walk.talk.events(session_id)).epoch
        after = (await walk.talk.events(session_id)).frames
        types = await walk.talk.types(session_id)
        assert len(before) == len(after)
        assert [json.loads(frame)["version"] for frame in after] == list(range(1, len(after) + 1))
        assert types.count("answer_completed") == types.count("answer_started") == 4
        ids_of_contexts = walk.sql("SELECT event_id FROM events WHERE type = 'context_assembled' ORDER BY position")
        expected = [ids.context_event_id_of(str(turn.turn_id)) for turn in [*turns, waiting]]
        assert [row[0] for row in ids_of_contexts][1:] == expected
        again = (await walk.views(session_id))[1]
        kept = [(row["text"], row["message_id"], row["parent_id"]) for row in again["messages"]]
        assert kept == [(row["text"], row["message_id"], row["parent_id"]) for row in answers["messages"]]
        await delivery.ack_sync()
        await empty_queue(walk)
        await walk.history.stop()
        await walk.history.start()
        context, _ = await walk.talk.context()
        assert context.turn_id == waiting.turn_id, "only what has no end is dispatched"
        assert await walk.queued() == 1
        assert (await walk.status()).epoch == renewed, "a start alone begins none"


async def test_a_turn_that_ended_is_asked_for_without_a_run(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        said = await walk.run_turn(await walk.begin(model=MODEL))
        [(position,)] = walk.sql("SELECT max(position) FROM events")
        query = TurnQuery(user_id=USER, turn_id=str(said.turn_id), min_position=position)
        reply = await walk.talk.ask("turn", query)
        assert (reply["turn"]["status"], reply["word"]) == ("completed", None)
