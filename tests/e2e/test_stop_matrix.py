"""P6: an answer is stopped in each of its states, on each door (docs/clients.md, "Stopping an answer")."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.chatting import chatter, http, new_session, send
from tests.installations import MODEL, Installation
from tests.stopping import DOORS, DoorName, End, door, hung_up, request_in, request_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

# P6: the model's socket is closed within so long.
CLOSED_WITHIN_S = 1.0
# An answer that no test waits for: some 30 s.
LONG = {"token_gap_ms": 20, "answer_tokens": 1500, "thinking_tokens": 1500}


@dataclass(frozen=True)
class State:
    """A moment in a turn's life. arrange: what makes the next answer stay there; reached: waits until it is there."""

    name: str
    model: str = MODEL
    comes: bool = True  # whether the model server hears of it
    says: str = ""  # what is kept of it: thinking, text


STATES = [
    State("waiting", comes=False),
    State("queued", comes=False),
    State("loading"),
    State("prefill"),
    State("thinking", model="thinker:latest", says="thinking"),
    State("text", says="text"),
]


@asynccontextmanager
async def arranged(running: Installation, web: httpx.AsyncClient, state: State, session_id: str) -> AsyncIterator[None]:
    """The next answer of this session will stay in this state."""
    control = running.standin.control
    await control.speed(**LONG)
    fillers: list[tuple[str, str]] = []
    if state.name in ("waiting", "queued"):
        sessions = [session_id] if state.name == "waiting" else [await new_session(web) for _ in range(2)]
        for n, filled in enumerate(sessions):
            fillers.append((filled, (await send(web, filled, f"filler {n}")).json()["turn_id"]))
            await request_in(running, f"filler {n}", "decode")
    elif state.name == "loading":
        await control.runner(MODEL, "unload")
        await control.speed(load_s=30)
    elif state.name == "prefill":
        await control.speed(prefill_tokens_per_s=1)
    yield
    await control.speed(load_s=0, prefill_tokens_per_s=1e6, token_gap_ms=1, answer_tokens=5, thinking_tokens=2)
    for filled, turn_id in fillers:
        assert (await web.post(f"/v1/sessions/{filled}/turns/{turn_id}/cancel")).status_code == 200


async def reached(running: Installation, state: State, text: str) -> None:
    """Waiting and queued it is once it is accepted: history decides in the order of the intake."""
    if state.comes:
        phase = {"loading": "arrived", "prefill": "prefill"}.get(state.name, "decode")
        await request_in(running, text, phase, pieces=5 if state.says else 0)


def check_kept(state: State, end: End) -> None:
    assert end.type == "answer_cancelled"
    assert bool(end.text) == (state.says == "text")
    assert bool(end.thinking) == (state.says == "thinking")


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
async def test_stopped(running: Installation, state: State, name: DoorName) -> None:
    """Others see the end too; the model's socket is closed, or the request never came; the conversation goes on."""
    text = f"stop me {state.name} {name}"
    async with http(running.http()) as web, chatter(running.ws(1)) as other, door(running, name) as client:
        session_id = await new_session(web, model=state.model)
        watched = await other.attach(session_id, session_id)
        async with arranged(running, web, state, session_id):
            turn_id = await client.ask(session_id, text)
            await reached(running, state, text)
            stopped_at = time.monotonic()
            assert await client.stop(session_id, turn_id) is None
            end = await client.end(session_id, turn_id)
            check_kept(state, end)
            if state.comes:
                assert await hung_up(running, text) - stopped_at < CLOSED_WITHIN_S
        await other.until(lambda: watched.ended(turn_id), "the end at another client")
        told = [json.loads(raw) for raw in watched.token_frames.get(turn_id, [])]
        assert not watched.broken
        assert "".join(frame["text"] for frame in told) == end.text == watched.answers[turn_id].text
        assert "".join(frame.get("thinking", "") for frame in told) == end.thinking
        found = (await web.get(f"/v1/sessions/{session_id}/turns/{turn_id}")).json()["turn"]
        assert (found["status"], found["code"]) == ("cancelled", "cancelled")
        await check_goes_on(running, web, session_id, text, end)


async def check_goes_on(running: Installation, web: httpx.AsyncClient, session_id: str, text: str, end: End) -> None:
    """The next answer is given, and the model is shown what was kept of this one. It was never asked for it again."""
    after = await send(web, session_id, f"after {text}", headers={"Accept": "text/event-stream"})
    assert '"type":"answer_completed"' in after.text.splitlines()[-2]
    record = await request_of(running, f"after {text}")
    assert record is not None
    shown = [(said["role"], said["content"]) for said in record["messages"][-3:-1]]
    assert shown == [("user", text), ("assistant", end.text)] if end.text else shown[-1] == ("user", text)
    before = await request_of(running, text)
    assert before is None or before["outcome"] == "client_gone"


