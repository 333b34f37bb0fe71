"""The watch over the broker: a nats-server that a full disk has latched is started again once there is room.

Owns that one decision. A server that could not write stays in its error state when space is back, until it is restarted
(measured); nothing acknowledged is lost by that. Must never restart a server for anything else.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from services.runtime.bus import Bus, BusAddress
from services.runtime.health import server_reasons

WATCH_EVERY_S = 5.0
# A stream that is being deleted makes the server unavailable for a moment: it must say so this often in a row.
_TIMES_IN_A_ROW = 3
# Below this gateways refuse new messages too: with less, the server would be latched again at once.
FREE_BYTES = 512 * 1024 * 1024


async def watch_broker(system: BusAddress, store: Path, restart: Callable[[], None]) -> None:
    """Ask for ever; call restart for each time that the server is latched while there is room."""
    bus = Bus(system, "chatlog-up")
    await bus.connect()
    latched = 0
    try:
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            unhealthy = any(reason.name == "broker_unhealthy" for reason in await server_reasons(bus))
            latched = latched + 1 if unhealthy else 0
            if latched >= _TIMES_IN_A_ROW and shutil.disk_usage(store).free >= FREE_BYTES:
                await asyncio.to_thread(restart)
                latched = 0
    finally:
        await bus.stop()
