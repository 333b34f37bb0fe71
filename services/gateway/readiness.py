"""Beside the road, gateway/readiness: would a message be accepted and recorded now.

Owns the gateway's reasons: the broker's, whether history answers, and whether the keys are read. Must never ask more
often than every two seconds, whoever probes.
"""

from __future__ import annotations

import asyncio
import time

from services.gateway.auth import LOCAL_USER
from services.gateway.intake import Refused
from services.gateway.keyring import KeyRing
from services.gateway.queries import History, HistoryAway
from services.runtime.health import CACHE_S, BrokerHealth, Reason


class Readiness:
    """Asked by /readyz and by the supervisor."""

    def __init__(self, broker: BrokerHealth, history: History, keys: KeyRing | None = None) -> None:
        self._broker = broker
        self._keys = keys
        self._history = history
        self._lock = asyncio.Lock()
        self._asked_at = float("-inf")
        self._away: list[Reason] = []

    async def reasons(self) -> list[Reason]:
        """Why it is not ready; empty: it is."""
        found = await self._broker.reasons()
        if self._keys is not None:
            found += self._keys.reasons()
        async with self._lock:
            if time.monotonic() - self._asked_at > CACHE_S:
                self._away = await self._ask_history()
                self._asked_at = time.monotonic()
            return [*found, *self._away]

    async def _ask_history(self) -> list[Reason]:
        try:
            await self._history.sessions(LOCAL_USER, limit=1, before=None)
        except (HistoryAway, Refused) as error:
            return [Reason("history_away", f"history does not answer: {error}")]
        return []
