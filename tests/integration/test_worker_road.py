"""Steps 11, 12 and 14 on a real broker and a stand-in: a worker takes a turn, and what history says is done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nats.errors import TimeoutError as NatsTimeoutError

from contracts import subjects
from contracts.events import AnswerCancelled, AnswerCompleted
from contracts.turns import Cancel, Go, Stop
from tests.brokers import broker
from tests.polling import eventually
from tests.scripted_history import MODEL, OTHER_MODEL, ScriptedHistory, Turn, new_id, queued_context, scripted_history
from tests.standins import Standin, standin_process
from tests.workers import worker

WORDS = ["Once ", "upon ", "a ", "time ", "there ", "was ", "a ", "log."]
STORY = "".join(WORDS)
# The other one thinks before it speaks.
MODELS = [MODEL, {"name": OTHER_MODEL, "capabilities": ["completion", "thinking"]}]


@asynccontextmanager
async def stage(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[ScriptedHistory, Standin]]:
    """A broker, a scripted history, a stand-in and a worker that is ready."""
    async with (
        broker(tmp_path) as b,
        scripted_history(b) as history,
        standin_process(models=MODELS, load_s=0, token_gap_ms=20) as server,
        worker(b, server, **more),
    ):
        await history.presence(server="ok")
        yield history, server


async def test_a_turn_from_its_context_to_its_ack(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        await server.control.script(WORDS, thinking=["hm"])
        turn = await history.queue_turn(OTHER_MODEL, temperature=0.5)
        end = await history.ended(turn)
        await history.emptied()
        await history.presence(free=1, runs=[])
    assert isinstance(end.data, AnswerCompleted)
    assert (end.data.text, end.data.thinking, end.data.end, end.data.model) == (STORY, "hm", "stop", OTHER_MODEL)
    assert (end.data.attempt, end.data.last_index) == (1, len(turn.tokens))
    assert end.data.usage.completion_tokens
    assert turn.indexes(1) == list(range(1, len(turn.tokens) + 1))
    assert turn.text(1) == STORY
    assert len(turn.tokens) > 2
    assert {run.run for presence in history.presences for run in presence.runs} == {turn.run}


async def test_presence_names_models_slots_and_runs(tmp_path: Path) -> None:
    async with stage(tmp_path, slots=2, worker_id="w1") as (history, server):
        idle = await history.presence(free=2)
        assert (idle.worker_id, idle.server, idle.server_kind, idle.slots) == ("w1", "ok", "ollama", 2)
        assert sorted(model.name for model in idle.models) == [OTHER_MODEL, MODEL]
        await server.control.script(WORDS, thinking=[])
        turn = await history.queue_turn()
        busy = await history.presence(free=1)
        assert [run.turn_id for run in busy.runs] == [turn.turn_id]
        await history.ended(turn)


async def test_nothing_is_let_out_before_go(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        history.speaks = history.answers = False
        await server.control.script(WORDS)
        turn = await history.queue_turn()
        await eventually(lambda: history.claims, reason="the turn is claimed")

        await eventually(lambda: _done(server), reason="the model has said all of it")
        assert turn.frames == []
        assert turn.end is None
        history.speaks = True
        await history.say(turn)
        end = await history.ended(turn)
        assert end.envelope.data["text"] == STORY
        # All that was held is one frame.
        assert [frame["index"] for frame in turn.tokens] == [1]


async def test_a_context_of_a_later_version_stays_in_the_queue_and_holds_up_nobody(tmp_path: Path) -> None:
    """Of a history that was upgraded before its workers (ADR 0007): one that can read it comes yet."""
    async with stage(tmp_path) as (history, server):
        await server.control.script(WORDS)
        later = Turn(turn_id=new_id(), session_id=new_id())
        payload = queued_context(later).replace(b'"schema_version":2', b'"schema_version":3')
        await history.client.jetstream().publish(subjects.context("answer", MODEL, later.turn_id), payload)
        end = await history.ended(await history.queue_turn())

        async def one_is_left() -> bool:
            return await history.queued() == 1

        await eventually(one_is_left, reason="the other one's context is acked")
    assert isinstance(end.data, AnswerCompleted)


async def test_a_word_that_went_lost_is_asked_for(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        history.speaks = False
        await server.control.script(WORDS)
        turn = await history.queue_turn()
        await history.ended(turn)
        await history.emptied()
        # Once for go, once for what became of the end.
        assert history.asked >= 2
        assert len(history.claims) == 1


async def test_a_go_for_another_run_leaves_the_context_alone(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        history.speaks = history.answers = False
        await server.control.speed(token_gap_ms=1000)
        turn = await history.queue_turn()
        await eventually(lambda: history.claims, reason="the turn is claimed")
        await history.say(turn, Go(turn_id=turn.turn_id, run=new_id(), attempt=2, last=False))
        await history.presence(free=1)
        await closed(server)
        assert await history.queued() == 1
        assert turn.frames == []
        assert turn.end is None


@pytest.mark.parametrize("started", [True, False])
async def test_a_stop_closes_the_model_and_acks(tmp_path: Path, started: bool) -> None:
    async with stage(tmp_path) as (history, server):
        history.speaks = started
        history.answers = False
        await server.control.speed(token_gap_ms=200)
        turn = await history.queue_turn()
        await eventually(lambda: history.claims, reason="the turn is claimed")
        if started:
            await eventually(lambda: turn.tokens, reason="the answer runs")
        await history.say(turn, Stop(turn_id=turn.turn_id, code="turn_cancelled"))
        await history.emptied()
        await closed(server)
        assert turn.end is None


async def test_a_cancel_ends_the_turn_with_what_was_said(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        await server.control.speed(token_gap_ms=200)
        turn = await history.queue_turn()
        await eventually(lambda: turn.tokens, reason="the answer runs")
        # The model's stream is closed at once, not only when the end is recorded.
        history.reading.clear()
        await history.say(turn, Cancel(turn_id=turn.turn_id))
        await closed(server, timeout_s=1.0)
        history.reading.set()
        end = await history.ended(turn)
        await history.emptied()
    assert isinstance(end.data, AnswerCancelled)
    assert (end.data.text, end.data.last_index) == (turn.text(1), len(turn.tokens))
    assert end.data.text


async def test_a_snapshot_is_what_the_frames_said(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        await server.control.speed(token_gap_ms=60)
        turn = await history.queue_turn()
        await eventually(lambda: len(turn.tokens) > 3, reason="the answer runs")
        so_far = await history.snapshot(turn, attempt=1)
        assert so_far.index >= 3
        told = [frame["text"] for frame in turn.tokens if frame["index"] <= so_far.index]
        assert so_far.text == "".join(told)
        with pytest.raises(NatsTimeoutError):
            await history.snapshot(turn, attempt=2)
        # The answer is held until its end is recorded.
        history.reading.clear()
        await eventually(lambda: _done(server), reason="the model has ended")
        whole = await history.snapshot(turn, attempt=1)
        assert whole.text == turn.text(1)
        await eventually(lambda: told_end(history), reason="the queue has the end")
        asked = history.asked
        await eventually(lambda: history.asked > asked, reason="history is asked what became of it")
        assert await history.queued() == 1, "no ack on the queue's word alone"
        history.reading.set()
        assert (await history.ended(turn)).envelope.data["text"] == whole.text


async def test_a_load_is_said(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        await server.control.speed(load_s=6, answer_tokens=4)
        turn = await history.queue_turn()
        await history.ended(turn)
        said = [frame["type"] for frame in turn.frames]
        assert said[:2] == ["loading", "loading"], "again, for whoever attaches meanwhile"
        assert "loading" not in said[said.index("token") :]
        assert turn.frames[0]["model"] == MODEL
        # A model in memory that is slow to speak is not loading.
        await server.control.fault("stall", after=None, seconds=1.5)
        again = await history.queue_turn()
        await history.ended(again)
        assert {frame["type"] for frame in again.frames} == {"token"}
        assert [model.window for model in history.presences[-1].models if model.name == MODEL] != [None]


async def test_a_worker_takes_no_more_than_its_slots_and_serves_its_models_in_turn(tmp_path: Path) -> None:
    async with stage(tmp_path) as (history, server):
        await server.control.speed(answer_tokens=4, thinking_tokens=1)
        order = [MODEL] * 5 + [OTHER_MODEL] * 4
        turns = [await history.queue_turn(model=model) for model in order]
        for turn in turns:
            await history.ended(turn)
        await history.emptied()
        assert all(len(presence.runs) <= 1 for presence in history.presences)
        served = [order[[turn.turn_id for turn in turns].index(str(claim.turn_id))] for claim in history.claims]
        # No model waits until the other one's queue is empty: one after the other, as soon as both have something.
        assert served[2:6] in ([MODEL, OTHER_MODEL] * 2, [OTHER_MODEL, MODEL] * 2)


async def test_an_answer_without_an_end_is_ended_with_length(tmp_path: Path) -> None:
    async with stage(tmp_path, answer_chars=40) as (history, server):
        await server.control.script(WORDS * 10)
        turn = await history.queue_turn()
        end = await history.ended(turn)
        await closed(server)
    assert (end.envelope.data["end"], end.envelope.data["text"]) == ("length", (STORY * 10)[:40])


async def closed(server: Standin, timeout_s: float = 5.0) -> None:
    """The stand-in has seen its client go."""

    async def gone() -> bool:
        return all(record["outcome"] == "client_gone" for record in await server.control.requests())

    await eventually(gone, reason="the model's stream is closed", timeout_s=timeout_s)


async def told_end(history: ScriptedHistory) -> bool:
    """The intake holds a claim and an end."""
    return (await history.client.jetstream().stream_info(subjects.INTAKE_STREAM)).state.messages == 2


async def _done(server: Standin) -> bool:
    return all(record["outcome"] == "done" for record in await server.control.requests())
