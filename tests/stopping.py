"""The three doors as a client that stops an answer uses them, and what a model server saw of it.

Owns a client of each door with one face: ask, stop, hear the end. Stops are told on the door that asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import httpx

from tests.chatting import Chatter, chatter, http, send
from tests.folding import TERMINALS
from tests.installations import Installation
from tests.polling import eventually

DoorName = Literal["socket", "http", "stream"]
DOORS: tuple[DoorName, ...] = ("socket", "http", "stream")
SEEN_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class End:
    """A turn's terminal as a client was told of it."""

    type: str
    text: str
    thinking: str


class Door(Protocol):
    async def ask(self, session_id: str, text: str) -> str:
        """Send a message; its turn."""

    async def stop(self, session_id: str, turn_id: str) -> str | None:
        """Stop a turn: None once that is accepted, or the code of the refusal."""

    async def end(self, session_id: str, turn_id: str) -> End:
        """Wait for the turn's end."""


@dataclass
class SocketDoor:
    """One WebSocket that watches each session that it sends to."""

    client: Chatter

    async def ask(self, session_id: str, text: str) -> str:
        if session_id not in self.client.views:
            await self.client.attach(session_id, session_id)
        count = len(self.client.replies("accepted"))
        await self.client.tell(type="send", session=session_id, text=text)
        await self.client.until(lambda: len(self.client.replies("accepted")) > count, "the message is accepted")
        return str(self.client.replies("accepted")[-1]["turn_id"])

    async def stop(self, session_id: str, turn_id: str) -> str | None:
        """What was recorded shows itself on the feed; so a refusal is waited for only as long as one takes."""
        accepted, refused = len(self.client.replies("accepted")), len(self.client.replies("refused"))
        events = self._events_of(session_id)
        await self.client.tell(type="cancel", session=session_id, turn=turn_id)
        await self.client.until(
            lambda: (
                len(self.client.replies("refused")) > refused
                or (len(self.client.replies("accepted")) > accepted and self._events_of(session_id) > events)
            ),
            "the stop is recorded or refused",
        )
        refusals = self.client.replies("refused")[refused:]
        return str(refusals[0]["code"]) if refusals else None

    async def end(self, session_id: str, turn_id: str) -> End:
        view = self.client.views[session_id]
        await self.client.until(lambda: view.ended(turn_id), "the end of the turn")
        assert not view.broken
        answer = view.answers[turn_id]
        return End(str(answer.ended_by), answer.text, answer.data.get("thinking", ""))

    def _events_of(self, session_id: str) -> int:
        view = self.client.views.get(session_id)
        return 0 if view is None else view.order.count("cancel_requested")


@dataclass
class HttpDoor:
    """Plain requests: it asks for the turn until that has ended."""

    client: httpx.AsyncClient

    async def ask(self, session_id: str, text: str) -> str:
        return str((await send(self.client, session_id, text)).json()["turn_id"])

    async def stop(self, session_id: str, turn_id: str) -> str | None:
        answer = await self.client.post(f"/v1/sessions/{session_id}/turns/{turn_id}/cancel")
        return None if answer.status_code == 200 else str(answer.json()["code"])

    async def end(self, session_id: str, turn_id: str) -> End:
        async def ended() -> dict[str, Any] | None:
            listed = (await self.client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
            [answer] = [row for row in listed if (row["turn_id"], row["role"]) == (turn_id, "assistant")]
            return answer if answer["status"] not in ("waiting", "running") else None

        answer = await eventually(ended, reason="the end of the turn", timeout_s=SEEN_TIMEOUT_S)
        assert answer is not None
        return End(f"answer_{answer['status']}", answer["text"], answer["thinking"] or "")


@dataclass
class StreamDoor(HttpDoor):
    """The answer as a stream of its own; its stop is a request beside it."""

    frames: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    streams: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def ask(self, session_id: str, text: str) -> str:
        heard: list[dict[str, Any]] = []
        streaming = asyncio.create_task(self._hear(session_id, text, heard))
        await eventually(lambda: heard or streaming.done(), reason="the stream has begun", timeout_s=SEEN_TIMEOUT_S)
        turn_id = str(heard[0]["turn_id"])
        self.frames[turn_id], self.streams[turn_id] = heard, streaming
        return turn_id

    async def end(self, session_id: str, turn_id: str) -> End:
        """The stream ends by itself, with the terminal as its last frame."""
        await asyncio.wait_for(self.streams[turn_id], SEEN_TIMEOUT_S)
        event = self.frames[turn_id][-1]["event"]
        assert event["type"] in TERMINALS
        return End(event["type"], event["data"].get("text", ""), event["data"].get("thinking", ""))

    async def _hear(self, session_id: str, text: str, heard: list[dict[str, Any]]) -> None:
        path, headers = f"/v1/sessions/{session_id}/messages", {"Accept": "text/event-stream"}
        async with self.client.stream("POST", path, json={"text": text}, headers=headers) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    heard.append(json.loads(line.removeprefix("data: ")))


@asynccontextmanager
async def door(running: Installation, name: DoorName, gateway: int = 0) -> AsyncIterator[Door]:
    if name == "socket":
        async with chatter(running.ws(gateway)) as client:
            yield SocketDoor(client)
    else:
        async with http(running.http(gateway)) as web:
            yield HttpDoor(web) if name == "http" else StreamDoor(web)


async def request_of(running: Installation, text: str) -> dict[str, Any] | None:
    """What the model server saw of the request for this message, if it came."""
    records = await running.standin.control.requests(messages=True)
    found = [record for record in records if record["messages"][-1]["content"] == text]
    assert len(found) <= 1, "one request for one turn"
    return found[0] if found else None


async def request_in(running: Installation, text: str, phase: str, pieces: int = 0) -> None:
    """Wait until the model server is so far with this message."""

    async def is_there() -> bool:
        record = await request_of(running, text)
        return record is not None and record["phase"] == phase and record["pieces_sent"] >= pieces

    await eventually(is_there, reason=f"the model server is in {phase}", timeout_s=SEEN_TIMEOUT_S)


async def hung_up(running: Installation, text: str) -> float:
    """When the model server saw its client go, on this machine's monotonic clock."""

    async def gone() -> float | None:
        record = await request_of(running, text)
        assert record is not None
        return record["disconnected_at"] if record["outcome"] == "client_gone" else None

    at = await eventually(gone, reason="the model's socket is closed", timeout_s=SEEN_TIMEOUT_S)
    assert at is not None
    return at
