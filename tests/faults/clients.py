"""Clients as people write them, which journal what they do and see: senders over HTTP, watchers over WebSocket and SSE.

Owns their connections and cursors. They reconnect by themselves, repeat with the same key what they know no outcome of,
and vanish in mid-frame now and then. Must never judge what they see: the checker does.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from tests.faults.journal import Journal
from tests.faults.stack import Stack
from tests.folding import SessionView
from tests.standins import plain_client

# Longer than the gateway's own 2 s before a 202 and 5 s of publishing; a half-open way is left after it.
REQUEST_TIMEOUT_S = 15.0
# Three heartbeats of the gateway (5 s here) without a byte: the way is dead.
SILENT_S = 15.0
RETRY_S = 0.5
BETWEEN_SENDS_S = (0.2, 1.5)


@dataclass
class Crowd:
    """All clients of one run. resting: nobody begins anything new; what is unresolved is still repeated."""

    stack: Stack
    journal: Journal
    random: random.Random
    sessions: list[str] = field(default_factory=list)
    resting: bool = False
    views: list[SessionView] = field(default_factory=list)

    def door(self) -> str:
        return self.stack.door(self.random.randrange(self.stack.gateways))

    async def begin(self, count: int) -> None:
        """Sessions, before anything goes wrong."""
        async with plain_client(REQUEST_TIMEOUT_S, self.stack.door(0)) as client:
            for _ in range(count):
                answer = await client.post("/v1/sessions", json={})
                assert answer.status_code == 201, answer.text
                self.sessions.append(answer.json()["session_id"])

    async def send_for_ever(self, name: str) -> None:
        """One sender: a message, until its outcome is known; sometimes the same again; sometimes a stop."""
        number = 0
        while not self.resting:
            number += 1
            key = f"{name}-{number}"
            session_id = self.random.choice(self.sessions)
            told = await self.resolve(key, session_id)
            if told and self.random.random() < 0.1:
                await self.post(key, session_id)
            if told and self.random.random() < 0.1:
                await self.stop_turn(session_id, told["turn_id"])
            await asyncio.sleep(self.random.uniform(*BETWEEN_SENDS_S))  # pace: as people type

    async def resolve(self, key: str, session_id: str) -> dict[str, Any] | None:
        """Repeat until the message is recorded; None where it is refused while nothing of it was published."""
        unsure = False
        while True:
            kind, told = await self.post(key, session_id)
            unsure = unsure or kind == "unknown" or (kind == "ok" and told["status"] == "accepted")
            if kind == "ok" and told["status"] == "recorded":
                return told
            if kind == "fail" and not unsure:
                return None
            await asyncio.sleep(RETRY_S)  # pace: a client that repeats politely

    async def post(self, key: str, session_id: str) -> tuple[str, dict[str, Any]]:
        text = f"say {key}"
        self.journal.write("invoke", op="send", key=key, session_id=session_id, text=text)
        kind, told = await self._asked(f"/v1/sessions/{session_id}/messages", {"text": text}, key)
        self.journal.write(kind, op="send", key=key, session_id=session_id, **told)  # type: ignore[arg-type]
        return kind, told

    async def stop_turn(self, session_id: str, turn_id: str) -> None:
        self.journal.write("invoke", op="cancel", turn_id=turn_id)
        kind, told = await self._asked(f"/v1/sessions/{session_id}/turns/{turn_id}/cancel", None, None)
        self.journal.write(kind, op="cancel", **{"turn_id": turn_id, **told})  # type: ignore[arg-type]

    async def _asked(self, path: str, body: dict[str, Any] | None, key: str | None) -> tuple[str, dict[str, Any]]:
        headers = {} if key is None else {"Idempotency-Key": key}
        try:
            async with plain_client(REQUEST_TIMEOUT_S, self.door()) as client, asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await client.post(path, json=body, headers=headers)
                told = answer.json()
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            return "unknown", {"error": type(error).__name__}
        if answer.status_code < 300:
            return "ok", {name: told.get(name) for name in ("status", "event_id", "turn_id", "position", "version")}
        sure = told.get("code") not in ("unknown", "internal", "stream_cut", "not_ready")
        return "fail" if sure else "unknown", {"code": told.get("code")}

    async def watch_for_ever(self, name: str, session_id: str) -> None:
        """One watcher on the WebSocket: resumes at its cursor wherever a connection ends, however it ends."""
        view = SessionView(session_id)
        self.views.append(view)
        while True:
            after = cursor_of(view)
            if after is None:  # cut before `attached` told the epoch: all is sent again, from the first event
                view.version, view.answers = 0, {}
            self.journal.write("open", watch=name, session_id=session_id, after=after)
            how = "cut"
            try:
                how = await self._watch(name, view, after)
            except (OSError, WebSocketException, TimeoutError) as error:
                how = type(error).__name__
            self.journal.write("closed", watch=name, how=how)
            await asyncio.sleep(RETRY_S)  # pace: a client that comes back politely

    async def _watch(self, name: str, view: SessionView, after: str | None) -> str:
        url = self.door().replace("http", "ws") + "/v1/ws"
        async with connect(
            url, subprotocols=[Subprotocol("chat.v1")], max_size=None, open_timeout=5, ping_interval=5, ping_timeout=10
        ) as socket:
            await socket.send(
                json.dumps({"type": "attach", "session": view.session_id, **({"after": after} if after else {})})
            )
            async for raw in socket:
                frame = json.loads(raw)
                self.journal.write("frame", watch=name, raw=raw)
                if frame["type"] == "refused":
                    return str(frame["code"])
                view.take(str(raw))
                if frame["type"] == "resync":
                    return "resync"
                if not self.resting and self.random.random() < 0.005:
                    socket.transport.abort()
                    return "vanished"
        return "closed"


def cursor_of(view: SessionView) -> str | None:
    """Where this client is: epoch.version, and inside an answer .attempt.index."""
    if view.epoch is None or view.version == 0:
        return None
    running = [answer for answer in view.answers.values() if answer.attempt and answer.ended_by is None]
    inside = f".{running[-1].attempt}.{running[-1].index}" if running and running[-1].index else ""
    return f"{view.epoch}.{view.version}{inside}"
