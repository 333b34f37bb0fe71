"""Steps 11, 12 and 14 when something breaks: model server, worker or broker. Never two answers, never none."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from contracts import subjects
from contracts.events import AnswerCompleted, AnswerFailed
from contracts.turns import read_presence
from services.runtime import streams
from tests.brokers import Broker, broker
from tests.polling import eventually
from tests.scripted_history import MODEL, ScriptedHistory, Turn, scripted_history
from tests.standins import Standin, standin_process
from tests.workers import worker, worker_process

WORDS = [f"word{number} " for number in range(30)]
STORY = "".join(WORDS)


@asynccontextmanager
async def stage(tmp_path: Path, **speed: float) -> AsyncIterator[tuple[Broker, ScriptedHistory, Standin]]:
    """A broker, a scripted history and a stand-in; the test brings its workers."""
    async with (
        broker(tmp_path) as b,
        scripted_history(b) as history,
        standin_process(models=[MODEL], **{"load_s": 0, "token_gap_ms": 20, **speed}) as server,
    ):
        await server.control.script(WORDS, times=None)
        yield b, history, server


async def deliver_again_after(history: ScriptedHistory, ack_wait_s: float) -> None:
    """Shorten the queue's patience with silent workers, so that a test need not wait for 10 s."""
    consumer = dataclasses.replace(streams.context_consumer(MODEL), ack_wait=ack_wait_s)
    await history.client.jetstream().add_consumer(subjects.CONTEXT_STREAM, consumer)


def whole(turn: Turn, attempt: int) -> None:
    """The turn ended with the whole story, all of whose tokens were on the feed."""
    assert turn.end is not None
    assert isinstance(turn.end.data, AnswerCompleted)
    assert (turn.end.data.attempt, turn.end.data.text) == (attempt, STORY)
    assert turn.indexes(attempt) == list(range(1, len(turn.indexes(attempt)) + 1))
    assert turn.text(attempt) == STORY


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "reset", "after": 5}, "model_lost"),
        ({"kind": "cut", "after": 5}, "model_lost"),
        ({"kind": "error_line", "after": 5}, "model_error"),
        ({"kind": "stall", "after": 5}, "model_stalled"),
    ],
)
async def test_a_lost_attempt_is_given_back_and_the_next_one_answers(
    tmp_path: Path, fault: dict[str, Any], code: str
) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server, between_tokens_s=0.4):
        await server.control.fault(**fault)
        turn = await history.queue_turn()
        assert (await history.presence(server=code, runs=[])).free == 1
        await history.ended(turn)
        await history.emptied()
    whole(turn, attempt=2)
    assert len({str(claim.envelope.data["run"]) for claim in history.claims}) == 2
    assert len(turn.text(1)) < len(STORY)


async def test_a_run_is_over_in_the_workers_presence_before_it_is_given_back(tmp_path: Path) -> None:
    """Or history, that hears another claim first, takes the run for alive and refuses that one."""
    heard: list[str] = []

    async def hear(msg: Msg) -> None:
        if msg.subject.startswith(subjects.PRESENCE_ALL.removesuffix("*")):
            heard.append("runs it" if read_presence(msg.data).runs else "runs nothing")
        elif msg.data.startswith(b"-NAK"):
            heard.append("gives it back")

    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await history.client.subscribe(">", cb=hear)  # one for all: what one connection published stays in order
        await server.control.fault("reset", after=5)
        await history.ended(await history.queue_turn())
    before = heard[: heard.index("gives it back")]
    assert "runs it" in before
    assert before[-1] == "runs nothing"


async def test_another_worker_may_have_a_lost_turn_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server), worker(b, server):
        await server.control.fault("reset", after=5)
        turn = await history.queue_turn()
        # The loser says first that it runs the turn no more; else history would not let the other one have it.
        await history.ended(turn)
    whole(turn, attempt=2)


