"""Keys on the real road: every carrier, one answer to all that is wrong, and the end of what a lost key had open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from contracts import subjects
from contracts.keys import key_text
from tests.brokers import Broker, broker
from tests.gateways import Gateway, gateway
from tests.keys import bearer, new_key, revoke_key
from tests.polling import eventually
from tests.services import Service, service

pytestmark = pytest.mark.asyncio(loop_scope="module")

AUTH_S = 1.0
# A key that nobody has: its form is right.
GUESSED = key_text("000000000000", "A" * 43)
ENDED_WITHIN_S = 2.0


@dataclass
class Keyed:
    """A broker, history and a gateway with CHATLOG_AUTH=keys."""

    broker: Broker
    history: Service
    gateway: Gateway
    key: str

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        return self.gateway.http(headers=bearer(key or self.key))

    async def known(self, key: str) -> str:
        """The gateway has heard of the key."""

        async def is_known() -> bool:
            async with self.client(key) as client:
                return (await client.get("/v1/sessions")).status_code == 200

        await eventually(is_known, reason="the gateway knows the key")
        return key

    async def new(self, user: str, **wanted: Any) -> str:
        return await self.known(await new_key(self.broker, user, **wanted))

    async def session(self, key: str) -> str:
        async with self.client(key) as client:
            return str((await client.post("/v1/sessions", json={})).json()["session_id"])

    @asynccontextmanager
    async def handshake(self, *subprotocols: str, key: str | None = None, query: str = "") -> AsyncIterator[Any]:
        async with connect(
            f"ws://{self.gateway.host}/v1/ws{query}",
            subprotocols=[Subprotocol(each) for each in subprotocols] or None,
            additional_headers=bearer(key) if key else None,
        ) as socket:
            yield socket


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    folder: Path = tmp_path_factory.mktemp("keyed")
    async with broker(folder) as b:
        data = {**b.environment(), "CHATLOG_DATA_DIR": str(folder / "data"), "CHATLOG_LOG_LEVEL": "debug"}
        key = await new_key(b, "ann")
        settings: dict[str, Any] = {"auth": "keys", "gateway_auth_s": AUTH_S, "gateway_user_sockets": 3}
        async with (
            service("history", folder, data) as history,
            gateway(folder, b, log_level="debug", **settings) as running,
        ):
            yield Keyed(b, history, running, key)


async def ask(socket: ClientConnection, **frame: Any) -> dict[str, Any]:
    await socket.send(json.dumps(frame))
    async with asyncio.timeout(5):
        answer: dict[str, Any] = json.loads(await socket.recv())
    return answer


async def ending(socket: ClientConnection) -> tuple[list[Any], int, str]:
    """The last frames and how it was closed."""
    last = []
    try:
        async with asyncio.timeout(10):
            while True:
                last.append(json.loads(await socket.recv()))
    except ConnectionClosed:
        return last, socket.close_code or 0, socket.close_reason or ""


UNAUTHORIZED = ([{"type": "error", "code": "unauthorized"}], 4401, "unauthorized")


async def bad_keys(keyed: Keyed) -> dict[str, str]:
    expired = await new_key(keyed.broker, "ann", lifetime="1s")
    revoked = await keyed.new("ann")
    await revoke_key(keyed.broker, revoked)

    async def both_are_over() -> bool:
        async with keyed.gateway.http() as client:
            answers = [await client.get("/v1/sessions", headers=bearer(each)) for each in (expired, revoked)]
        return [each.status_code for each in answers] == [401, 401]

    await asyncio.sleep(1.0)  # pace: the key's own lifetime, the shortest there is
    await eventually(both_are_over, reason="one expired, the other was revoked")
    wrong_secret = key_text(keyed.key.split("_")[1], "A" * 43)
    return {
        "guessed": GUESSED,
        "wrong secret": wrong_secret,
        "mistyped": keyed.key[:-1] + ("0" if keyed.key[-1] != "0" else "1"),
        "malformed": "nonsense",
        "expired": expired,
        "revoked": revoked,
    }


async def test_missing_and_bad_keys_are_one_answer_on_every_carrier(keyed: Keyed) -> None:
    answers: dict[str, tuple[Any, ...]] = {}
    async with keyed.gateway.http() as client:
        answers["missing"] = _told(await client.get("/v1/sessions"))
        answers["in the query"] = _told(await client.get("/v1/sessions", params={"key": keyed.key}))
        answers["in the query too"] = _told(
            await client.get("/v1/sessions", params={"access_token": keyed.key}, headers=bearer(keyed.key))
        )
        for name, key in (await bad_keys(keyed)).items():
            answers[f"{name}, header"] = _told(await client.get("/v1/sessions", headers=bearer(key)))
            answers[f"{name}, POST"] = _told(await client.post("/v1/sessions", json={}, headers=bearer(key)))
            answers[f"{name}, SSE"] = _told(await client.get("/v1/sessions/name:x/events", headers=bearer(key)))
            for carrier, handshake in {
                "subprotocol": keyed.handshake("chat.v1", f"chat.key.{key}"),
                "handshake": keyed.handshake("chat.v1", key=key),
            }.items():
                with pytest.raises(InvalidStatus) as refused:
                    async with handshake:
                        pass
                answers[f"{name}, {carrier}"] = _told(refused.value.response)
            async with keyed.handshake("chat.v1") as socket:
                await socket.send(json.dumps({"type": "auth", "key": key}))
                assert await ending(socket) == UNAUTHORIZED
        with pytest.raises(InvalidStatus) as refused:
            async with keyed.handshake("chat.v1", query=f"?key={keyed.key}"):
                pass
        answers["in the handshake's query"] = _told(refused.value.response)
    assert set(answers.values()) == {answers["missing"]}, answers
    status, challenge, problem = answers["missing"]
    assert (status, challenge, json.loads(problem)["code"]) == (401, 'Bearer realm="chatlog"', "unauthorized")


def _told(response: Any) -> tuple[Any, ...]:
    body = bytes(response.content if isinstance(response, httpx.Response) else response.body)
    status = response.status_code
    assert response.headers["content-type"] == "application/problem+json"
    return status, response.headers["www-authenticate"], body


async def test_every_carrier_lets_a_good_key_in(keyed: Keyed) -> None:
    async with keyed.handshake("chat.v1", f"chat.key.{keyed.key}") as socket:
        assert socket.subprotocol == "chat.v1"
        assert keyed.key not in str(socket.response.headers)
        assert await ask(socket, type="ping") == {"type": "pong"}
    async with keyed.handshake(key=keyed.key) as socket:
        assert await ask(socket, type="ping") == {"type": "pong"}
    async with keyed.handshake("chat.v1") as socket:
        await socket.send(json.dumps({"type": "auth", "key": keyed.key}))
        assert await ask(socket, type="ping") == {"type": "pong"}
        # Again the same user: nothing changes.
        await socket.send(json.dumps({"type": "auth", "key": keyed.key}))
        assert await ask(socket, type="ping") == {"type": "pong"}


async def test_a_socket_never_changes_hands(keyed: Keyed) -> None:
    other = await keyed.new("bea@example.org")
    async with keyed.handshake(key=keyed.key) as socket:
        await socket.send(json.dumps({"type": "auth", "key": other}))
        assert await ending(socket) == UNAUTHORIZED


@pytest.mark.parametrize("first", ['{"type": "ping"}', "[", '{"type": "auth"}', '{"type": "auth", "key": 1}', b"\x00"])
async def test_another_first_frame_ends_the_socket(keyed: Keyed, first: str | bytes) -> None:
    async with keyed.handshake("chat.v1") as socket:
        await socket.send(first)
        assert await ending(socket) == UNAUTHORIZED


async def test_a_socket_that_says_nothing_is_closed(keyed: Keyed) -> None:
    began = time.monotonic()
    async with keyed.handshake("chat.v1") as socket:
        assert await ending(socket) == UNAUTHORIZED
    assert AUTH_S <= time.monotonic() - began < AUTH_S + 2


async def test_a_reading_key_sends_nothing_on_any_door(keyed: Keyed) -> None:
    session = await keyed.session(keyed.key)
    reading = await keyed.new("ann", scope="read")
    async with keyed.client(reading) as client:
        assert (await client.get(f"/v1/sessions/{session}")).status_code == 200
        refused = [
            await client.post("/v1/sessions", json={}),
            await client.patch(f"/v1/sessions/{session}", json={"title": "x"}),
            await client.post(f"/v1/sessions/{session}/messages", json={"text": "x"}),
        ]
    assert {(each.status_code, each.json()["code"]) for each in refused} == {(403, "forbidden")}
    async with keyed.handshake(key=reading) as socket:
        assert await ask(socket, type="ping") == {"type": "pong"}
        assert (await ask(socket, type="attach", session=session))["type"] == "event"
    async with keyed.handshake(key=reading) as socket:
        told = await ask(socket, type="send", session=session, text="x", client_message_id="k")
        assert told == {"type": "refused", "session_id": session, "code": "forbidden", "client_message_id": "k"}
    async with keyed.client() as client:
        assert (await client.get(f"/v1/sessions/{session}")).json()["version"] == 1


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_key_that_ends_closes_what_it_opened(keyed: Keyed, how: str) -> None:
    key = await keyed.new("ann", lifetime="3s" if how == "expired" else None)
    made = time.monotonic()
    session = await keyed.session(keyed.key)
    async with (
        keyed.client(key) as client,
        client.stream("GET", f"/v1/sessions/{session}/events") as stream,
        keyed.handshake(key=key) as socket,
        keyed.handshake(key=keyed.key) as of_another_key,
    ):
        assert (await ask(socket, type="attach", session=session))["type"] == "event"
        if how == "revoked":
            await revoke_key(keyed.broker, key)
            ended_at = time.monotonic()
        else:
            ended_at = made + 3
        last, code, reason = await ending(socket)
        assert (last[-1], code, reason) == (UNAUTHORIZED[0][0], 4401, "unauthorized")
        lines = [line async for line in stream.aiter_lines() if line.startswith("data: ")]
        assert json.loads(lines[-1].removeprefix("data: ")) == UNAUTHORIZED[0][0]
        assert time.monotonic() - ended_at < ENDED_WITHIN_S
        assert await ask(of_another_key, type="ping") == {"type": "pong"}


async def test_a_user_has_so_many_sockets(keyed: Keyed) -> None:
    key = await keyed.new("cleo")
    async with keyed.handshake(key=key) as one, keyed.handshake(key=key), keyed.handshake(key=key):
        async with keyed.handshake(key=key) as fourth:
            assert await ending(fourth) == ([{"type": "error", "code": "too_many_sockets"}], 1008, "too_many_sockets")
        async with keyed.handshake(key=keyed.key) as of_another_user:
            assert await ask(of_another_user, type="ping") == {"type": "pong"}
        assert await ask(one, type="ping") == {"type": "pong"}

    async def let_in() -> bool:
        async with keyed.handshake(key=key) as again:
            return await ask(again, type="ping") == {"type": "pong"}

    await eventually(let_in, reason="those that were closed no longer count")


async def test_public_routes_need_no_key_and_the_gateway_is_ready(keyed: Keyed) -> None:
    async with keyed.gateway.http() as client:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/asyncapi"):
            assert (await client.get(path)).status_code == 200, path


async def test_what_no_gateway_can_read_opens_nothing(keyed: Keyed) -> None:
    """A record of another key's, or of another shape, under an id."""
    key = await keyed.new("ann")
    client = await keyed.broker.connect()
    js = client.jetstream()
    bucket = await js.key_value(subjects.KEYS_BUCKET)
    key_id = key.split("_")[1]
    theirs = (await bucket.get(key_id)).value or b""
    await bucket.put("111111111111", theirs.replace(key_id.encode(), b"222222222222"))
    await bucket.put(key_id, b'{"key_id":1}')

    async def refused() -> bool:
        async with keyed.client(key) as asking:
            return (await asking.get("/v1/sessions")).status_code == 401

    await eventually(refused, reason="the unreadable record is no key")
    await bucket.purge("111111111111")
    await bucket.put(key_id, theirs)
    await keyed.known(key)
    await bucket.delete(key_id)
    await eventually(refused, reason="a deleted record is no key")
    await client.close()


