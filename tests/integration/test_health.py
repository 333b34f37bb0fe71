"""Health: what the broker's own account and streams say becomes named reasons, and the listener tells only its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.operator import broker as bundled
from services.runtime import health, streams
from services.runtime.bus import Bus, BusAddress
from services.runtime.health import BrokerHealth, Reason, listening
from tests.brokers import Broker, broker
from tests.polling import eventually


@asynccontextmanager
async def _health(b: Broker) -> AsyncIterator[BrokerHealth]:
    bus = Bus(BusAddress(b.url, b.user, b.password), "test")
    system = Bus(BusAddress(b.url, b.system_user, b.system_password), "test-health")
    await bus.connect()
    await system.connect()
    yield BrokerHealth(bus, system, streams.declared())
    await bus.stop()
    await system.stop()


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CACHE_S", -1.0)


async def test_a_provisioned_broker_is_ready(tmp_path: Path) -> None:
    async with broker(tmp_path) as b, _health(b) as broker_health:
        assert await broker_health.reasons() == []


async def test_a_stream_whose_options_differ_is_named(tmp_path: Path) -> None:
    async with broker(tmp_path) as b, _health(b) as broker_health:
        client = await b.connect()
        await client.jetstream().update_stream(replace(streams.declared()[0], max_bytes=5_000_000))
        await client.jetstream().delete_stream("CHAT_CONTEXT")
        await client.close()
        expected = [
            Reason("stream_differs", "stream CHAT_INTAKE: max_bytes is 5000000, should be 2147483648"),
            Reason("stream_differs", "stream CHAT_CONTEXT is missing"),
        ]

        async def named() -> bool:
            return await broker_health.reasons() == expected

        await eventually(named, reason="the server is done deleting, and both streams are named")


async def test_a_broker_that_does_not_sync_always_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render = bundled.render
    monkeypatch.setattr(bundled, "render", lambda config: render(config).replace("sync_interval: always", ""))
    async with broker(tmp_path) as b, _health(b) as broker_health:
        assert [reason.name for reason in await broker_health.reasons()] == ["broker_unsynced"]


async def test_a_lost_broker_is_a_reason_and_its_return_is_seen(tmp_path: Path) -> None:
    async with broker(tmp_path) as b, _health(b) as broker_health:
        await b.kill()

        async def names() -> list[str]:
            return [reason.name for reason in await broker_health.reasons()]

        async def gone() -> bool:
            return await names() == ["broker_disconnected"]

        async def back() -> bool:
            return await names() == []

        await eventually(gone, reason="the lost broker is noticed")
        await b.start()
        await eventually(back, reason="the broker is back")


async def test_a_wrong_system_password_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        bus = Bus(BusAddress(b.url, b.user, b.password), "test")
        await bus.connect()
        system = Bus(BusAddress(b.url, b.system_user, "wrong"), "test-health")
        reasons = await BrokerHealth(bus, system, streams.declared()).reasons()
        assert [reason.name for reason in reasons] == ["broker_unknown"]
        await bus.stop()


async def _ask(path: Path, request: bytes) -> tuple[int, dict[str, object]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)) if answer else (0, {})


def _get(path: str, host: str = "localhost") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_the_listener_answers_and_names_reasons(tmp_path: Path) -> None:
    reasons: list[Reason] = []

    async def ready() -> list[Reason]:
        return reasons

    path = tmp_path / "h.sock"
    async with listening(f"unix:{path}", ready):
        assert path.stat().st_mode & 0o777 == 0o600
        assert await _ask(path, _get("/healthz")) == (200, {"status": "ok"})
        assert await _ask(path, _get("/readyz")) == (200, {"ready": True, "reasons": []})
        reasons.append(Reason("catching_up", "12 events behind"))
        assert await _ask(path, _get("/readyz?x=1")) == (
            503, {"ready": False, "reasons": [{"name": "catching_up", "detail": "12 events behind"}]},
        )  # fmt: skip
    assert not path.exists()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (_get("/else"), 404),
        (_get("/healthz", "evil.example"), 421),
        (_get("/healthz", "127.0.0.1.evil.example:80"), 421),
        (_get("/healthz", "LOCALHOST:8704"), 200),
        (_get("/healthz", "[::1]:8704"), 200),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"POST /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"\x16\x03\x01\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b"\r\n\r\n", 0),
    ],
)
async def test_the_listener_refuses_what_is_not_its_own(tmp_path: Path, request_bytes: bytes, status: int) -> None:
    async def ready() -> list[Reason]:
        return []

    async with listening(f"unix:{tmp_path}/h.sock", ready):
        assert (await _ask(tmp_path / "h.sock", request_bytes))[0] == status
        assert (await _ask(tmp_path / "h.sock", _get("/healthz")))[0] == 200


async def test_the_listener_takes_the_place_of_a_killed_one(tmp_path: Path) -> None:
    async def ready() -> list[Reason]:
        return []

    path = tmp_path / "h.sock"
    (await asyncio.start_unix_server(lambda _r, _w: None, path)).close()
    path.touch()
    async with listening(f"unix:{path}", ready):
        assert (await _ask(path, _get("/healthz")))[0] == 200
