"""Steps 11 and 12 when the model server is in trouble, on both wires: no turn is given to it, it says why, it is back.

One broker, history and stand-in for all tests of a wire; each brings its worker, whose presence is followed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from contracts.events import AnswerCompleted, AnswerFailed
from contracts.turns import Cancel, Presence
from services.inference import health
from tests.brokers import Broker, broker
from tests.conversing import new_id
from tests.operated import free_port
from tests.polling import eventually
from tests.scripted_history import MODEL, OTHER_MODEL, ScriptedHistory, Turn, scripted_history
from tests.standins import Standin, chat, standin_process
from tests.workers import worker

pytestmark = pytest.mark.asyncio(loop_scope="module")

WORDS = [f"word{number} " for number in range(10)]
# For what takes a second: on a machine that is busy with other tests much longer.
PATIENT_S = 60.0


@dataclass
class Stage:
    """What a worker stands on. `lists` is the route of its wire's list of models."""

    wire: str
    broker: Broker
    history: ScriptedHistory
    server: Standin
    ports: dict[str, int]
    processes: AsyncExitStack
    worker_id: str = ""

    @property
    def lists(self) -> dict[str, str]:
        return {"wire": self.wire, "route": "tags" if self.wire == "ollama" else "models"}

    @asynccontextmanager
    async def worker(self, **settings: Any) -> AsyncIterator[None]:
        """A worker of this wire, well and waiting for turns."""
        self.worker_id = new_id()
        wire = {"model_server": self.wire, f"{self.wire}_url": getattr(self.server, f"{self.wire}_url")}
        async with worker(self.broker, self.server, worker_id=self.worker_id, **wire, **settings):
            await self.says()
            yield

    async def says(self, *, server: str = "ok", trouble: str | None = None) -> Presence:
        """The worker's presence, once the latest one says that of its server and MODEL, and has no runs."""

        def fits() -> Presence | None:
            said = [heard for heard in self.history.presences if heard.worker_id == self.worker_id][-1:]
            return next((p for p in said if (p.server, troubles(p).get(MODEL), p.runs) == (server, trouble, [])), None)

        said: Presence = await eventually(fits, reason=f"{server}, {trouble} in presence", timeout_s=PATIENT_S)
        return said

    async def offers_no_longer(self) -> bool:
        return list(troubles(await self.says())) == [OTHER_MODEL]

    async def trials(self, count: int) -> None:
        """Wait until the server has been asked for so many single tokens."""

        async def enough() -> bool:
            asked = [record["fields"] for record in await self.server.control.requests()]
            limits = [each.get("max_tokens") or each.get("options", {}).get("num_predict") for each in asked]
            return limits.count(1) >= count

        await eventually(enough, reason=f"{count} trials", timeout_s=PATIENT_S)

    async def answered(self, turn: Turn, attempt: int) -> None:
        await self.history.ended(turn, PATIENT_S)
        assert turn.end is not None
        assert isinstance(turn.end.data, AnswerCompleted), turn.end.data
        assert (turn.end.data.attempt, turn.end.data.text) == (attempt, "".join(WORDS))
        assert turn.text(attempt) == turn.end.data.text

    async def start_server(self) -> None:
        options = {"models": [MODEL, OTHER_MODEL], "load_s": 0, "token_gap_ms": 1}
        self.server = await self.processes.enter_async_context(standin_process(**options, **self.ports))
        await self.fresh()

    async def is_cold(self, load_s: float) -> None:
        """MODEL is out of memory, whatever was asked before, and takes so long to come back."""
        await chat(self.server.ollama_url, [], model=MODEL)
        await self.server.control.runner(MODEL, "unload")
        await self.fresh()
        await self.server.control.speed(load_s=load_s)

    async def fresh(self) -> None:
        await self.server.control.reset()
        await self.server.control.speed(load_s=0, token_gap_ms=1)
        await self.server.control.script(WORDS, times=None)


def troubles(presence: Presence) -> dict[str, str | None]:
    """Of each model on offer."""
    return {model.name: model.trouble for model in presence.models}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["ollama", "openai"])
async def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    ports = {name: free_port() for name in ("port", "openai_port", "control_port")}
    async with (
        AsyncExitStack() as processes,
        broker(tmp_path_factory.mktemp(request.param)) as b,
        scripted_history(b) as history,
        standin_process() as unused,
    ):
        stage = Stage(request.param, b, history, unused, ports, processes)
        await stage.start_server()
        yield stage


@pytest_asyncio.fixture(loop_scope="module")
async def stage(made: Stage) -> Stage:
    """The stand-in as it began, and no turn left over."""
    await made.fresh()
    made.history.attempts = 3
    return made


async def test_a_zombie_is_given_no_turns_until_a_chat_is_answered(stage: Stage) -> None:
    """Its list comes at once, its chat never. The last attempt fails; nobody else's turn is spent on finding out."""
    history = stage.history
    async with stage.worker(first_token_s=0.5, slots=2):
        history.attempts = 1
        await stage.server.control.fault("hang", times=None)
        lost = await history.queue_turn()
        end = await history.ended(lost, PATIENT_S)
        assert isinstance(end.data, AnswerFailed)
        assert end.data.code == "model_stalled"
        assert (await stage.says(trouble="model_stalled")).free == 2
        waiting = await history.queue_turn()
        await stage.trials(1)
        assert (waiting.run, await history.queued()) == (None, 1)
        await stage.fresh()
        await stage.answered(waiting, attempt=1)


