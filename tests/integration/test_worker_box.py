"""Steps 11 and 12 with the real box under a real worker: slow, asleep and killed in mid-answer."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from contracts.turns import Cancel
from services.runtime.lifecycle import cancel_all
from tests.boxes import MODEL, Box, box
from tests.brokers import broker
from tests.operated import free_port
from tests.polling import eventually
from tests.scripted_history import ScriptedHistory, Turn, scripted_history
from tests.workers import worker

pytestmark = pytest.mark.timeout(500)

PATIENT_S = 120.0
STORY = "Tell me a very long story about a fox, a river and an old bridge."


async def test_a_box_that_is_slow_asleep_or_killed_costs_no_turn(tmp_path: Path) -> None:
    port, api_key = free_port(), "a-key-that-stays"
    async with (
        broker(tmp_path) as b,
        scripted_history(b) as history,
        box(tmp_path, port=port, api_key=api_key) as running,
        worker(b, running),
    ):
        await history.presence(server="ok")
        await slow(running, history)
        await asleep(running, history)
        turn = await begun(history)
        await running.stop(signal.SIGKILL)
        await history.presence(server="model_unreachable", runs=[])
        assert turn.end is None
        async with box(tmp_path, port=port, api_key=api_key):
            await goes_on(history, turn, attempt=2)


async def slow(running: Box, history: ScriptedHistory) -> None:
    """It stands still for most of the time: nothing is lost, given back or called sick."""

    async def stutter() -> None:
        while True:
            running.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)  # pace: it works for a quarter of the time
            running.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.1)  # pace: as above

    heard = len(history.presences)
    stuttering = asyncio.create_task(stutter())
    try:
        turn = await history.queue_turn(MODEL, STORY, max_tokens=8)
        end = await history.ended(turn, PATIENT_S)
        assert (end.type, end.envelope.data["attempt"]) == ("answer_completed", 1)
    finally:
        await cancel_all([stuttering])
        running.process.send_signal(signal.SIGCONT)
    assert {presence.server for presence in history.presences[heard:]} == {"ok"}


async def asleep(running: Box, history: ScriptedHistory) -> None:
    """Its worker says so and takes no turn; when it wakes up, the answer goes on where it was."""
    turn = await begun(history)
    running.process.send_signal(signal.SIGSTOP)
    try:
        await history.presence(server="model_stalled")
        waiting = await history.queue_turn(MODEL, STORY)
        assert (turn.end, waiting.run) == (None, None)
    finally:
        running.process.send_signal(signal.SIGCONT)
    await goes_on(history, turn, attempt=1)
    await goes_on(history, waiting, attempt=1)


async def begun(history: ScriptedHistory) -> Turn:
    """A turn whose answer runs, and has seconds to go."""
    turn = await history.queue_turn(MODEL, STORY)
    await eventually(lambda: turn.indexes(1), reason="the answer runs", timeout_s=PATIENT_S)
    return turn


async def goes_on(history: ScriptedHistory, turn: Turn, attempt: int) -> None:
    """The attempt tells more, without a gap; the rest of the story is not waited for."""
    before = len(turn.indexes(attempt))
    await eventually(lambda: len(turn.indexes(attempt)) > before, reason="the answer goes on", timeout_s=PATIENT_S)
    await history.say(turn, Cancel(turn_id=turn.turn_id))
    end = await history.ended(turn, PATIENT_S)
    assert end.envelope.data["attempt"] == attempt
    assert turn.indexes(attempt) == list(range(1, end.envelope.data["last_index"] + 1))
