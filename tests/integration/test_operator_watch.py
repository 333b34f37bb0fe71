"""The watch over the broker, on a real one that says that it is unavailable."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from services.operator import watch
from services.runtime.bus import Bus, BusAddress
from services.runtime.health import Reason, server_reasons
from tests.brokers import Broker, broker
from tests.polling import eventually


def make_unavailable(b: Broker) -> Path:
    """A stream's folder that the server does not know: it reports it as one that could not be recovered."""
    folder = b.config.store_dir / "jetstream" / "CHAT" / "streams" / "LOST"
    folder.mkdir(parents=True)
    return folder


async def test_an_unavailable_broker_is_restarted_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_EVERY_S", 0.02)
    monkeypatch.setattr(watch, "FREE_BYTES", 1 << 60)
    restarts: list[str] = []
    async with broker(tmp_path) as b:
        system = BusAddress(b.url, b.system_user, b.system_password)
        asked = 0

        async def count(bus: Bus) -> list[Reason]:
            nonlocal asked
            asked += 1
            return await server_reasons(bus)

        monkeypatch.setattr("services.operator.watch.server_reasons", count)
        watching = asyncio.create_task(watch.watch_broker(system, tmp_path, lambda: restarts.append("nats")))
        await eventually(lambda: asked > 5, reason="a healthy broker is watched")
        assert restarts == []
        lost = make_unavailable(b)
        healthy = asked
        await eventually(lambda: asked > healthy + 8, reason="an unavailable broker is watched while the disk is full")
        assert restarts == []
        monkeypatch.setattr(watch, "FREE_BYTES", 1)
        await eventually(lambda: restarts, reason="there is room again")
        lost.rmdir()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