async def test_refusals_for_want_of_room_use_up_one_attempt_only(stage: Stage) -> None:
    async with stage.worker():
        busy = {"row": "busy", "headers": {"retry-after": "0"}, "times": None}
        await stage.server.control.fault("status", **busy)
        turn = await stage.history.queue_turn()
        await stage.says(trouble="model_busy")
        await stage.trials(1)
        await stage.fresh()
        await stage.answered(turn, attempt=2)


async def test_a_server_that_was_away_is_believed_again_whatever_a_trial_waits_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine slept: nobody will ever answer the trial of before, nor say that its connection is dead."""
    monkeypatch.setattr(health, "ASK_EVERY_S", 0.05)
    async with stage.worker():
        await stage.server.control.fault("reset", after=5)
        await stage.server.control.fault("hang", nth=2)
        turn = await stage.history.queue_turn()
        await stage.trials(1)
        await stage.server.control.fault("status", row="panic", times=2, **stage.lists)
        await stage.answered(turn, attempt=2)


async def test_one_model_in_trouble_leaves_the_others_their_turns(stage: Stage) -> None:
    async with stage.worker():
        broken = {"row": "runner_exit", "headers": {"retry-after": "0"}, "times": None, "model": OTHER_MODEL}
        await stage.server.control.fault("status", **broken)
        lost = await stage.history.queue_turn(OTHER_MODEL)

        async def said() -> bool:
            return troubles(await stage.says()) == {MODEL: None, OTHER_MODEL: "model_error"}

        await eventually(said, reason="the other model is in trouble", timeout_s=PATIENT_S)
        await stage.answered(await stage.history.queue_turn(MODEL), attempt=1)
        assert lost.attempt == 1
        await stage.fresh()
        await stage.answered(lost, attempt=2)


async def test_a_cold_model_is_loaded_once_however_many_wait(stage: Stage) -> None:
    async with stage.worker(slots=2):
        await stage.is_cold(load_s=1.0)
        turns = [await stage.history.queue_turn() for _ in range(3)]
        for turn in turns:
            await stage.answered(turn, attempt=1)
        assert await stage.server.control.loads() == ["loaded"]


async def test_a_load_too_slow_for_turns_is_not_begun_again_and_again(stage: Stage) -> None:
    """The trial waits longer each time, so that it comes to its end; the turn is then answered from memory."""
    async with stage.worker(first_token_s=0.5):
        await stage.is_cold(load_s=1.5)
        await stage.answered(await stage.history.queue_turn(), attempt=2)
        *given_up, last = await stage.server.control.loads()
        assert (last, set(given_up)) == ("loaded", {"given_up"})
        assert len(given_up) <= 3, "its turn's, and trials of 1, 2 and 4 s"


async def test_a_leaked_slot_is_nobodys_turn(stage: Stage) -> None:
    async with stage.worker(first_token_s=0.5):
        await stage.server.control.speed(token_gap_ms=200)
        await stage.server.control.fault("leak_slot")
        stopped = await stage.history.queue_turn()
        await eventually(lambda: stopped.tokens, reason="the answer runs", timeout_s=PATIENT_S)
        await stage.history.say(stopped, Cancel(turn_id=stopped.turn_id))
        await stage.history.ended(stopped, PATIENT_S)
        turn = await stage.history.queue_turn()
        await stage.says(trouble="model_stalled")
        await stage.trials(1)
        await stage.server.control.runner(MODEL, "kill")
        await stage.fresh()
        await stage.answered(turn, attempt=2)


async def test_a_model_that_vanishes_from_the_list_and_comes_back_costs_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ASK_EVERY_S", 0.05)
    async with stage.worker():
        first = len(stage.history.presences)
        await stage.server.control.fault("unlisted", unlisted=[MODEL], nth=2, times=20, **stage.lists)
        for _ in range(5):
            await stage.answered(await stage.history.queue_turn(), attempt=1)
        said = [presence.models for presence in stage.history.presences[first:]]
        assert all([model.name for model in models] == [OTHER_MODEL, MODEL] for models in said)


async def test_a_model_that_is_gone_for_good_is_offered_again_once_it_is_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "ASK_EVERY_S", 0.05)
    monkeypatch.setattr(health, "GONE_AFTER_S", 0.2)
    async with stage.worker():
        await stage.server.control.fault("unlisted", unlisted=[MODEL], times=None, **stage.lists)

        await eventually(stage.offers_no_longer, reason="the model is offered no more", timeout_s=PATIENT_S)
        turn = await stage.history.queue_turn()
        await stage.answered(await stage.history.queue_turn(OTHER_MODEL), attempt=1)
        assert turn.run is None
        await stage.fresh()
        await stage.answered(turn, attempt=1)
        assert turn.run in {str(claim.envelope.data["run"]) for claim in stage.history.claims[-1:]}


async def test_a_server_that_crashes_and_restarts_is_given_its_turn_again(stage: Stage) -> None:
    async with stage.worker():
        await stage.server.control.speed(token_gap_ms=200)
        turn = await stage.history.queue_turn()
        await eventually(lambda: turn.tokens, reason="the answer runs", timeout_s=PATIENT_S)
        stage.server.kill()
        await stage.says(server="model_unreachable", trouble="model_lost")
        await stage.start_server()
        await stage.answered(turn, attempt=2)
        await stage.says()
