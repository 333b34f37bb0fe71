"""People who watch a session, over WebSocket and SSE: they come back by themselves at their cursor, however it ended.

Owns each watcher's connection and cursor. Now and then one reads nothing for a while, or vanishes in mid-frame. Must
never judge what it sees.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from tests.faults.clients import RETRY_S, SILENT_S, Crowd
from tests.folding import SessionView
from tests.standins import plain_client

VANISHES, DAWDLES = 0.003, 0.001
DAWDLES_S = (1.0, 10.0)


class Watcher(ABC):
    """One watcher of one session. What differs between doors is `_watch` and the cursor."""

    def __init__(self, crowd: Crowd, name: str, session_id: str) -> None:
        self.view = SessionView(session_id)
        crowd.views.append(self.view)
        self._crowd = crowd
        self._name = name

    async def watch_for_ever(self) -> None:
        while True:
            after = self._cursor()
            if after is None:  # cut before `attached` told the epoch: all is sent again, from the first event
                self.view.version, self.view.answers = 0, {}
            self._write("open", session_id=self.view.session_id, after=after)
            try:
                how = await self._watch(after)
            except (OSError, WebSocketException, httpx.HTTPError) as error:
                how = type(error).__name__
            self._write("closed", how=how)
            await asyncio.sleep(RETRY_S)  # pace: a client that comes back politely

    @abstractmethod
    def _cursor(self) -> str | None:
        """Where it is; None: it begins anew."""

    @abstractmethod
    async def _watch(self, after: str | None) -> str:
        """One connection; how it ended."""

    def _write(self, kind: Any, **fields: Any) -> None:
        self._crowd.journal.write(kind, watch=self._name, **fields)

    async def _take(self, raw: str) -> str | None:
        """One frame; what ends the connection, where this client ends it."""
        self._write("frame", raw=raw)
        kind = json.loads(raw)["type"]
        if kind in ("refused", "error"):
            return None
        self.view.take(raw)
        if kind == "resync":
            return "resync"
        if self._crowd.chance(DAWDLES):
            await asyncio.sleep(self._crowd.random.uniform(*DAWDLES_S))  # pace: the client that reads slowly
        return "vanished" if self._crowd.chance(VANISHES) else None


class SocketWatcher(Watcher):
    """On the WebSocket."""

    def _cursor(self) -> str | None:
        """epoch.version, and inside an answer .attempt.index."""
        view = self.view
        if view.epoch is None or view.version == 0:
            return None
        running = [answer for answer in view.answers.values() if answer.attempt and answer.ended_by is None]
        inside = f".{running[-1].attempt}.{running[-1].index}" if running and running[-1].index else ""
        return f"{view.epoch}.{view.version}{inside}"

    async def _watch(self, after: str | None) -> str:
        url = self._crowd.door().replace("http", "ws") + "/v1/ws"
        attach = {"type": "attach", "session": self.view.session_id, **({"after": after} if after else {})}
        async with connect(
            url,
            subprotocols=[Subprotocol("chat.v1")],
            max_size=None,
            open_timeout=5,
            ping_interval=5,
            ping_timeout=10,
            close_timeout=1,
        ) as socket:
            await socket.send(json.dumps(attach))
            try:
                async for raw in socket:
                    if how := await self._take(str(raw)):
                        socket.transport.abort()
                        return how
                    if json.loads(raw)["type"] == "refused":
                        return "refused"
            except ConnectionClosed:
                pass
            return f"close {socket.close_code}"


class StreamWatcher(Watcher):
    """On server-sent events, as an EventSource: its cursor is the last id that it was given."""

    _last_event_id: str | None = None
    _next_id: str | None = None

    def _cursor(self) -> str | None:
        return self._last_event_id

    async def _watch(self, after: str | None) -> str:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": after} if after else {})}
        path = f"/v1/sessions/{self.view.session_id}/events"
        async with (
            plain_client(SILENT_S, self._crowd.door()) as client,
            client.stream("GET", path, headers=headers) as answer,
        ):
            if answer.status_code != 200:
                return str(answer.status_code)
            async for line in answer.aiter_lines():
                if line.startswith("id:"):
                    self._next_id = line[3:].strip() or None
                elif line.startswith("data:"):
                    self._last_event_id = self._next_id
                    if how := await self._take(line[5:].strip()):
                        return how
        return "clean"
