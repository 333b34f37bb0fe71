"""The bus on a network that takes bytes and carries none: it is noticed, and nothing waits for it for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from services.runtime import bus as runtime_bus
from services.runtime.bus import Bus, BusAddress
from tests.brokers import broker
from tests.faults.proxy import proxied
from tests.polling import eventually

FOR_EVER_S = 60.0
PAYLOAD = b"x" * 1_000_000


async def fill(bus: Bus) -> None:
    """More than the sockets between can hold: what is left waits in this process."""
    for _ in range(30):
        await bus.publish_live("nobody.listens", PAYLOAD)


async def test_a_half_open_connection_with_much_to_write_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_bus, "WRITE_TIMEOUT_S", 1)
    async with broker(tmp_path) as b, proxied("broker", b.config.port) as between:
        bus = Bus(BusAddress(f"nats://127.0.0.1:{between.port}", b.user, b.password), "test")
        await bus.connect()
        between.half_open()
        filling = asyncio.create_task(fill(bus))
        await eventually(lambda: bus.generation == 1, reason="it has a new connection", timeout_s=FOR_EVER_S)
        await filling
        assert bus.connected
        await bus.stop()


async def test_a_broadcast_that_fell_silent_is_subscribed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lost the subscription, and its client cannot know."""
    monkeypatch.setattr(runtime_bus, "SILENT_S", 0.2)
    heard: list[bytes] = []

    async def hear(msg: Msg) -> None:
        heard.append(msg.data)

    async with broker(tmp_path, provisioned=False) as b:
        bus = Bus(BusAddress(b.url, b.user, b.password), "test")
        await bus.connect()
        await bus.subscribe_repeated("chat.load", hear)
        for subscription in list(bus.client._subs):
            await bus.client._send_unsubscribe(subscription)
        watching = asyncio.create_task(bus.watch_silence())

        async def told() -> bool:
            await bus.publish_live("chat.load", b"{}")
            return bool(heard)

        await eventually(told, reason="it is heard again", timeout_s=FOR_EVER_S)
        watching.cancel()
        await bus.stop()


async def test_a_stop_does_not_wait_for_a_half_open_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_bus, "STOP_TIMEOUT_S", 0.5)
    monkeypatch.setattr(runtime_bus, "WRITE_TIMEOUT_S", 1000)
    async with broker(tmp_path) as b, proxied("broker", b.config.port) as between:
        bus = Bus(BusAddress(f"nats://127.0.0.1:{between.port}", b.user, b.password), "test")
        await bus.connect()
        between.half_open()
        filling = asyncio.create_task(fill(bus))
        async with asyncio.timeout(FOR_EVER_S):
            await bus.stop()
        filling.cancel()
