"""The HTTP doors on the real road: sessions, messages, turns, models, health, documents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from contracts import ids
from services.gateway.api.requests import user_of
from services.gateway.api.routes import ROUTES, WEBSOCKET_ROUTES
from services.gateway.app import build_http
from tests.gateway_roads import MODEL, GatewayRoad, gateway_road
from tests.gateways import sse_events
from tests.polling import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRoad]:
    async with gateway_road(tmp_path_factory.mktemp("doors"), gateways=2) as running:
        yield running


async def answered(whole: GatewayRoad, session: str, text: str = "hi", **body: Any) -> dict[str, Any]:
    async with whole.http() as client:
        sent = await client.post(f"/v1/sessions/{session}/messages?wait=answer", json={"text": text, **body})
    assert sent.status_code == 201, sent.text
    found: dict[str, Any] = sent.json()
    return found


async def test_a_session_by_name_is_created_once_and_resumed(whole: GatewayRoad) -> None:
    async with whole.http() as client, whole.http(1) as other:
        created = await client.post("/v1/sessions", json={"name": "my-project", "title": "Mine"})
        resumed = await other.post("/v1/sessions", json={"name": "my-project"})
        by_name = await client.get("/v1/sessions/name:my-project")
        by_id = await other.get(f"/v1/sessions/{created.json()['session_id'].upper()}")
    assert (created.status_code, resumed.status_code) == (201, 200)
    assert created.json()["session_id"] == ids.session_id_of_name("local", "my-project")
    assert created.json() == resumed.json() == by_name.json() == by_id.json()
    assert created.json()["title"] == "Mine"


async def test_a_session_of_a_key_is_the_same_session_again(whole: GatewayRoad) -> None:
    async with whole.http() as client, whole.http(1) as other:
        first = await client.post("/v1/sessions", json={}, headers={"idempotency-key": "k-1"})
        again = await other.post("/v1/sessions", json={}, headers={"idempotency-key": "k-1"})
        minted = await client.post("/v1/sessions", json={})
        repeated = await other.post(
            "/v1/sessions", json={}, headers={"idempotency-key": minted.headers["idempotency-key"]}
        )
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert first.headers["idempotency-key"] == "k-1"
    assert minted.json()["session_id"] == repeated.json()["session_id"] != first.json()["session_id"]


async def test_sessions_are_listed_newest_first_in_pages(whole: GatewayRoad) -> None:
    made = [await whole.new_session() for _ in range(5)]
    listed: list[str] = []
    before: dict[str, Any] = {}
    async with whole.http() as client:
        while len(listed) < 5:
            page = (await client.get("/v1/sessions", params={"limit": 2, **before})).json()
            listed += [row["session_id"] for row in page["sessions"]]
            before = {"before": page["next"]}
    assert listed[:5] == made[::-1]


async def test_a_session_is_renamed(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.http() as client:
        renamed = await client.patch(f"/v1/sessions/{session}", json={"title": "New"})
        assert (renamed.status_code, renamed.json()["title"]) == (200, "New")
        nobody = await client.patch(f"/v1/sessions/{'9' * 8}-9999-4999-8999-999999999999", json={"title": "New"})
        assert nobody.json()["code"] == "session_unknown"


async def test_a_send_is_recorded_and_its_turn_can_be_asked_for(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.http() as client:
        sent = await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi"})
        assert sent.status_code == 201
        told = sent.json()
        assert (told["session_id"], told["version"]) == (session, 2)
        assert told["turn_id"] == ids.turn_id_of(told["event_id"])

        async def turn() -> dict[str, Any]:
            found: dict[str, Any] = (await client.get(f"/v1/sessions/{session}/turns/{told['turn_id']}")).json()
            return found if found["turn"]["status"] == "completed" else {}

        ended = await eventually(turn, reason="the turn ends")
        assert ended["status"] == "recorded"
        assert ended["turn"]["event_id"] == told["event_id"]
        other = await whole.new_session()
        elsewhere = await client.get(f"/v1/sessions/{other}/turns/{told['turn_id']}")
        assert elsewhere.json()["code"] == "turn_unknown"


async def test_a_receipt_says_what_is_behind_an_answer(whole: GatewayRoad) -> None:
    session = await whole.new_session(system="Be brief.")
    first = await answered(whole, session, "hi", options={"seed": 7})
    await whole.model.control.fault("hang")
    async with whole.http() as client, whole.http(1) as other:
        running = (await client.post(f"/v1/sessions/{session}/messages", json={"text": "more"})).json()["turn_id"]
        waiting = (await client.post(f"/v1/sessions/{session}/messages", json={"text": "last"})).json()["turn_id"]
        turns = f"/v1/sessions/{session}/turns"
        receipt = (await other.get(f"{turns}/{first['turn_id']}/receipt")).json()
        early = await client.get(f"{turns}/{waiting}/receipt")
        elsewhere = await client.get(f"/v1/sessions/{await whole.new_session()}/turns/{first['turn_id']}/receipt")
        for turn in (waiting, running):
            await client.post(f"{turns}/{turn}/cancel")
        stopped = await client.get(f"{turns}/{waiting}/receipt")
    assert (receipt["system"], [each["text"] for each in receipt["messages"]]) == ("Be brief.", ["hi"])
    assert (receipt["model"], receipt["seed"], receipt["verified"], receipt["left_out"]) == (MODEL, 7, True, {})
    assert len(receipt["digest"]) == 64
    assert min(receipt["end"]["usage"]["prompt_tokens"], receipt["budget"]["estimated"]) > 0
    told = [answer.json()["code"] for answer in (early, stopped, elsewhere)]
    assert told == ["not_assembled", "not_assembled", "turn_unknown"]


async def test_wait_for_the_answer_and_read_it_back(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    told = await answered(whole, session)
    async with whole.http() as client:
        page = (await client.get(f"/v1/sessions/{session}/messages")).json()
        rest = (await client.get(f"/v1/sessions/{session}/messages", params={"limit": 1})).json()
        after = (await client.get(f"/v1/sessions/{session}/messages", params={"after": rest["next"]})).json()
    assert [message["role"] for message in page["messages"]] == ["user", "assistant"]
    assert page["messages"][1]["text"] == told["answer"]["text"]
    assert told["answer"]["end"] == "stop"
    assert after["messages"] == page["messages"][1:]


async def test_options_and_a_parent_go_through(whole: GatewayRoad) -> None:
    session = await whole.new_session(model=MODEL, system="Be brief.")
    first = await answered(whole, session, options={"seed": 7, "temperature": 0, "stop": ["zzz"]})
    again = await answered(whole, session, "another beginning", parent_id=None, options={"max_tokens": 3})
    assert again["answer"]["end"] == "length"
    answer_id = ids.answer_id_of(first["turn_id"])
    async with whole.http() as client:
        sent = await client.post(f"/v1/sessions/{session}/messages", json={"text": "on", "parent_id": answer_id})
    assert sent.status_code == 201


async def test_one_request_streams_its_own_answer(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    await answered(whole, session)
    async with whole.http() as client:
        sent = await client.post(
            f"/v1/sessions/{session}/messages", json={"text": "hi"}, headers={"accept": "text/event-stream"}
        )
        messages = (await client.get(f"/v1/sessions/{session}/messages")).json()["messages"]
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert sent.headers["x-accel-buffering"] == "no"
    assert sent.headers["cache-control"] == "no-cache"
    assert sent.headers["idempotency-key"]
    frames = [frame for _, frame in sse_events(sent.text)]
    accepted, last = frames[0], frames[-1]
    assert accepted["type"] == "accepted"
    assert last["event"]["type"] == "answer_completed"
    assert {frame.get("turn_id", frame.get("event", {}).get("turn_id")) for frame in frames} == {accepted["turn_id"]}
    tokens = [frame for frame in frames if frame["type"] == "token"]
    assert [token["index"] for token in tokens] == list(range(1, last["event"]["data"]["last_index"] + 1))
    text = "".join(token["text"] for token in tokens)
    assert text == last["event"]["data"]["text"] == messages[-1]["text"]


async def test_a_refused_send_is_no_stream(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.http() as client:
        refused = await client.post(
            f"/v1/sessions/{session}/messages",
            json={"text": "hi", "parent_id": "99999999-9999-4999-8999-999999999999"},
            headers={"accept": "text/event-stream"},
        )
    assert (refused.status_code, refused.json()["code"]) == (422, "parent_unknown")
    assert refused.headers["content-type"] == "application/problem+json"


async def test_an_answer_that_fails_is_a_problem_with_its_code(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    await whole.model.control.fault("clean_end", after=2, model=MODEL)
    async with whole.http() as client:
        sent = await client.post(f"/v1/sessions/{session}/messages?wait=answer", json={"text": "hi"})
    assert (sent.status_code, sent.json().get("code")) == (502, "model_cut"), sent.text
    assert sent.json()["turn_id"]


async def test_the_same_send_twice_at_once_through_two_gateways(whole: GatewayRoad) -> None:
    session = await whole.new_session()

    async def send(number: int) -> dict[str, Any]:
        async with whole.http(number % 2) as client:
            sent = await client.post(
                f"/v1/sessions/{session}/messages", json={"text": "hi"}, headers={b"idempotency-key": "é".encode()}
            )
        assert sent.status_code == 201
        assert sent.headers.raw[[name for name, _ in sent.headers.raw].index(b"idempotency-key")][1] == "é".encode()
        found: dict[str, Any] = sent.json()
        return found

    told = await asyncio.gather(*(send(number) for number in range(8)))
    assert all(each == told[0] for each in told)
    async with whole.http() as client:
        messages = (await client.get(f"/v1/sessions/{session}/messages")).json()["messages"]
        assert len([message for message in messages if message["role"] == "user"]) == 1
        conflict = await client.post(
            f"/v1/sessions/{session}/messages", json={"text": "other"}, headers={b"idempotency-key": "é".encode()}
        )
    assert (conflict.status_code, conflict.json()["code"]) == (422, "idempotency_conflict")


async def test_two_bodies_at_once_under_one_key_get_their_own_outcomes(whole: GatewayRoad) -> None:
    session = await whole.new_session()

    async def send(text: str) -> int:
        async with whole.http() as client:
            sent = await client.post(
                f"/v1/sessions/{session}/messages", json={"text": text}, headers={"idempotency-key": "both"}
            )
        return sent.status_code

    assert sorted(await asyncio.gather(send("one"), send("two"))) == [201, 422]


async def test_a_refused_send_may_be_sent_again(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    first = await answered(whole, session)
    parent = ids.answer_id_of(ids.turn_id_of(ids.event_id_of_key("local", session, "user_message_submitted", "p")))
    body = {"text": "a reply", "parent_id": parent}
    async with whole.http() as client:
        refused = await client.post(f"/v1/sessions/{session}/messages", json=body, headers={"idempotency-key": "again"})
        assert refused.json()["code"] == "parent_unknown"
        await client.post(f"/v1/sessions/{session}/messages", json={"text": "hi"}, headers={"idempotency-key": "p"})
        sent = await client.post(f"/v1/sessions/{session}/messages", json=body, headers={"idempotency-key": "again"})
    assert sent.status_code == 201
    assert first["turn_id"] != sent.json()["turn_id"]


async def test_the_text_is_the_same_through_every_door(whole: GatewayRoad) -> None:
    session = await whole.new_session()
    async with whole.gateway.socket() as socket:
        await socket.attach(session)
        told = await answered(whole, session)
        await socket.until(socket.terminals, "the end")
        by_tokens = "".join(token["text"] for token in socket.of("token"))
        by_event = socket.terminals()[0]["event"]["data"]["text"]
    async with whole.http(1) as client, client.stream("GET", f"/v1/sessions/{session}/events") as stream:
        replayed = [frame async for frame in _frames(stream, until="answer_completed")]
    assert by_tokens == by_event == told["answer"]["text"] == replayed[-1]["event"]["data"]["text"]


async def _frames(stream: Any, until: str) -> AsyncIterator[dict[str, Any]]:
    async for line in stream.aiter_lines():
        if line.startswith("data: "):
            frame = json.loads(line.removeprefix("data: "))
            yield frame
            if frame.get("event", {}).get("type") == until:
                return


async def test_models_are_openais_list_with_our_fields_beside(whole: GatewayRoad) -> None:
    async with whole.http() as client:
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    (found,) = [model for model in listed["data"] if model["id"] == MODEL]
    assert (found["object"], found["workers"], found["slots"], found["server"]) == ("model", 1, 4, "ok")
    assert found.keys() == {"id", "object", "created", "owned_by", "window", "workers", "slots", "free", "server"}


async def test_health_and_readiness(whole: GatewayRoad) -> None:
    async with whole.http() as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"ready": True, "reasons": []}


@pytest.mark.parametrize("page", ["/docs", "/asyncapi"])
async def test_the_pages_load_nothing_from_another_host(whole: GatewayRoad, page: str) -> None:
    async with whole.http() as client:
        shown = await client.get(page)
        assert shown.headers["content-type"].startswith("text/html")
        links = [part.split('"')[0] for part in shown.text.replace("src=", "href=").split('href="')[1:]]
        for link in links:
            assert link.startswith("/")
            assert (await client.get(link)).status_code == 200
    assert "//" not in shown.text.replace("//", "", 0).split("<script")[0].replace("http://127.0.0.1", "")


async def test_the_documents_name_every_route_and_subject(whole: GatewayRoad) -> None:
    async with whole.http() as client:
        openapi = (await client.get("/openapi.json")).json()
        asyncapi = (await client.get("/asyncapi.json")).json()
    listed = {(method.upper(), path) for path, methods in openapi["paths"].items() for method in methods}
    assert listed == {(route.method, route.path) for route in ROUTES if route.listed}
    assert asyncapi["asyncapi"].startswith("3.")
    addresses = {channel["address"] for channel in asyncapi["channels"].values()}
    assert "chat.feed.{user}.{session}" in addresses


async def test_every_route_has_one_policy_and_is_held_to_it() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)
    served = {
        (method, route.path): route.dependant  # type: ignore[attr-defined]
        for route in build_http(None).routes
        for method in getattr(route, "methods", set())
    }
    assert served.keys() == {(route.method, route.path) for route in ROUTES}
    for route in ROUTES:
        asks_for_a_user = any(each.call is user_of for each in served[route.method, route.path].dependencies)
        assert asks_for_a_user == (route.policy == "user"), route.path
    assert WEBSOCKET_ROUTES == (("/v1/ws", "user"),)


async def test_a_wrong_method_is_told_all_the_right_ones(whole: GatewayRoad) -> None:
    async with whole.http() as client:
        told = await client.delete("/v1/sessions")
    assert (told.status_code, told.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_a_broken_cursor_of_the_list_is_refused_and_not_taken_as_none(whole: GatewayRoad) -> None:
    """The first page again would be read for ever."""
    async with whole.http() as client:
        told = await client.get("/v1/sessions", params={"before": "zzz"})
    assert (told.status_code, told.json()["code"]) == (422, "bad_request")


async def test_a_session_is_deleted_restored_and_begun_again(whole: GatewayRoad) -> None:
    """Through either gateway; its past can be looked at all the while."""
    async with whole.http() as client, whole.http(1) as other:
        session = (await client.post("/v1/sessions", json={"name": "gone", "model": MODEL})).json()["session_id"]
        said = await answered(whole, session)
        at = f"/v1/sessions/{session}"
        before = (await client.get(f"{at}/messages")).json()
        deleted = await client.delete("/v1/sessions/name:gone", headers={"idempotency-key": "d-1"})
        assert (deleted.status_code, deleted.json()["status"]) == (200, "recorded")
        assert (await other.delete(at, headers={"idempotency-key": "d-1"})).json() == deleted.json()
        assert (await other.delete(at)).json()["version"] == deleted.json()["version"], "it is gone already"
        for gone in (
            await other.get(at),
            await client.get(f"{at}/messages"),
            await client.get(f"{at}/turns/{said['turn_id']}/receipt"),
            await client.get(f"{at}/events"),
            await other.patch(at, json={"title": "new"}),
            await client.post(f"{at}/messages", json={"text": "hi"}),
            await other.post(f"{at}/messages", json={"text": "hi"}),
            await other.get(at, params={"at": deleted.json()["version"]}),
        ):
            assert (gone.status_code, gone.json()["code"]) == (410, "session_deleted"), gone.request.url
        assert session not in (await other.get("/v1/sessions", params={"limit": 200})).text
        assert (await client.get(f"{at}/turns/{said['turn_id']}")).json()["status"] == "recorded", "what became of it"
        then = {"at": deleted.json()["version"] - 1}
        restored = await other.post(f"{at}/restore")
        assert (restored.status_code, restored.json()["head"]) == (200, before["session"]["head"])
        assert (await client.get(f"{at}/messages")).json()["messages"] == before["messages"]
        assert (await client.post(f"{at}/restore")).json() == restored.json(), "it is there"
        await client.delete(at)
        begun = await other.post("/v1/sessions", json={"name": "gone"})
        assert (begun.status_code, begun.json()["version"]) == (201, restored.json()["version"] + 2)
        assert (await client.post("/v1/sessions", json={"name": "gone"})).status_code == 200, "it is there again"
        assert (await client.get(f"{at}/messages")).json()["messages"] == []
        assert (await client.get(f"{at}/messages", params=then)).json()["messages"] == before["messages"]


async def test_a_session_as_it_was_in_pages(whole: GatewayRoad) -> None:
    async with whole.http() as client:
        session = await whole.new_session(title="first")
        at = f"/v1/sessions/{session}"
        first = await answered(whole, session, "one")
        named = (await client.patch(at, json={"title": "second"})).json()
        await answered(whole, session, "two")
        now = (await client.get(f"{at}/messages")).json()
        then = (await client.get(f"{at}/messages", params={"at": named["version"]})).json()
        assert [each["text"] for each in then["messages"] if each["role"] == "user"] == ["one"]
        assert then["session"] == (await client.get(at, params={"at": named["version"]})).json() == named
        waiting = (await client.get(f"{at}/messages", params={"at": first["version"]})).json()["messages"][1]
        assert (waiting["status"], waiting["text"]) == ("waiting", ""), "right after the message"
        assert (await client.get(at, params={"at": named["updated_at"]})).json()["title"] == "second"
        for beyond in ("10000", "2999-01-01T00:00:00Z"):
            assert (await client.get(f"{at}/messages", params={"at": beyond})).json()["messages"] == now["messages"]
        first_page = (await client.get(f"{at}/messages", params={"at": 10000, "limit": 3})).json()
        rest = (await client.get(f"{at}/messages", params={"at": 10000, "after": first_page["next"]})).json()
        assert (first_page["messages"] + rest["messages"], rest["next"]) == (now["messages"], None)
        assert (await client.get(at, params={"at": "2001-01-01T00:00:00+00:00"})).json()["code"] == "session_unknown"
        for bad in ("0", "-1", "soon", "2026-11-20", "2026-11-20T10:00:00", "0001-01-01T00:00:00Z", "9" * 20, ""):
            refused = await client.get(at, params={"at": bad})
            assert (refused.status_code, refused.json()["detail"][:4]) == (422, "at: "), bad
