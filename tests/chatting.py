"""A client on the WebSocket door and one on HTTP, as people write them, for tests.

Owns its connection, and folds what it is sent (tests/folding.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.folding import SessionView
from tests.polling import eventually

HEARD_TIMEOUT_S = 60.0


@dataclass
class Chatter:
    """One socket, with the state of each session that it watches."""

    socket: ClientConnection
    views: dict[str, SessionView] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)

    async def tell(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def attach(self, session: str, session_id: str, after: str | None = None) -> SessionView:
        """Watch a session; returns once it is attached."""
        view = self.views.setdefault(session_id, SessionView(session_id))
        await self.tell(type="attach", session=session, **({"after": after} if after else {}))
        await self.until(lambda: view.attached, f"attached to {session}")
        return view

    async def until(self, holds: Callable[[], object], reason: str) -> None:
        await eventually(holds, reason=reason, timeout_s=HEARD_TIMEOUT_S)

    def replies(self, kind: str) -> list[dict[str, Any]]:
        return [frame for frame in self.others if frame["type"] == kind]

    async def listen(self) -> None:
        """Fold what comes, until the socket closes."""
        async for raw in self.socket:
            assert isinstance(raw, str)
            session_id = json.loads(raw).get("session_id")
            if json.loads(raw)["type"] in ("accepted", "refused", "error", "pong") or session_id not in self.views:
                self.others.append(json.loads(raw))
            else:
                self.views[session_id].take(raw)


@asynccontextmanager
async def chatter(url: str, **options: Any) -> AsyncIterator[Chatter]:
    """A connected client that listens."""
    async with connect(url, subprotocols=["chat.v1"], max_size=16 * 2**20, **options) as socket:  # type: ignore[list-item]
        client = Chatter(socket)
        listening = asyncio.create_task(client.listen())
        try:
            yield client
        finally:
            listening.cancel()


@asynccontextmanager
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        yield client


async def new_session(client: httpx.AsyncClient, **body: Any) -> str:
    """Create a session; its id."""
    answer = await client.post("/v1/sessions", json=body)
    assert answer.status_code in (200, 201), answer.text
    session_id: str = answer.json()["session_id"]
    return session_id


async def send(client: httpx.AsyncClient, session_id: str, text: str, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await client.post(f"/v1/sessions/{session_id}/messages", json={"text": text, **more}, headers=headers)
