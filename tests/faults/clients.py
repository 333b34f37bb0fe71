"""All clients of a run: who writes, who watches, where their doors are.

Owns the crowd's sessions and its end: resting, nobody begins anything new. Must never judge what clients see: the
checker does.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.faults.journal import Journal
from tests.faults.stack import Stack
from tests.folding import SessionView
from tests.standins import plain_client

# Longer than the gateway's own 2 s before a 202 and 5 s of publishing; a half-open way is left after it.
REQUEST_TIMEOUT_S = 15.0
# Three heartbeats of the gateway (5 s here) without a byte: the way is dead.
SILENT_S = 15.0
RETRY_S = 0.5
# The end's questions are asked again for so long: everything runs by then.
ASKED_WITHIN_S = 60.0
ASKED_AT_ONCE = 8


@dataclass
class Crowd:
    """One run's clients. resting: nobody begins anything new; what is unresolved is still repeated."""

    stack: Stack
    journal: Journal
    random: random.Random
    sessions: list[str] = field(default_factory=list)
    resting: bool = False
    views: list[SessionView] = field(default_factory=list)

    def door(self) -> str:
        return self.stack.door(self.random.randrange(self.stack.gateways))

    def chance(self, of_one: float) -> bool:
        """Whether a client does something odd now; none does at the end."""
        return not self.resting and self.random.random() < of_one

    def seen(self) -> int:
        """How many events all watchers together hold."""
        return sum(view.version for view in self.views)

    async def begin(self, count: int) -> None:
        """Sessions, before anything goes wrong."""
        async with plain_client(REQUEST_TIMEOUT_S, self.stack.door(0)) as client:
            for _ in range(count):
                answer = await client.post("/v1/sessions", json={})
                assert answer.status_code == 201, answer.text
                self.sessions.append(answer.json()["session_id"])

    async def ask_outcomes(self) -> None:
        """What became of each accepted send, as a door tells it at the end."""
        told = {
            entry["key"]: entry for entry in self.journal.entries if entry.get("op") == "send" and entry["kind"] == "ok"
        }
        room = asyncio.Semaphore(ASKED_AT_ONCE)
        async with plain_client(REQUEST_TIMEOUT_S) as client:

            async def ask(key: str, entry: dict[str, Any]) -> None:
                async with room:
                    outcome = await self._outcome(client, entry)
                self.journal.write("ok", op="outcome", key=key, turn_id=entry["turn_id"], **outcome)

            await asyncio.gather(*(ask(key, entry) for key, entry in told.items()))

    async def _outcome(self, client: httpx.AsyncClient, entry: dict[str, Any]) -> dict[str, Any]:
        path = f"/v1/sessions/{entry['session_id']}/turns/{entry['turn_id']}"
        deadline = asyncio.get_running_loop().time() + ASKED_WITHIN_S
        status: str | None = None
        while asyncio.get_running_loop().time() < deadline:
            try:
                answer = (await client.get(self.door() + path)).json()
            except (httpx.HTTPError, ValueError):
                answer = {}
            status = answer.get("status")
            if status in ("recorded", "refused"):
                turn = answer.get("turn") or {}
                return {"status": status, "event_id": turn.get("event_id"), "turn_status": turn.get("status")}
            await asyncio.sleep(RETRY_S)  # pace: a client that repeats politely
        return {"status": str(status), "event_id": None, "turn_status": None}
