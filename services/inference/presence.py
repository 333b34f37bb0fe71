"""Step 11, inference/presence: what the worker says of itself, every 2 s and at once on a change.

Owns the broadcast. History tells by it which runs are alive and which turns can be taken; gateways which models there
are. Must never call a run alive that nobody works on, nor a model well that is given no turns.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from contracts import subjects
from contracts.base import dump
from contracts.turns import ModelPresence, Presence, RunPresence
from services.inference.health import Health
from services.runtime.bus import Bus

# A busy worker begins and ends a hundred runs a second, and everybody reads each broadcast: changes that follow one so
# closely share the next.
MERGE_S = 0.05


@dataclass(frozen=True, slots=True)
class Identity:
    """What never changes while the process lives."""

    worker_id: str
    server_kind: Literal["ollama", "openai"]
    slots: int
    every_s: float


class Beacon:
    """The worker's presence: its runs, and what its health says of the model server."""

    def __init__(self, bus: Bus, health: Health, identity: Identity) -> None:
        self._bus = bus
        self._health = health
        self._identity = identity
        self._due = asyncio.Event()
        self._runs: dict[str, str] = {}  # run -> turn
        self.stopping = False

    def begin(self, run_id: str, turn_id: str) -> None:
        self._runs[run_id] = turn_id
        self.say_soon()

    def end(self, run_id: str) -> None:
        if self._runs.pop(run_id, None) is not None:
            self.say_soon()

    def say_soon(self) -> None:
        """Broadcast at once, or right after MERGE_S where the last one is younger."""
        self._due.set()

    async def say(self) -> None:
        """Broadcast now."""
        await self._bus.publish_live(subjects.presence(self._identity.worker_id), dump(self._presence()))

    async def keep_saying(self) -> None:
        """Broadcast until cancelled."""
        while True:
            self._due.clear()
            await self.say()
            await asyncio.sleep(MERGE_S)  # pace: what changes meanwhile is one broadcast
            with suppress(TimeoutError):
                async with asyncio.timeout(self._identity.every_s):
                    await self._due.wait()

    def _presence(self) -> Presence:
        identity, health = self._identity, self._health
        return Presence(
            worker_id=identity.worker_id,
            models=[
                ModelPresence(
                    name=model.name, window=model.window, digest=model.digest, trouble=health.trouble_of(model.name)
                )
                for model in health.models
            ],
            server=health.state,
            server_kind=identity.server_kind,
            slots=identity.slots,
            free=max(0, identity.slots - len(self._runs)),
            runs=[RunPresence(turn_id=turn_id, run=run_id) for run_id, turn_id in self._runs.items()],
            stopping=self.stopping,
        )