@pytest.mark.parametrize(
    ("fault", "code", "attempts"),
    [
        ({"kind": "reset", "after": 5}, "model_lost", 1),
        ({"kind": "stall", "after": 5}, "model_stalled", 1),
        # The model would do it again: no further attempt although there could be one.
        ({"kind": "clean_end", "after": 5}, "model_cut", 3),
    ],
)
async def test_a_last_attempt_fails_with_what_was_said(
    tmp_path: Path, fault: dict[str, Any], code: str, attempts: int
) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server, between_tokens_s=0.4):
        history.attempts = attempts
        await server.control.fault(**fault)
        turn = await history.queue_turn()
        end = await history.ended(turn)
        await history.emptied()
    assert isinstance(end.data, AnswerFailed)
    assert (end.data.code, end.data.attempt, end.data.text) == (code, 1, "".join(WORDS[:5]))
    assert end.data.last_index == len(turn.tokens)


async def test_before_the_first_piece_the_same_attempt_tries_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await server.control.fault("status", row="proxy_502")
        await server.control.fault("status", status=429, headers={"retry-after": "1"}, nth=1)
        turn = await history.queue_turn()
        await history.ended(turn)
    whole(turn, attempt=1)
    assert len(history.claims) == 1


async def test_what_the_server_said_is_kept_where_the_time_cuts_a_further_try(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server, first_token_s=5.0):
        history.attempts = 1
        await server.control.fault("status", row="proxy_502")
        await server.control.fault("hang", nth=2)
        end = await history.ended(await history.queue_turn())
    assert isinstance(end.data, AnswerFailed)
    assert end.data.code == "model_error"


@pytest.mark.parametrize(("row", "code"), [("not_found", "model_not_found"), ("too_long", "context_too_long")])
async def test_a_refused_request_fails_the_turn_at_once(tmp_path: Path, row: str, code: str) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await server.control.fault("status", row=row)
        turn = await history.queue_turn()
        end = await history.ended(turn)
        await history.emptied()
        assert (await history.presence(free=1)).server == "ok"
    assert end.envelope.data == {"attempt": 1, "code": code, "last_index": 0, "model": MODEL}


async def test_a_first_token_that_does_not_come_is_a_loss(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server, first_token_s=0.5):
        await server.control.fault("hang")
        turn = await history.queue_turn()
        await history.presence(server="model_stalled")
        await history.ended(turn)
    whole(turn, attempt=2)


async def test_an_answer_that_runs_too_long_fails(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=100) as (b, history, server), worker(b, server, turn_s=1):
        turn = await history.queue_turn()
        end = await history.ended(turn)
        await history.emptied()
    assert isinstance(end.data, AnswerFailed)
    assert (end.data.code, end.data.text) == ("model_stalled", turn.text(1))


async def test_heartbeats_keep_a_context_that_takes_longer_than_the_queue_waits(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=100) as (b, history, server), worker(b, server, slots=2, heartbeat_s=0.2):
        await history.presence(server="ok")
        await deliver_again_after(history, 1.0)
        turn = await history.queue_turn()
        await history.ended(turn)
    whole(turn, attempt=1)
    assert len(history.claims) == 1


async def test_a_killed_worker_is_followed_by_another_one(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=50) as (b, history, server):
        async with worker_process(b, server, worker_id="first") as first:
            await history.presence(worker_id="first", server="ok")
            turn = await history.queue_turn()
            await eventually(lambda: len(turn.tokens) > 3, reason="the first worker answers")
            first.kill()
        async with worker(b, server, worker_id="second"):
            await history.presence(worker_id="second", server="ok")
            await deliver_again_after(history, 1.0)
            await history.ended(turn)
            await history.emptied()
    whole(turn, attempt=2)


async def test_a_worker_that_ends_finishes_its_answer_and_takes_no_more(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=30) as (b, history, server):
        async with worker_process(b, server, drain_timeout_s=60) as process:
            await history.presence(server="ok")
            running = await history.queue_turn()
            await eventually(lambda: running.tokens, reason="the answer runs")
            process.send_signal(signal.SIGTERM)
            await history.presence(stopping=True)
            waiting = await history.queue_turn()
            assert await asyncio.wait_for(process.wait(), timeout=50) == 0
        whole(running, attempt=1)
        assert [claim.turn_id for claim in history.claims] == [running.turn_id]
        assert waiting.end is None
        assert await history.queued() == 1


