"""Bad input: each a documented code, the process alive, nothing recorded."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from contracts.errors import STATUS
from services.gateway.api.requests import EVENT_STREAM
from tests.gateway_roads import GatewayRoad, gateway_road
from tests.polling import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = "99999999-9999-4999-8999-999999999999"
BODY_BYTES = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayRoad]:
    async with gateway_road(tmp_path_factory.mktemp("bad-input")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def session(whole: GatewayRoad) -> AsyncIterator[str]:
    """A session in which nothing may have happened once the test is over."""
    session_id = await whole.new_session()
    pid = whole.gateway.process.pid
    yield session_id
    assert whole.gateway.process.alive
    assert whole.gateway.process.pid == pid
    async with whole.http() as client:
        assert (await client.get(f"/v1/sessions/{session_id}")).json()["version"] == 1


def is_problem(response: httpx.Response, code: str) -> None:
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert (body["code"], body["status"], response.status_code) == (code, STATUS[code], STATUS[code])
    assert body["type"].endswith(code)
    assert body["title"]
    assert response.text.endswith("}\n")


MESSAGES: list[tuple[str, bytes, str]] = [
    ("empty body", b"", "bad_request"),
    ("empty text", b'{"text":""}', "bad_request"),
    ("blank text", b'{"text":"  "}', "bad_request"),
    ("no text", b"{}", "bad_request"),
    ("a number", b'{"text":7}', "bad_request"),
    ("null", b'{"text":null}', "bad_request"),
    ("a list", b"[]", "bad_request"),
    ("a string", b'"hi"', "bad_request"),
    ("not JSON", b"{", "bad_request"),
    ("NaN", b'{"text":"hi","options":{"temperature":NaN}}', "bad_request"),
    ("a lone surrogate", b'{"text":"\\ud800"}', "bad_request"),
    ("not UTF-8", b'{"text":"\xff"}', "bad_request"),
    ("deep nesting", b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "bad_request"),
    ("an unknown field", b'{"text":"hi","txet":1}', "bad_request"),
    ("an unknown option", b'{"text":"hi","options":{"top_z":1}}', "bad_request"),
    ("a wrong option", b'{"text":"hi","options":{"temperature":"hot"}}', "bad_request"),
    ("no id as parent", b'{"text":"hi","parent_id":"x"}', "bad_request"),
    ("a foreign parent", b'{"text":"hi","parent_id":"%b"}' % UNKNOWN.encode(), "parent_unknown"),
    ("an unknown model", b'{"text":"hi","model":"no-such:1b"}', "model_not_found"),
    ("too long", b'{"text":"' + b"x" * 100_001 + b'"}', "too_long"),
    ("too large", b'{"text":"' + b"x" * BODY_BYTES + b'"}', "body_too_large"),
]


@pytest.mark.parametrize(("body", "code"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
async def test_a_bad_message_over_http(whole: GatewayRoad, session: str, body: bytes, code: str) -> None:
    async with whole.http(headers={"content-type": "application/json"}) as client:
        is_problem(await client.post(f"/v1/sessions/{session}/messages", content=body), code)


async def test_a_body_that_never_says_its_length_is_bounded_too(whole: GatewayRoad, session: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"text":"'
        for _ in range(64):
            yield b"x" * 32 * 1024

    async with whole.http(headers={"content-type": "application/json"}) as client:
        is_problem(await client.post(f"/v1/sessions/{session}/messages", content=endless()), "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"/v1/sessions/{UNKNOWN}", "session_unknown"),
        ("GET", "/v1/sessions/not-an-id", "session_unknown"),
        ("GET", "/v1/sessions/name:nobody's", "session_unknown"),
        ("GET", "/v1/sessions/name:", "session_unknown"),
        ("GET", f"/v1/sessions/{UNKNOWN}/messages", "session_unknown"),
        ("GET", f"/v1/sessions/{UNKNOWN}/events", "session_unknown"),
        ("GET", f"/v1/sessions/{UNKNOWN}/turns/{UNKNOWN}", "turn_unknown"),
        ("GET", f"/v1/sessions/{UNKNOWN}/turns/x", "turn_unknown"),
        ("POST", f"/v1/sessions/{UNKNOWN}/turns/{UNKNOWN}/cancel", "session_unknown"),
        ("POST", f"/v1/sessions/{UNKNOWN}/turns/x/cancel", "turn_unknown"),
        ("GET", f"/v1/sessions/{UNKNOWN}/turns/{UNKNOWN}/cancel", "method_not_allowed"),
        ("GET", "/v1/sessions?limit=0", "bad_request"),
        ("GET", "/v1/sessions?limit=x", "bad_request"),
        ("GET", "/v1/sessions?at=3", "bad_request"),
        ("GET", f"/v1/sessions?before={'x' * 101}", "bad_request"),
        ("GET", f"/v1/sessions/{UNKNOWN}/events?after=x", "bad_request"),
        ("GET", "/nope", "not_found"),
        ("GET", "/v1/sessions/", "not_found"),
        ("GET", "/docs/..%2fcore.py", "not_found"),
        ("DELETE", "/v1/sessions", "method_not_allowed"),
        ("GET", f"/v1/models?{'x' * 20_000}", "headers_too_large"),
    ],
)
async def test_a_bad_address(whole: GatewayRoad, session: str, method: str, path: str, code: str) -> None:
    async with whole.http() as client:
        is_problem(await client.request(method, path), code)


async def test_a_time_whose_plus_became_a_blank_is_told_how_to_write_it(whole: GatewayRoad, session: str) -> None:
    async with whole.http() as client:
        said = await client.get(f"/v1/sessions/{session}?at=2026-11-20T10:00:00+00:00")
        is_problem(said, "bad_request")
        assert said.json()["detail"].endswith("; in an address a + is written %2B")
        assert (await client.get(f"/v1/sessions/{session}?at=2999-11-20T10:00:00%2B00:00")).status_code == 200


async def test_a_head_is_a_get_without_its_body(whole: GatewayRoad, session: str) -> None:
    async with whole.http() as client:
        assert "/docs" in (await client.get("/")).text
        for path, status in (("/", 200), ("/v1/sessions", 200), (f"/v1/sessions/{UNKNOWN}", 404), ("/nope", 404)):
            head, got = await client.head(path), await client.get(path)
            assert (head.status_code, head.content, got.status_code) == (status, b"", status)
            assert head.headers["content-length"] == got.headers["content-length"]
        stream = await client.head(f"/v1/sessions/{session}/events")
        assert stream.status_code == 200, "and it has ended"
        assert stream.headers["content-type"].startswith(EVENT_STREAM)
        assert (await client.head(f"/v1/sessions/{session}/restore")).status_code == 405


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"content-type": "text/plain"}, "unsupported_media_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"accept": "text/html"}, "not_acceptable"),
        ({"idempotency-key": ""}, "bad_request"),
        ({"idempotency-key": "x" * 201}, "bad_request"),
        ({"idempotency-key": b"\xff"}, "bad_request"),
    ],
)
async def test_bad_headers_of_a_send(whole: GatewayRoad, session: str, headers: dict[str, Any], code: str) -> None:
    sent = {"content-type": "application/json", **headers}
    async with whole.http() as client:
        is_problem(await client.post(f"/v1/sessions/{session}/messages", content=b'{"text":"hi"}', headers=sent), code)


@pytest.mark.parametrize(
    "body",
    [{"name": ""}, {"name": "x" * 201}, {"title": 7}, {"nmae": "x"}, [], {"model": ""}, {"system": "x" * 100_001}],
)
async def test_a_bad_session(whole: GatewayRoad, session: str, body: Any) -> None:
    async with whole.http() as client:
        is_problem(await client.post("/v1/sessions", json=body), "bad_request")


FRAMES: list[tuple[str, str, str]] = [
    ("not JSON", "{", "bad_frame"),
    ("a list", "[]", "bad_frame"),
    ("no type", "{}", "bad_frame"),
    ("an unknown type", '{"type":"dance"}', "bad_frame"),
    ("an unknown field", '{"type":"ping","x":1}', "bad_frame"),
    ("deep nesting", '{"type":' + "[" * 50_000, "bad_frame"),
    ("a lone surrogate", '{"type":"\\ud800"}', "bad_frame"),
]


@pytest.mark.parametrize(("text", "code"), [row[1:] for row in FRAMES], ids=[row[0] for row in FRAMES])
async def test_a_bad_frame_is_an_error_and_the_socket_lives(
    whole: GatewayRoad, session: str, text: str, code: str
) -> None:
    async with whole.gateway.socket() as socket:
        await socket.connection.send(text)
        await socket.until(lambda: socket.frames, "an error")
        assert socket.frames == [{"type": "error", "code": code}]
        await socket.say("ping")
        await socket.until(lambda: socket.of("pong"), "a pong")


async def test_a_binary_frame_is_an_error_and_the_socket_lives(whole: GatewayRoad, session: str) -> None:
    async with whole.gateway.socket() as socket:
        await socket.connection.send(b'{"type":"ping"}')
        await socket.until(lambda: socket.frames, "an error")
        assert socket.frames == [{"type": "error", "code": "bad_frame"}]
        await socket.say("ping")
        await socket.until(lambda: socket.of("pong"), "a pong")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"text": ""}, "bad_request"),
        ({"text": 7}, "bad_frame"),
        ({}, "bad_frame"),
        ({"text": "x" * 100_001}, "too_long"),
        ({"text": "hi", "options": {"top_z": 1}}, "bad_frame"),
        ({"text": "hi", "model": "no-such:1b"}, "model_not_found"),
        ({"text": "hi", "parent_id": UNKNOWN}, "parent_unknown"),
    ],
)
async def test_a_bad_send_is_refused_to_its_sender(
    whole: GatewayRoad, session: str, fields: dict[str, Any], code: str
) -> None:
    async with whole.gateway.socket() as socket, whole.gateway.socket() as other:
        await other.attach(session)
        await socket.say("send", session=session, client_message_id="mine", **fields)
        (refused,) = await socket.until(lambda: socket.of("refused"), "refused")
        assert (refused["session_id"], refused["code"], refused["client_message_id"]) == (session, code, "mine")
        assert not other.of("refused")


@pytest.mark.parametrize("reference", [UNKNOWN, "name:nobody's", "x", ""])
@pytest.mark.parametrize("frame", ["attach", "send"])
async def test_an_unknown_session_is_refused(whole: GatewayRoad, session: str, frame: str, reference: str) -> None:
    async with whole.gateway.socket() as socket:
        await socket.say(frame, session=reference, **({"text": "hi"} if frame == "send" else {}))
        (refused,) = await socket.until(lambda: socket.of("refused"), "refused")
        assert refused["code"] == ("session_unknown" if reference else "bad_frame")


async def test_a_bad_cursor_is_refused(whole: GatewayRoad, session: str) -> None:
    async with whole.gateway.socket() as socket:
        await socket.say("attach", session=session, after="x")
        (refused,) = await socket.until(lambda: socket.of("refused"), "refused")
        assert (refused["session_id"], refused["code"]) == (session, "bad_request")


async def test_an_oversized_frame_closes_its_socket_with_1009(whole: GatewayRoad, session: str) -> None:
    async with whole.gateway.socket() as socket:
        with pytest.raises(ConnectionClosed):  # noqa: PT012  # the close comes while it is sent, or after
            await socket.connection.send(json.dumps({"type": "send", "session": session, "text": "x" * BODY_BYTES}))
            await socket.connection.wait_closed()
            await socket.connection.send("")
        await socket.until(lambda: socket.closed, "closed")
        assert socket.closed is not None
        assert socket.closed[0] == 1009


async def test_ten_thousand_pings_do_no_harm(whole: GatewayRoad, session: str) -> None:
    async with whole.gateway.socket() as socket, whole.gateway.socket() as other:
        for _ in range(10_000):
            await socket.say("ping")
        await socket.until(lambda: len(socket.of("pong")) == 10_000, "10 000 pongs", timeout_s=60)
        await other.say("ping")
        await other.until(lambda: other.of("pong"), "a pong for another client")


async def test_ten_thousand_pings_of_a_client_that_does_not_read(whole: GatewayRoad, session: str) -> None:
    async with connect(f"ws://{whole.gateway.host}/v1/ws", max_queue=1) as connection:
        sending = asyncio.create_task(_flood(connection))
        async with whole.gateway.socket() as other:
            await other.say("ping")
            await other.until(lambda: other.of("pong"), "a pong for another client")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        connection.transport.abort()


async def _flood(connection: Any) -> None:
    for _ in range(10_000):
        await connection.send('{"type":"ping"}')


def foreign_origins(port: int) -> dict[str, str]:
    own = f"http://127.0.0.1:{port}"
    return {
        "null": "null",
        "suffix": f"{own}.evil.example",
        "prefix": f"http://evil-127.0.0.1:{port}",
        "port": "http://127.0.0.1:1",
        "scheme": own.replace("http", "https"),
        "case": own.replace("http", "HTTP"),
        "unicode": f"http://localho\u0073\u0074\u200b:{port}",
        "idna": f"http://xn--localhost-9za:{port}",
        "userinfo": f"http://127.0.0.1:{port}@evil.example",
        "trailing dot": f"http://localhost.:{port}",
        "path": f"{own}/",
        "another host": "https://evil.example",
        "empty": "",
    }


@pytest.mark.parametrize("form", sorted(foreign_origins(1)))
async def test_a_foreign_page_is_kept_out(whole: GatewayRoad, session: str, form: str) -> None:
    origin = foreign_origins(whole.gateway.port)[form].encode()
    head = f"Host: {whole.gateway.host}\r\n".encode() + b"Origin: " + origin + b"\r\n"
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    send = b'Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"text":"hi"}'
    for request in (
        b"GET /v1/ws HTTP/1.1\r\n" + head + upgrade + b"\r\n",
        b"POST /v1/sessions/%b/messages HTTP/1.1\r\n" % session.encode() + head + send,
    ):
        status, body = await raw_request(whole.gateway.port, request)
        assert (status, body["code"]) == (403, "origin_not_allowed")


async def test_two_origins_are_none(whole: GatewayRoad, session: str) -> None:
    own = f"Origin: http://{whole.gateway.host}\r\n"
    request = f"POST /v1/sessions HTTP/1.1\r\nHost: {whole.gateway.host}\r\n{own}{own}Content-Length: 0\r\n\r\n"
    status, body = await raw_request(whole.gateway.port, request.encode())
    assert (status, body["code"]) == (403, "origin_not_allowed")


async def test_an_own_page_and_no_page_are_let_in(whole: GatewayRoad, session: str) -> None:
    for name in ("127.0.0.1", "localhost"):
        async with whole.gateway.socket(origin=f"http://{name}:{whole.gateway.port}") as socket:
            await socket.say("ping")
            await socket.until(lambda: socket.of("pong"), "a pong")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.:{port}", "LOCALHOST", ""]
)
async def test_a_foreign_host_is_kept_out(whole: GatewayRoad, session: str, host: str) -> None:
    head = f"Host: {host.format(port=whole.gateway.port)}\r\n"
    for request in (f"GET /v1/sessions HTTP/1.1\r\n{head}\r\n", f"GET /healthz HTTP/1.1\r\n{head}\r\n"):
        status, body = await raw_request(whole.gateway.port, request.encode())
        assert (status, body["code"]) == (421, "host_not_allowed")
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://evil.example:{whole.gateway.port}/v1/ws", host="127.0.0.1", port=whole.gateway.port):
            raise AssertionError("let in")
    assert refused.value.response.status_code == 421


async def test_no_host_and_two_hosts_are_kept_out(whole: GatewayRoad, session: str) -> None:
    own = f"Host: {whole.gateway.host}\r\n"
    for head in ("", own + own):
        status, body = await raw_request(whole.gateway.port, f"GET /healthz HTTP/1.1\r\n{head}\r\n".encode())
        assert (status, body["code"]) == (421, "host_not_allowed")


@pytest.mark.parametrize("path", ["/v1/other", "/"])
async def test_a_socket_elsewhere_is_not_found(whole: GatewayRoad, session: str, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://{whole.gateway.host}{path}"):
            raise AssertionError("let in")
    assert refused.value.response.status_code == 404


async def test_garbage_on_the_port_is_answered_and_forgotten(whole: GatewayRoad, session: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", whole.gateway.port)
    writer.write(b"\x16\x03\x01 hello \r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()


async def test_texts_are_never_logged(whole: GatewayRoad, session: str) -> None:
    canary = "canary-5a1d"
    async with whole.http() as client:
        await client.post(f"/v1/sessions/{session}/messages", json={"text": canary, "model": canary})
        await client.post(f"/v1/sessions/{session}/messages", content=canary)
    await eventually(lambda: whole.gateway.process.alive, reason="alive")
    assert canary not in whole.gateway.process.log_path.read_text()


async def raw_request(port: int, request: bytes) -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", head.lower())
            body = await reader.readexactly(int(length))
    finally:
        writer.close()
    return int(head.split()[1]), json.loads(body)
