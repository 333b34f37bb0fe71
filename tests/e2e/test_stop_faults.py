"""P6 when something is away: a stopped turn ends although its worker or history is paused or dead."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chatting import http, new_session, send
from tests.installations import QUICK, Installation, installation
from tests.polling import eventually
from tests.stopping import End, HttpDoor, StreamDoor, door, hung_up, request_in, request_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = {"token_gap_ms": 20, "answer_tokens": 1500}
CANCEL_S = 1.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    async with installation(tmp_path_factory.mktemp("stack"), CHATLOG_CANCEL_S=str(CANCEL_S)) as up:
        yield up


@pytest_asyncio.fixture(loop_scope="module")
async def running(started: Installation) -> Installation:
    """Each test has a session of its own, and answers that nobody waits for."""
    await started.standin.control.reset()
    await started.standin.control.speed(**{**QUICK, **LONG})
    return started


async def answers_again(running: Installation, client: HttpDoor, session_id: str) -> None:
    """The next turn of the session has the slot, and its answer."""
    await running.standin.control.speed(token_gap_ms=1, answer_tokens=5)
    turn_id = await client.ask(session_id, "and now?")
    assert (await client.end(session_id, turn_id)).type == "answer_completed"


async def test_a_worker_that_sleeps(running: Installation) -> None:
    """History ends the turn without the text; the worker that wakes up is told, lets go, and takes the next."""
    async with door(running, "stream") as client:
        assert isinstance(client, StreamDoor)
        session_id = await new_session(client.client)
        turn_id = await client.ask(session_id, "asleep")
        await request_in(running, "asleep", "decode", pieces=5)
        running.workers[0].pause()
        try:
            began = time.monotonic()
            assert await client.stop(session_id, turn_id) is None
            assert await client.end(session_id, turn_id) == End("answer_cancelled", "", "")
            assert CANCEL_S <= time.monotonic() - began < CANCEL_S + 3
        finally:
            running.workers[0].resume()
        woke = time.monotonic()
        assert await hung_up(running, "asleep") - woke < 1.0
        found = (await client.client.get(f"/v1/sessions/{session_id}/turns/{turn_id}")).json()["turn"]
        assert (found["status"], found["attempt"]) == ("cancelled", 1)
        assert await client.stop(session_id, turn_id) == "turn_finished"
    async with door(running, "http") as client:
        assert isinstance(client, HttpDoor)
        await answers_again(running, client, session_id)


async def test_a_worker_that_is_dead(running: Installation) -> None:
    """Its context comes to the next worker, which lets nothing out of a turn that has ended."""
    async with door(running, "http") as client:
        assert isinstance(client, HttpDoor)
        session_id = await new_session(client.client)
        turn_id = await client.ask(session_id, "orphan")
        await request_in(running, "orphan", "decode", pieces=5)
        await running.workers[0].kill()
        try:
            assert await client.stop(session_id, turn_id) is None
            assert await client.end(session_id, turn_id) == End("answer_cancelled", "", "")
        finally:
            await running.workers[0].start()
        await answers_again(running, client, session_id)
        assert (await request_of(running, "orphan") or {})["outcome"] == "client_gone", "and it was asked only once"


async def test_a_history_that_is_dead(running: Installation) -> None:
    """The stop is accepted and waits in the intake; its Location tells what became of it. The text is kept."""
    async with http(running.http()) as web:
        client = HttpDoor(web)
        session_id = await new_session(web)
        turn_id = await client.ask(session_id, "meanwhile")
        await request_in(running, "meanwhile", "decode", pieces=5)
        await running.history.kill()
        path = f"/v1/sessions/{session_id}/turns/{turn_id}/cancel"
        accepted = await web.post(path, headers={"Idempotency-Key": "k"})
        assert (accepted.status_code, accepted.json()["status"]) == (202, "accepted")
        assert (await request_of(running, "meanwhile") or {})["outcome"] == "in_flight"
        began = time.monotonic()
        await running.history.start()
        up_s = time.monotonic() - began
        end = await client.end(session_id, turn_id)
        assert (end.type, bool(end.text)) == ("answer_cancelled", True)
        assert await hung_up(running, "meanwhile") - began < up_s + 1.0
        told = (await web.get(accepted.headers["location"])).json()
        assert (told["status"], told["turn"]["status"]) == ("recorded", "cancelled")
        again = await web.post(path, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["event_id"]) == (200, accepted.json()["event_id"])
        await answers_again(running, client, session_id)


async def test_what_became_of_a_stop_that_history_refuses_later(running: Installation) -> None:
    """And of one whose message is not recorded yet, either: pending, not unknown."""
    await running.standin.control.speed(token_gap_ms=1, answer_tokens=5)
    async with http(running.http()) as web:
        client = HttpDoor(web)
        session_id = await new_session(web)
        turn_id = await client.ask(session_id, "early")
        await client.end(session_id, turn_id)
        await running.history.kill()
        late = await web.post(f"/v1/sessions/{session_id}/turns/{turn_id}/cancel")
        said = await send(web, session_id, "unrecorded")
        stop = await web.post(f"/v1/sessions/{session_id}/turns/{said.json()['turn_id']}/cancel")
        assert [answer.status_code for answer in (late, said, stop)] == [202, 202, 202]
        await running.history.start()

        async def told(answer_location: str) -> tuple[str, str | None]:
            answer = (await web.get(answer_location)).json()
            return answer["status"], (answer["turn"] or {}).get("status")

        async def both_known() -> bool:
            return await told(late.headers["location"]) == ("refused", "completed") and await told(
                stop.headers["location"]
            ) == ("recorded", "cancelled")

        await eventually(both_known, reason="both have their outcomes")
        assert await request_of(running, "unrecorded") is None
