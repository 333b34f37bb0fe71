"""People who write, as clients do it: POST, ?wait=answer, a streamed answer, a WebSocket; repeated until resolved.

Owns each send's key and what its client was told of it. A client that knows no outcome repeats with the same key at
any door and in any way; some repeat what they know, some stop their turn, some hang up. Must never judge.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Literal

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from contracts.errors import REFUSAL_CODES
from contracts.events import OnBusy
from tests.faults.clients import REQUEST_TIMEOUT_S, RETRY_S, Crowd
from tests.folding import TERMINALS
from tests.standins import plain_client

Told = tuple[Literal["ok", "fail", "unknown"], dict[str, Any]]

# A turn that waits behind others under faults: then the client leaves it and asks again.
ANSWER_TIMEOUT_S = 40.0
BETWEEN_SENDS_S = (0.2, 1.5)
# How often each way is taken.
WAYS = {"plain": 5, "waiting": 2, "streamed": 2, "socket": 2}
REPEATS, STOPS, HANGS_UP = 0.1, 0.1, 0.005
# What a message does to an answer that is under way, by its key's last digit; the others wait, as the session has it.
ON_BUSY: dict[str, OnBusy] = {"3": "interrupt", "7": "reject"}
# Codes after which a client cannot know whether its message will be recorded.
UNSURE = ("unknown", "internal", "stream_cut", "not_ready")
# A real model would go on for long.
OPTIONS = {"max_tokens": 60}
PLACE = ("status", "event_id", "turn_id", "position", "version")


class Sender:
    """One person who writes one message after the other."""

    def __init__(self, crowd: Crowd, name: str, ways: Mapping[str, int] = WAYS) -> None:
        self._crowd = crowd
        self._name = name
        self._ways = ways
        self._requests = 0

    async def send_for_ever(self) -> None:
        """A message, until its outcome is known; sometimes the same again; sometimes a stop."""
        crowd, number = self._crowd, 0
        while not crowd.resting:
            number += 1
            key = f"{self._name}-{number}"
            session_id = crowd.random.choice(crowd.sessions)
            told = await self.resolve(key, session_id)
            if told and crowd.chance(REPEATS):
                await self.send(key, session_id)
            if told and crowd.chance(STOPS):
                await self.stop_turn(session_id, told["turn_id"])
            await asyncio.sleep(crowd.random.uniform(*BETWEEN_SENDS_S))  # pace: as people type

    async def resolve(self, key: str, session_id: str) -> dict[str, Any] | None:
        """Repeat until the message is recorded; None where it is refused while nothing of it was published."""
        unsure = False
        while True:
            kind, told = await self.send(key, session_id)
            unsure = unsure or kind == "unknown" or (kind == "ok" and told["status"] == "accepted")
            if kind == "ok" and told["status"] == "recorded":
                return told
            if kind == "fail" and not unsure:
                return None
            await asyncio.sleep(RETRY_S)  # pace: a client that repeats politely

    async def send(self, key: str, session_id: str) -> Told:
        """Once, in one of the ways."""
        way = self._crowd.random.choices(list(self._ways), list(self._ways.values()))[0]
        body, journal = _body(key), self._crowd.journal
        journal.write("invoke", op="send", key=key, session_id=session_id, way=way)
        act = {"plain": self._plain, "waiting": self._waiting, "streamed": self._streamed, "socket": self._socket}[way]
        try:
            kind, told = await act(key, session_id, body)
        except (httpx.HTTPError, OSError, WebSocketException, ValueError) as error:  # also a timeout
            kind, told = "unknown", {"error": type(error).__name__}
        journal.write(kind, op="send", key=key, session_id=session_id, **told)
        return kind, told

    async def stop_turn(self, session_id: str, turn_id: str) -> None:
        path = f"/v1/sessions/{session_id}/turns/{turn_id}/cancel"
        self._crowd.journal.write("invoke", op="cancel", turn_id=turn_id)
        try:
            async with self._client(REQUEST_TIMEOUT_S) as client:
                kind, told = _told(await client.post(path))
        except (httpx.HTTPError, ValueError) as error:
            kind, told = "unknown", {"error": type(error).__name__}
        self._crowd.journal.write(kind, op="cancel", **{"turn_id": turn_id, **told})

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        return plain_client(timeout_s, self._crowd.door())

    async def _plain(self, key: str, session_id: str, body: dict[str, Any]) -> Told:
        async with self._client(REQUEST_TIMEOUT_S) as client:
            return _told(await client.post(_path(session_id), json=body, headers=_headers(key)))

    async def _waiting(self, key: str, session_id: str, body: dict[str, Any]) -> Told:
        async with self._client(ANSWER_TIMEOUT_S) as client:
            answer = await client.post(f"{_path(session_id)}?wait=answer", json=body, headers=_headers(key))
        kind, told = _told(answer)
        given = answer.json()
        if kind == "ok" and "answer" in given:
            return kind, told | {"answer": given["answer"]["text"]}
        if kind == "fail" and "turn_id" in given and told["code"] not in REFUSAL_CODES:
            # The problem that the answer ended with: the message itself is recorded.
            place = {name: given.get(name) for name in PLACE}
            return "ok", place | {"status": "accepted", "ended": told["code"]}
        return kind, told

    async def _streamed(self, key: str, session_id: str, body: dict[str, Any]) -> Told:
        """The frames are journalled as a stream's; what they say of the send is its outcome."""
        self._requests += 1
        stream, journal = f"{self._name}#{self._requests}", self._crowd.journal
        headers = {**_headers(key), "Accept": "text/event-stream"}
        told: dict[str, Any] | None = None
        how = "clean"
        async with (
            self._client(ANSWER_TIMEOUT_S) as client,
            client.stream("POST", _path(session_id), json=body, headers=headers) as answer,
        ):
            if "event-stream" not in answer.headers.get("content-type", ""):
                await answer.aread()
                return _told(answer)
            journal.write("open", stream=stream, session_id=session_id)
            try:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        journal.write("frame", stream=stream, raw=line[6:])
                        told = _placed(told, json.loads(line[6:]))
                    if self._crowd.chance(HANGS_UP):
                        how = "vanished"
                        break
            except httpx.HTTPError as error:
                how = type(error).__name__
        journal.write("closed", stream=stream, how=how)
        return ("unknown", {"error": how}) if told is None else _kind(told)

    async def _socket(self, key: str, session_id: str, body: dict[str, Any]) -> Told:
        url = self._crowd.door().replace("http", "ws") + "/v1/ws"
        async with (
            asyncio.timeout(REQUEST_TIMEOUT_S),
            connect(url, subprotocols=[Subprotocol("chat.v1")], open_timeout=5, close_timeout=1) as socket,
        ):
            sent = {"type": "send", "session": session_id, "client_message_id": key, **body}
            await socket.send(json.dumps(sent))
            async for raw in socket:
                if (told := _placed(None, json.loads(raw))) is not None:
                    return _kind(told)
        return "unknown", {"error": "closed"}


