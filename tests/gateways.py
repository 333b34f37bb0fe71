"""A gateway for a test, as a real process on a port that the system chose, and clients for its doors.

Owns the processes and sockets that it opens. The clients keep what they were sent, byte for byte.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.brokers import Broker
from tests.polling import eventually
from tests.services import Service, service

START_TIMEOUT_S = 60.0
FRAME_TIMEOUT_S = 60.0


@dataclass
class Gateway:
    """A running gateway process."""

    process: Service

    @property
    def port(self) -> int:
        """Where the latest start of this process listens."""
        ports = [line["port"] for line in self.process.logged() if line.get("event") == "listening"]
        return int(ports[-1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=60, **options)

    async def ready(self) -> None:
        async def is_ready() -> bool:
            async with self.http() as client:
                return (await client.get("/readyz")).status_code == 200

        await eventually(self.listening, reason="the gateway listens", timeout_s=START_TIMEOUT_S)
        await eventually(_patient(is_ready), reason="the gateway is ready", timeout_s=START_TIMEOUT_S)

    async def listening(self) -> bool:
        assert self.process.alive, self.process.log_path.read_text()[-3000:]
        return self.port > 0

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Socket]:
        """A WebSocket client."""
        async with connect(
            f"ws://{self.host}/v1/ws",
            subprotocols=[Subprotocol("chat.v1")],
            max_size=None,
            **options,
        ) as connection:
            client = Socket(connection)
            reading = asyncio.create_task(client.read())
            try:
                yield client
            finally:
                reading.cancel()


def _patient(check: Any) -> Any:
    async def checked() -> bool:
        try:
            return bool(await check())
        except httpx.HTTPError as error:
            raise OSError("no answer") from error

    return checked


@asynccontextmanager
async def gateway(
    folder: Path, b: Broker, *, label: str = "gateway", ready: bool = True, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway on this broker. ready: wait until history answers it."""
    chosen = {f"CHATLOG_{name.upper()}": str(value) for name, value in settings.items()}
    environment = {**b.environment(), "CHATLOG_GATEWAY_PORT": "0", "CHATLOG_DATA_DIR": str(folder), **chosen}
    async with service("gateway", folder, environment, label=label, started=False) as process:
        process.spawn()
        running = Gateway(process)
        await eventually(running.listening, reason="the gateway listens", timeout_s=START_TIMEOUT_S)
        if ready:
            await running.ready()
        yield running


@dataclass
class Socket:
    """A WebSocket client that keeps its frames."""

    connection: ClientConnection
    raw: list[str] = field(default_factory=list)
    frames: list[dict[str, Any]] = field(default_factory=list)
    closed: tuple[int, str] | None = None

    async def read(self) -> None:
        try:
            async for text in self.connection:
                assert isinstance(text, str)
                self.raw.append(text)
                self.frames.append(json.loads(text))
        except ConnectionClosed as error:
            self._note(error.rcvd.code if error.rcvd else 1006, error.rcvd.reason if error.rcvd else "")
            return
        self._note(self.connection.close_code or 1005, self.connection.close_reason or "")

    def _note(self, code: int, reason: str) -> None:
        self.closed = code, reason

    async def say(self, frame_type: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": frame_type, **fields}))

    async def attach(self, session: str, after: str | None = None) -> dict[str, Any]:
        """Attach and wait for it."""
        count = len(self.of("attached"))
        await self.say("attach", session=session, **({"after": after} if after else {}))
        await self.until(lambda: len(self.of("attached")) > count, "attached")
        return self.of("attached")[-1]

    def of(self, frame_type: str) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == frame_type]

    def events(self, event_type: str | None = None) -> list[dict[str, Any]]:
        return [frame for frame in self.of("event") if event_type in (None, frame["event"]["type"])]

    def terminals(self, turn_id: str | None = None) -> list[dict[str, Any]]:
        return [
            frame
            for frame in self.of("event")
            if frame["event"]["type"] in ("answer_completed", "answer_failed", "answer_cancelled")
            and turn_id in (None, frame["event"]["turn_id"])
        ]

    async def until(self, check: Any, reason: str, timeout_s: float = FRAME_TIMEOUT_S) -> Any:
        return await eventually(check, reason=f"{reason}; had {self._shown()}", timeout_s=timeout_s)

    def _shown(self) -> str:
        return ", ".join(frame["type"] for frame in self.frames[-10:])


def sse_events(text: str) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """(id, frame) of each event of a stream, read as the standard says: comments are skipped."""
    event_id: str | None = None
    for block in text.split("\n\n"):
        payload = None
        for line in block.split("\n"):
            if line.startswith("id:"):
                event_id = line.removeprefix("id:").strip()
            elif line.startswith("data: "):
                payload = line.removeprefix("data: ")
        if payload is not None:
            yield event_id, json.loads(payload)