async def test_a_worker_that_must_end_gives_its_answer_back_at_once(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=100) as (b, history, server):
        async with worker_process(b, server, drain_timeout_s=3.5) as process:
            await history.presence(server="ok")
            turn = await history.queue_turn()
            await eventually(lambda: turn.tokens, reason="the answer runs")
            process.send_signal(signal.SIGTERM)
            await history.presence(stopping=True)
            assert await asyncio.wait_for(process.wait(), timeout=60) == 0
        assert turn.end is None
        assert [record["outcome"] for record in await server.control.requests()] == ["client_gone"]
        await server.control.speed(token_gap_ms=1)
        async with worker(b, server):
            # Well before the queue's 10 s: it was given back, not forgotten.
            await history.ended(turn, timeout_s=8)
        whole(turn, attempt=2)


async def test_a_worker_that_must_end_in_the_last_attempt_keeps_what_was_said(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=200) as (b, history, server):
        history.attempts = 1
        async with worker(b, server, drain_timeout_s=3.5) as lifecycle:
            turn = await history.queue_turn()
            await eventually(lambda: turn.tokens, reason="the answer runs")
            lifecycle.stop()
            end = await history.ended(turn)
        await history.emptied()
    assert isinstance(end.data, AnswerFailed)
    assert (end.data.code, end.data.text) == ("worker_lost", turn.text(1))


async def test_a_broker_that_restarts_in_mid_answer_fails_no_turn(tmp_path: Path) -> None:
    async with stage(tmp_path, token_gap_ms=100) as (b, history, server), worker(b, server):
        turn = await history.queue_turn()
        await eventually(lambda: len(turn.tokens) > 3, reason="the answer runs")
        await b.kill()
        await b.start()
        await eventually(lambda: history.client.is_connected, reason="the test is connected again")
        end = await history.ended(turn)
        await history.emptied()
        # And it goes on: the pulls that the broker forgot are made again.
        again = await history.queue_turn()
        await history.ended(again)
    assert isinstance(end.data, AnswerCompleted)
    assert (end.data.text, end.data.attempt) == (STORY, 1)
    whole(again, attempt=1)


async def test_a_pull_that_a_restarted_broker_forgot_is_made_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await history.presence(server="ok")
        await b.kill()
        await b.start()
        await eventually(lambda: history.client.is_connected, reason="the test is connected again")
        turn = await history.queue_turn()
        await history.ended(turn)
    whole(turn, attempt=1)


async def test_the_end_is_told_once_the_broker_is_back(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        turn = await history.queue_turn()
        await eventually(lambda: len(turn.tokens) > 3, reason="the answer runs")
        await b.stop()

        async def said() -> bool:
            return [record["outcome"] for record in await server.control.requests()] == ["done"]

        await eventually(said, reason="the model has said all of it")
        await b.start()
        end = await history.ended(turn)
        await history.emptied()
    assert end.envelope.data["text"] == STORY
    # What was said meanwhile has its indexes: whoever misses it asks for the text so far.
    assert end.envelope.data["last_index"] > len(turn.tokens)


async def test_a_sick_server_is_given_nothing_until_it_answers(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await history.presence(server="ok")
        await server.control.fault("status", route="tags", row="panic", times=None)
        await history.presence(server="model_error")
        turn = await history.queue_turn()
        said = len(history.presences)
        await eventually(lambda: len(history.presences) > said + 1, reason="two more beats", timeout_s=60)
        assert (history.claims, await history.queued()) == ([], 1)
        await server.control.reset()
        await server.control.script(WORDS)
        await history.presence(server="ok")
        await history.ended(turn)
    whole(turn, attempt=1)


async def test_a_consumer_that_somebody_deleted_is_made_again(tmp_path: Path) -> None:
    async with stage(tmp_path) as (b, history, server), worker(b, server):
        await history.presence(server="ok")
        name = subjects.context_consumer("answer", MODEL)
        js = history.client.jetstream()

        async def there() -> bool:
            return name in [consumer.name for consumer in await js.consumers_info(subjects.CONTEXT_STREAM)]

        await eventually(there, reason="the worker makes the model's consumer")
        await js.delete_consumer(subjects.CONTEXT_STREAM, name)
        turn = await history.queue_turn()
        await history.ended(turn)
    whole(turn, attempt=1)
