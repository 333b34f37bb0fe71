"""User B on every route and frame of user A: nothing of A's is seen, nothing of A's is changed, on no door (P8).

The requests are generated from ROUTES and ClientFrame (tests/isolation.py): a new route or frame is in here by itself,
and fails where nobody has said what its inputs can name.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, get_args

import httpx
import pytest
import pytest_asyncio

from contracts.frames import ClientFrame
from services.gateway.api.guards import SAFE_METHODS
from services.gateway.api.requests import KEY_HEADER
from services.gateway.api.routes import ROUTES, WEBSOCKET_ROUTES
from tests.gateway_roads import MODEL, GatewayRoad, gateway_road
from tests.gateways import Socket
from tests.isolation import Asked, Things, frames_of, masked, requests_of
from tests.keys import bearer, new_key
from tests.polling import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

# In everything that A says, hears and is called by.
CANARY = "heron"
ANN = "ann"
BEA = "bea@example.org"
# What a turn that nobody has recorded is to everybody who asks for it with its event.
PENDING = '{"status":"pending","turn":null,"code":null}'
# Frames that are not answered where they change nothing.
SILENT = {"detach", "ping"}
ANSWERS = {"refused", "attached", "resync", "error", "event"}


@dataclass
class Users:
    """A with a finished and a running answer; B, who knows every id of A's."""

    road: GatewayRoad
    ann: str
    bea: str
    theirs: Things
    nobodys: Things
    watcher: Socket

    def client(self, key: str) -> httpx.AsyncClient:
        return self.road.http(headers=bearer(key))

    def log_of_ann(self) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.road.data / "log.db")) as log:
            query = "SELECT position, session_id, version, type, hash FROM events WHERE user_id = ? ORDER BY position"
            return log.execute(query, (ANN,)).fetchall()

    def stray_rows(self) -> list[tuple[Any, ...]]:
        """Parked events, and outcomes of A's that A did not ask for."""
        with closing(sqlite3.connect(self.road.data / "log.db")) as log:
            parked = log.execute("SELECT subject FROM parked").fetchall()
            return parked + log.execute("SELECT event_id FROM outcomes WHERE user_id = ?", (ANN,)).fetchall()

    def leaks(self, text: str, sent: str) -> list[str]:
        """What of A's is in text and was not in what B sent."""
        things = self.theirs
        # new_name: B calls a session of their own so. That of A has the canary for its title.
        secrets = [CANARY, things.session, things.name, things.turn, things.running_turn, things.answer, things.event]
        return [each for each in secrets if each.lower() in text.lower() and each.lower() not in sent]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def users(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Users]:
    folder = tmp_path_factory.mktemp("isolation")
    # A machine under load must not turn a 201 into a 202: the two runs are compared.
    async with gateway_road(folder, auth="keys", gateway_outcome_s=20, gateway_user_sockets=1000) as road:
        ann, bea = [await new_key(road.broker, user) for user in (ANN, BEA)]
        await road.model.control.script(["well ", "then"], times=None)
        own = [await answered(road, bea, str(uuid.uuid4()), "hello") for _ in range(2)]
        await road.model.control.reset()
        await road.model.control.script([f"{CANARY} "], times=1)
        name, new_name = str(uuid.uuid4()), str(uuid.uuid4())
        finished = await answered(road, ann, name, f"a {CANARY}?")
        async with road.http(headers=bearer(ann)) as client:
            await client.post("/v1/sessions", json={"name": new_name, "title": CANARY})
        await road.model.control.script([f"{CANARY} "] * 1000, times=None)
        await road.model.control.speed(token_gap_ms=1000)
        async with road.gateway.socket(additional_headers=bearer(ann)) as watcher:
            await watcher.attach(finished["session_id"])
            await watcher.say("send", session=finished["session_id"], text=f"more {CANARY}")
            await watcher.until(lambda: watcher.of("token"), "A's answer runs")
            things = await things_of(road, ann, finished, own)
            theirs = replace(things[0], name=name, new_name=new_name, idempotency_key=key_of(name))
            yield Users(road, ann, bea, theirs, things[1], watcher)


async def answered(road: GatewayRoad, key: str, name: str, text: str) -> dict[str, Any]:
    """A session with one answered turn: what its send was told, once this user's key is known everywhere."""
    async with road.http(headers=bearer(key)) as client:

        async def created() -> bool:
            body = {"name": name, "title": text, "model": MODEL}
            return (await client.post("/v1/sessions", json=body)).status_code in (200, 201)

        await eventually(created, reason="the key is known and the session is there")
        path = f"/v1/sessions/name:{name}/messages?wait=answer"
        sent = await client.post(path, json={"text": text}, headers={KEY_HEADER: key_of(name)})
    assert sent.status_code == 201, sent.text
    told: dict[str, Any] = sent.json()
    return told