async def test_keys_are_read_again_after_the_broker_was_away(keyed: Keyed) -> None:
    """Revoked while the gateway hears nothing; the broker's store keeps what the gateway must learn."""
    key = await keyed.new("ann")
    await keyed.broker.kill()
    async with keyed.client(key) as client:
        # Who was let in stays in: nothing of anybody's can be reached meanwhile.
        assert (await client.get("/v1/sessions")).json()["code"] == "not_ready"
    await keyed.broker.start()
    await revoke_key(keyed.broker, key)

    async def refused() -> bool:
        async with keyed.client(key) as client:
            return (await client.get("/v1/sessions")).status_code == 401

    await eventually(refused, reason="the gateway has read the bucket again", timeout_s=60)
    await keyed.known(keyed.key)


async def test_no_log_and_no_store_holds_a_key(keyed: Keyed) -> None:
    """Last: everything above has been said with keys on every carrier, at level debug."""
    secret = keyed.key.split("_", 2)[2]
    files = [each for each in keyed.gateway.process.folder.rglob("*") if each.is_file()]
    assert keyed.gateway.process.log_path in files
    assert not [str(each) for each in files if secret[:43].encode() in each.read_bytes()]


async def test_a_gateway_that_has_not_read_the_keys_lets_nobody_in(tmp_path: Path) -> None:
    async with (
        broker(tmp_path, provisioned=False) as b,
        gateway(tmp_path, b, ready=False, auth="keys") as running,
        running.http() as client,
    ):
        told = await client.get("/v1/sessions", headers=bearer(GUESSED))
        ready = await client.get("/readyz")
    assert (told.status_code, told.json()["code"]) == (503, "not_ready")
    assert "keys_unread" in [reason["name"] for reason in ready.json()["reasons"]]