def _path(session_id: str) -> str:
    return f"/v1/sessions/{session_id}/messages"


def _body(key: str) -> dict[str, Any]:
    """The same for the same key: another body under it would be another message."""
    on_busy = ON_BUSY.get(key[-1])
    return {"text": f"say {key}", "options": OPTIONS} | ({"on_busy": on_busy} if on_busy else {})


def _headers(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def _told(answer: httpx.Response) -> Told:
    body = answer.json()
    if answer.status_code < 300:
        return "ok", {name: body.get(name) for name in PLACE}
    return _kind({"code": body.get("code")})


def _kind(told: dict[str, Any]) -> Told:
    if "code" not in told:
        return "ok", told
    return "unknown" if told["code"] in UNSURE else "fail", told


def _placed(told: dict[str, Any] | None, frame: dict[str, Any]) -> dict[str, Any] | None:
    """What the client knows of its send after one more frame of its own."""
    if frame["type"] == "accepted":
        return {"status": "accepted", **{name: frame.get(name) for name in ("event_id", "turn_id")}}
    if frame["type"] == "refused":
        return {"code": frame["code"]}
    if frame["type"] == "error":
        return told or {"code": frame["code"]}
    if frame["type"] != "event" or told is None or "code" in told:
        return told
    event = frame["event"]
    if event["event_id"] == told["event_id"]:
        return told | {"status": "recorded", "position": frame["position"], "version": frame["version"]}
    return told | {"ended": event["type"]} if event["type"] in TERMINALS else told