def key_of(name: str) -> str:
    """The idempotency key of a session's first send."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


async def things_of(
    road: GatewayRoad, ann: str, finished: dict[str, Any], own: list[dict[str, Any]]
) -> tuple[Things, Things]:
    """A's things, and nobody's: each with sessions of B's own that are alike."""
    session = finished["session_id"]
    async with road.http(headers=bearer(ann)) as client:
        messages = (await client.get(f"/v1/sessions/{session}/messages")).json()["messages"]
        events = client.stream("GET", f"/v1/sessions/{session}/events")
        async with events as stream:
            cursors = [line async for line in _until_attached(stream) if line.startswith("id: ")]
    with closing(sqlite3.connect(road.data / "log.db")) as log:
        [(data_hash,)] = log.execute("SELECT data_hash FROM events WHERE event_id = ?", (finished["event_id"],))
    running = next(each["turn_id"] for each in messages if each["text"] == f"more {CANARY}")
    cursor = cursors[-1].removeprefix("id: ")
    shared: dict[str, Any] = {"cursor": cursor, "before": str(finished["position"]), "position": 1}
    theirs = Things(
        **shared,
        own_session=own[0]["session_id"],
        own_turn=own[0]["turn_id"],
        session=session,
        turn=finished["turn_id"],
        running_turn=running,
        answer=next(each["message_id"] for each in messages if each["role"] == "assistant"),
        event=finished["event_id"],
        data_hash=data_hash,
        key=ann[:-60] + "A" * 43 + "_00000000",
    )
    return theirs, Things(**shared, own_session=own[1]["session_id"], own_turn=own[1]["turn_id"])


async def _until_attached(stream: httpx.Response) -> AsyncIterator[str]:
    async for line in stream.aiter_lines():
        yield line
        if '"type":"attached"' in line:
            return


async def asked_of(client: httpx.AsyncClient, asked: Asked) -> tuple[int, str]:
    """Status, and all that came: headers and body, of a stream until it is up to date."""
    request = client.build_request(asked.method, asked.path, params=asked.query, headers=asked.headers, json=asked.body)
    async with asyncio.timeout(60):
        response = await client.send(request, stream=True)
        try:
            body = "\n".join([line async for line in _until_attached(response)])
        finally:
            await response.aclose()
    headers = {name: value for name, value in response.headers.items() if name not in ("date", "content-length")}
    return response.status_code, f"{headers}\n{body}"


async def said(users: Users, frame: dict[str, Any]) -> str:
    """What B is answered to a frame, as text."""
    async with users.road.gateway.socket(additional_headers=bearer(users.bea)) as socket:
        await socket.connection.send(json.dumps(frame))
        if frame["type"] not in SILENT:
            await socket.until(lambda: any(socket.of(each) for each in ANSWERS), f"an answer to {frame}")
        if not socket.of("error"):
            await socket.say("ping")
            await socket.until(lambda: socket.of("pong"), f"pong after {frame}")
        return "\n".join(socket.raw)


USER_ROUTES = [route for route in ROUTES if route.policy == "user"]


@pytest.mark.parametrize("route", USER_ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route(users: Users, route: Any) -> None:
    before = users.log_of_ann()
    async with users.client(users.bea) as client:
        cases = list(zip(requests_of(route, users.theirs), requests_of(route, users.nobodys), strict=True))
        assert cases
        for theirs, nobodys in cases:
            status, told = await asked_of(client, theirs)
            assert not users.leaks(told, theirs.sent), theirs
            as_unknown = await asked_of(client, nobodys)
            if theirs.named:
                assert (status, masked(told)) == (as_unknown[0], masked(as_unknown[1])), theirs
            if theirs.named and users.theirs.own_session not in theirs.path:
                assert status in (404, 422) or told.endswith(PENDING), theirs
            assert status < 500, theirs
    assert users.log_of_ann() == before


@pytest.mark.parametrize("kind", [get_args(each.model_fields["type"].annotation)[0] for each in get_args(ClientFrame)])
async def test_every_frame(users: Users, kind: str) -> None:
    before = users.log_of_ann()
    of_theirs = [frame for frame in frames_of(users.theirs) if frame["type"] == kind]
    of_nobody = [frame for frame in frames_of(users.nobodys) if frame["type"] == kind]
    assert of_theirs
    for theirs, nobodys in zip(of_theirs, of_nobody, strict=True):
        told = await said(users, theirs)
        assert not users.leaks(told, json.dumps(theirs).lower()), theirs
        assert masked(told) == masked(await said(users, nobodys)), theirs
    assert users.log_of_ann() == before


async def test_every_route_has_a_policy() -> None:
    """And what needs no user takes nothing that could name anybody's."""
    assert {route.policy for route in ROUTES} <= {"user", "public"}
    public = {(route.method in SAFE_METHODS, route.path) for route in ROUTES if route.policy == "public"}
    assert all(safe and not path.startswith("/v1/") for safe, path in public)
    assert {policy for _, policy in WEBSOCKET_ROUTES} == {"user"}


async def test_nothing_of_a_has_changed_and_b_sees_only_their_own(users: Users) -> None:
    """Last: after everything that B tried."""
    async with users.client(users.bea) as client:
        listed = await client.get("/v1/sessions", params={"limit": 200})
        assert len(listed.json()["sessions"]) >= 2
        assert not users.leaks(listed.text, "")
    async with users.client(users.ann) as client:
        sessions = (await client.get("/v1/sessions")).json()["sessions"]
        turn = (await client.get(f"/v1/sessions/{users.theirs.session}/turns/{users.theirs.running_turn}")).json()
    assert len(sessions) == 2
    assert sessions[0]["session_id"] == users.theirs.session
    assert turn["turn"]["status"] == "running"
    assert users.stray_rows() == []
    kinds = {frame["type"] for frame in users.watcher.frames}
    assert kinds <= {"event", "attached", "accepted", "token", "loading", "turn_queued"}, kinds
    assert users.watcher.closed is None