@pytest.mark.parametrize("name", DOORS)
async def test_stopped_after_its_end(running: Installation, name: DoorName) -> None:
    async with http(running.http()) as web, door(running, name) as client:
        session_id = await new_session(web)
        turn_id = await client.ask(session_id, f"whole {name}")
        whole = await client.end(session_id, turn_id)
        assert whole.type == "answer_completed"
        assert await client.stop(session_id, turn_id) == "turn_finished"
        assert await client.stop(session_id, turn_id) == "turn_finished"
        listed = (await web.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
        assert (listed[-1]["status"], listed[-1]["text"]) == ("completed", whole.text)


@pytest.mark.parametrize("name", DOORS)
async def test_stopped_twice(running: Installation, name: DoorName) -> None:
    """While its worker is being told, the second changes nothing; afterwards the turn has ended."""
    await running.standin.control.speed(**LONG)
    async with http(running.http()) as web, door(running, name) as client, door(running, "http", 1) as other:
        session_id = await new_session(web)
        turn_id = await client.ask(session_id, f"twice {name}")
        await request_in(running, f"twice {name}", "decode", pieces=5)
        running.workers[0].pause()
        try:
            assert await client.stop(session_id, turn_id) is None
            assert await other.stop(session_id, turn_id) is None
        finally:
            running.workers[0].resume()
        assert (await client.end(session_id, turn_id)).type == "answer_cancelled"
        assert await client.stop(session_id, turn_id) == "turn_finished"
        types = await types_of(web, session_id)
        assert (types.count("cancel_requested"), types.count("answer_cancelled")) == (1, 1)


@pytest.mark.parametrize("name", DOORS)
async def test_stopped_by_another_client_through_another_gateway(running: Installation, name: DoorName) -> None:
    """By the session's name, without watching it."""
    await running.standin.control.speed(**LONG)
    text = f"by another {name}"
    async with http(running.http()) as web, door(running, name) as client, chatter(running.ws(1)) as other:
        session_id = await new_session(web, name=f"shared {name}")
        turn_id = await client.ask(session_id, text)
        await request_in(running, text, "decode", pieces=5)
        stopped_at = time.monotonic()
        await other.tell(type="cancel", session=f"name:shared {name}", turn=turn_id)
        end = await client.end(session_id, turn_id)
        assert (end.type, bool(end.text)) == ("answer_cancelled", True)
        assert await hung_up(running, text) - stopped_at < CLOSED_WITHIN_S
        await other.until(lambda: other.replies("accepted"), "accepted")
        assert other.replies("accepted")[0].keys() == {"type", "session_id", "event_id", "turn_id"}
        assert other.replies("accepted")[0]["turn_id"] == turn_id


@pytest.mark.parametrize("name", DOORS)
async def test_a_stale_an_unknown_and_a_foreign_turn(running: Installation, name: DoorName) -> None:
    """Nothing else is stopped: the answer that runs goes on to its end."""
    unknown = "11111111-1111-4111-8111-111111111111"
    async with http(running.http()) as web, door(running, name) as client:
        session_id, other = await new_session(web), await new_session(web)
        stale = await client.ask(session_id, f"stale {name}")
        await client.end(session_id, stale)
        await running.standin.control.speed(token_gap_ms=20, answer_tokens=40)
        turn_id = await client.ask(session_id, f"running {name}")
        await request_in(running, f"running {name}", "decode", pieces=2)
        assert await client.stop(session_id, stale) == "turn_finished"
        assert await client.stop(session_id, unknown) == "turn_unknown"
        assert await client.stop(session_id, "not-an-id") == "turn_unknown"
        assert await client.stop(other, turn_id) == "turn_unknown"
        assert await client.stop(unknown, turn_id) == "session_unknown"
        assert (await client.end(session_id, turn_id)).type == "answer_completed"
        assert "cancel_requested" not in await types_of(web, session_id)


async def types_of(web: httpx.AsyncClient, session_id: str) -> list[str]:
    """The types of a session's events."""
    async with web.stream("GET", f"/v1/sessions/{session_id}/events") as stream:
        types: list[str] = []
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                frame = json.loads(line.removeprefix("data: "))
                if frame["type"] == "attached":
                    return types
                if frame["type"] == "event":
                    types.append(frame["event"]["type"])
    raise AssertionError("the stream ended")


async def test_a_key_is_one_stop_of_one_turn(running: Installation) -> None:
    await running.standin.control.speed(**LONG)
    async with http(running.http()) as web:
        session_id = await new_session(web)
        turns = [(await send(web, session_id, f"keyed {n}")).json()["turn_id"] for n in range(2)]
        await request_in(running, "keyed 0", "decode")
        headers = {"Idempotency-Key": "stop it"}
        path = f"/v1/sessions/{session_id}/turns/{{}}/cancel"
        first = await web.post(path.format(turns[0]), headers=headers)
        assert first.status_code == 200
        assert first.json().keys() == {"status", "event_id", "turn_id", "session_id", "position", "version"}
        await request_in(running, "keyed 1", "decode")
        again = await web.post(path.format(turns[0]), headers=headers)
        assert (again.status_code, again.json()) == (200, first.json()), "the same outcome, also after the end"
        other = await web.post(path.format(turns[1]), headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
        assert (await web.post(path.format(turns[1]), json={})).status_code == 200
        refused = await web.post(path.format(turns[1]), json={"reason": "I changed my mind"})
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_request")


async def test_who_holds_for_the_answer_is_told_that_it_was_stopped(running: Installation) -> None:
    await running.standin.control.speed(**LONG)
    async with http(running.http()) as web, chatter(running.ws()) as other:
        session_id = await new_session(web)
        view = await other.attach(session_id, session_id)

        async def stop() -> None:
            await other.until(lambda: view.token_frames, "a token")
            [turn_id] = view.token_frames
            await other.tell(type="cancel", session=session_id, turn=turn_id)

        path, body = f"/v1/sessions/{session_id}/messages?wait=answer", {"text": "held"}
        held, _ = await asyncio.gather(web.post(path, json=body), stop())
        assert (held.status_code, held.json()["code"]) == (409, "cancelled")


async def test_leaving_a_stream_stops_nothing(running: Installation) -> None:
    await running.standin.control.speed(token_gap_ms=20, answer_tokens=40)
    async with http(running.http()) as web, door(running, "http", 1) as other:
        session_id = await new_session(web)
        headers = {"Accept": "text/event-stream"}
        path = f"/v1/sessions/{session_id}/messages"
        async with web.stream("POST", path, json={"text": "left alone"}, headers=headers) as stream:
            async for line in stream.aiter_lines():
                if '"type":"token"' in line:
                    turn_id = json.loads(line.removeprefix("data: "))["turn_id"]
                    break
        assert (await other.end(session_id, turn_id)).type == "answer_completed"


async def test_turns_behind_a_stopped_one_go_on_in_their_order(running: Installation) -> None:
    """One that waits is taken out of the middle, then the running one is stopped."""
    await running.standin.control.speed(**LONG)
    async with http(running.http()) as web, door(running, "http") as client:
        session_id = await new_session(web)
        turns = [await client.ask(session_id, f"row {n}") for n in range(4)]
        await request_in(running, "row 0", "decode", pieces=2)
        assert await client.stop(session_id, turns[1]) is None
        await running.standin.control.speed(token_gap_ms=1, answer_tokens=5)
        assert await client.stop(session_id, turns[0]) is None
        ends = [(await client.end(session_id, turn_id)).type for turn_id in turns]
        assert ends == ["answer_cancelled", "answer_cancelled", "answer_completed", "answer_completed"]
        assert await request_of(running, "row 1") is None
        records = [
            record["messages"][-1]["content"] for record in await running.standin.control.requests(messages=True)
        ]
        assert records == ["row 0", "row 2", "row 3"]


async def test_a_message_and_its_stop_at_once(running: Installation) -> None:
    """No worker has a slot: whatever is on its way to the queue when it is withdrawn, none reaches the model."""
    await running.standin.control.speed(**LONG)
    async with http(running.http()) as web, chatter(running.ws()) as client:
        held = [await new_session(web) for _ in range(2)]
        for n, session_id in enumerate(held):
            await send(web, session_id, f"holds {n}")
            await request_in(running, f"holds {n}", "decode")
        session_id = await new_session(web)
        view = await client.attach(session_id, session_id)
        for n in range(30):
            turn_id = (await send(web, session_id, f"at once {n}")).json()["turn_id"]
            await client.tell(type="cancel", session=session_id, turn=turn_id)
        await client.until(lambda: view.order.count("answer_cancelled") == 30, "all are stopped")
        for each in held:
            [turn] = {row["turn_id"] for row in (await web.get(f"/v1/sessions/{each}/messages")).json()["messages"]}
            assert (await web.post(f"/v1/sessions/{each}/turns/{turn}/cancel")).status_code == 200
        await running.standin.control.speed(token_gap_ms=1, answer_tokens=5)
        await send(web, session_id, "the last", headers={"Accept": "text/event-stream"})
        records = [
            record["messages"][-1]["content"] for record in await running.standin.control.requests(messages=True)
        ]
        assert [text for text in records if text.startswith("at once")] == []
