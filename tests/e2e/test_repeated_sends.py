"""P6: the same send twice is one turn with one outcome, wherever and whenever it comes again."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from tests.chatting import chatter, http, new_session, send
from tests.installations import Installation
from tests.polling import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def turns_of(client: httpx.AsyncClient, session_id: str) -> set[str]:
    listed = (await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
    return {message["turn_id"] for message in listed}


async def test_the_same_send_at_once_through_two_gateways_is_one_turn(running: Installation) -> None:
    async with http(running.http(0)) as one, http(running.http(1)) as two:
        session_id = await new_session(one)
        for n in range(10):
            headers = {"Idempotency-Key": f"key-{n}"}
            answers = await asyncio.gather(
                *(send(client, session_id, f"again {n}", headers=headers) for client in (one, two, one, two))
            )
            assert {answer.status_code for answer in answers} <= {200, 201}
            outcomes = [answer.json() for answer in answers]
            assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
        assert len(await turns_of(one, session_id)) == 10


async def test_the_same_key_with_another_body_is_a_conflict(running: Installation) -> None:
    async with http(running.http(0)) as one, http(running.http(1)) as two:
        session_id = await new_session(one)
        headers = {"Idempotency-Key": "k"}
        first = await send(one, session_id, "this", headers=headers)
        second = await send(two, session_id, "that", headers=headers)
        assert (first.status_code, second.status_code) == (201, 422)
        assert second.json()["code"] == "idempotency_conflict"
        again = await send(two, session_id, "this", headers=headers)
        assert again.json() == first.json()
        assert await turns_of(one, session_id) == {first.json()["turn_id"]}


async def test_the_same_key_on_the_socket_and_over_http_is_one_turn(running: Installation) -> None:
    async with http(running.http(0)) as web, chatter(running.ws(1)) as socket:
        session_id = await new_session(web)
        view = await socket.attach(session_id, session_id)
        answer = await send(web, session_id, "once", headers={"Idempotency-Key": "both doors"})
        await socket.tell(type="send", session=session_id, text="once", client_message_id="both doors")
        await socket.until(lambda: socket.replies("accepted"), "accepted")
        accepted = socket.replies("accepted")[0]
        assert accepted["event_id"] == answer.json()["event_id"]
        assert accepted["client_message_id"] == "both doors"
        await socket.until(lambda: view.ended(answer.json()["turn_id"]), "the end")
        await socket.tell(type="send", session=session_id, text="other", client_message_id="both doors")
        await socket.until(lambda: socket.replies("refused"), "refused")
        assert socket.replies("refused")[0]["code"] == "idempotency_conflict"
        assert len(await turns_of(web, session_id)) == 1


async def test_a_refused_send_may_be_sent_again_and_is_answered(running: Installation) -> None:
    """The refusal is not what the key stands for: what made it may be over."""
    async with http(running.http(0)) as web:
        session_id = await new_session(web)
        await running.standin.control.speed(token_gap_ms=100, answer_tokens=30)
        turns = [(await send(web, session_id, f"{n}")).json()["turn_id"] for n in range(21)]
        refused = await send(web, session_id, "too many", headers={"Idempotency-Key": "later"})
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full"), turns
        assert refused.headers["Retry-After"] == "5", "history refused it, and says no time"
        async with chatter(running.ws(1)) as late:
            view = await late.attach(session_id, session_id)
            await eventually(lambda: view.places.get(turns[-1]), reason="the last one's place is told", timeout_s=60)
            assert 0 < view.places[turns[-1]][0] < 20
        await running.standin.control.speed(token_gap_ms=0, answer_tokens=1)

        async def accepted() -> httpx.Response | None:
            answer = await send(web, session_id, "too many", headers={"Idempotency-Key": "later"})
            return answer if answer.status_code == 201 else None

        answer = await eventually(accepted, reason="the queue has room again", timeout_s=30)
        assert answer is not None
        assert answer.json()["event_id"]


async def test_a_send_that_is_not_to_wait_is_refused_on_every_door_while_an_answer_runs(running: Installation) -> None:
    """Then it may be sent again under its key: the refusal was of that moment."""
    hasty = {"text": "now or never", "on_busy": "reject"}
    async with http(running.http(0)) as web, chatter(running.ws(1)) as socket:
        session_id = await new_session(web)
        view = await socket.attach(session_id, session_id)
        await running.standin.control.speed(token_gap_ms=100, answer_tokens=300)
        turn_id = (await send(web, session_id, "long")).json()["turn_id"]
        path, headers = f"/v1/sessions/{session_id}/messages", {"Idempotency-Key": "hasty"}
        refused = await web.post(path, json=hasty, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (409, "session_busy")
        await socket.tell(type="send", session=session_id, client_message_id="other", **hasty)
        await socket.until(lambda: socket.replies("refused"), "refused")
        assert socket.replies("refused")[0]["code"] == "session_busy"
        await web.post(f"/v1/sessions/{session_id}/turns/{turn_id}/cancel")
        await socket.until(lambda: view.ended(turn_id), "the end")
        await running.standin.control.speed(token_gap_ms=0, answer_tokens=1)
        again = await web.post(path, json=hasty, headers=headers)
        assert again.status_code == 201
        assert await turns_of(web, session_id) == {turn_id, again.json()["turn_id"]}


async def test_a_send_that_interrupts_keeps_what_was_said_and_goes_on(running: Installation) -> None:
    """By the session's setting, and by the send's own word, which goes first."""
    async with http(running.http(0)) as web, chatter(running.ws(1)) as socket:
        created = (await web.post("/v1/sessions", json={"on_busy": "reject"})).json()
        session_id, path = created["session_id"], f"/v1/sessions/{created['session_id']}"
        view = await socket.attach(session_id, session_id)
        await running.standin.control.speed(token_gap_ms=20, answer_tokens=1500)
        first = (await send(web, session_id, "first")).json()["turn_id"]
        await socket.until(lambda: view.token_frames.get(first), "something was said")
        assert (await send(web, session_id, "second")).json()["code"] == "session_busy"
        await socket.tell(type="send", session=session_id, text="second", on_busy="interrupt")
        await socket.until(lambda: socket.replies("accepted"), "accepted")
        second = socket.replies("accepted")[0]["turn_id"]
        await socket.until(lambda: view.token_frames.get(second), "the second answer began")
        assert view.ended(first)
        assert view.answers[first].text
        changed = await web.patch(path, json={"on_busy": "interrupt", "title": "hasty"})
        assert {"on_busy": "interrupt", "title": "hasty"}.items() <= changed.json().items()
        assert (await web.patch(path, json={})).json() == changed.json(), "nothing to change"
        assert (await web.patch(path, json={"on_busy": None})).status_code == 422
        await running.standin.control.speed(token_gap_ms=0, answer_tokens=1)
        third = (await web.post(f"{path}/messages?wait=answer", json={"text": "third"})).json()
        listed = (await web.get(f"{path}/messages")).json()["messages"]
        told = [(each["turn_id"], each["status"], bool(each["text"])) for each in listed if each["role"] == "assistant"]
        ids = [first, second, third["turn_id"]]
        assert told == list(zip(ids, ["cancelled", "cancelled", "completed"], [True] * 3, strict=True))


async def test_a_session_of_a_name_is_one_session_everywhere(running: Installation) -> None:
    async with http(running.http(0)) as one, http(running.http(1)) as two:
        answers = await asyncio.gather(*(client.post("/v1/sessions", json={"name": "mine"}) for client in (one, two)))
        assert {answer.status_code for answer in answers} <= {200, 201}
        assert len({answer.json()["session_id"] for answer in answers}) == 1
        await send(one, "name:mine", "by its name")
        listed = (await two.get("/v1/sessions")).json()["sessions"]
        assert [session["name"] for session in listed if session["name"]] == ["mine"]


async def test_every_door_gives_the_same_text(running: Installation) -> None:
    """Done-means 6: byte-identical on WebSocket, SSE, the messages query, and after the views are rebuilt."""
    async with http(running.http(0)) as web, chatter(running.ws(0)) as socket:
        session_id = await new_session(web)
        view = await socket.attach(session_id, session_id)
        await running.standin.control.script(["odd ", "\u0085\u2028", "🌌 <&>", " end"], marker="say it oddly")
        headers = {"Accept": "text/event-stream"}
        streamed = await send(web, session_id, "say it oddly", headers=headers)
        frames = [json.loads(line[6:]) for line in streamed.text.split("\n") if line.startswith("data: ")]
        turn_id = frames[0]["turn_id"]
        by_sse = "".join(frame["text"] for frame in frames if frame["type"] == "token")
        await socket.until(lambda: view.ended(turn_id), "the end")
        by_socket = "".join(json.loads(raw)["text"] for raw in view.token_frames[turn_id])
        assert by_sse == by_socket == view.answers[turn_id].text == "odd \u0085\u2028🌌 <&> end"

        async def text_of_answer() -> str:
            listed = (await web.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
            return str(listed[-1]["text"])

        assert await text_of_answer() == by_socket
        await running.history.stop()
        for path in (running.folder / "data").glob("views-*"):
            path.unlink()
        await running.history.start()
        assert await text_of_answer() == by_socket
