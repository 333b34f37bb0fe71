"""The stand-in for model servers as a test's own process, with a client for its control plane."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from tests.forks import Forked, fork_server
from tests.polling import eventually

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 60.0
CONTROL_TIMEOUT_S: Final = 30.0

QUICK: Final[dict[str, Any]] = {"load_s": 0, "token_gap_ms": 0.2}
"""Options for a test to which time does not matter: an answer takes some 20 ms instead of half a second."""


def plain_client(timeout_s: float, base_url: str = "") -> httpx.AsyncClient:
    """A client for http only: reading the certificates costs 30 ms a client, and tests make hundreds."""
    return httpx.AsyncClient(base_url=base_url, timeout=timeout_s, verify=False)


class Control:
    """The control plane of one stand-in; docs/standin.md describes its words."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def fault(self, kind: str, **fields: Any) -> None:
        """Plans a fault: fault("error_line", after=3, model="m", nth=2)."""
        await self._post("/faults", {"kind": kind, **fields})

    async def script(self, pieces: Sequence[str], *, thinking: Sequence[str] = (), **match: Any) -> None:
        """The next answer (times=None: each) is told word for word."""
        await self._post("/script", {"pieces": list(pieces), "thinking": list(thinking), **match})

    async def speed(self, **changes: float) -> dict[str, Any]:
        return await self._post("/speed", changes)

    async def runner(self, model: str, action: str) -> None:
        """kill, stop, continue or unload the process that runs this model."""
        await self._post("/runner", {"model": model, "action": action})

    async def reset(self) -> None:
        """Forgets faults, scripts and what was reported."""
        await self._post("/reset", {})

    async def report(self, *, messages: bool = False) -> dict[str, Any]:
        answer = await self._client.get("/report", params={"messages": "1"} if messages else {})
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def requests(self, *, messages: bool = False) -> list[dict[str, Any]]:
        """The report's records, oldest first."""
        records: list[dict[str, Any]] = (await self.report(messages=messages))["requests"]
        return records

    async def loads(self) -> list[str]:
        """What became of each load of a model: loading, loaded or given_up; oldest first."""
        return [load["outcome"] for load in (await self.report())["loads"]]

    async def _post(self, path: str, body: Any) -> dict[str, Any]:
        answer = await self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@dataclass(frozen=True)
class Standin:
    """A stand-in that runs."""

    process: Forked
    ollama_url: str
    openai_url: str
    control_url: str
    control: Control

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def arguments(options: dict[str, Any]) -> list[str]:
    """`slots=2, models=["m", {"name": "n", "window": 512}]` as command line."""
    given: list[str] = []
    for name, value in options.items():
        if name == "models":
            for model in value:
                given += ["--model", model if isinstance(model, str) else json.dumps(model)]
        else:
            given += [f"--{name.replace('_', '-')}", str(value)]
    return given


@asynccontextmanager
async def standin_process(**options: Any) -> AsyncIterator[Standin]:
    """A stand-in on free ports, up before the block and stopped after it. Options are its command line's."""
    with tempfile.TemporaryDirectory(prefix="standin-") as folder:
        printed = Path(folder, "printed.log")
        process = fork_server().spawn("services.standin", arguments(options), os.environ, printed)
        try:
            told = await eventually(
                lambda: _told(process, printed), reason="the stand-in listens", timeout_s=START_TIMEOUT_S
            )
            urls = {name: f"http://{told['host']}:{told[name]}" for name in ("ollama", "openai", "control")}
            async with plain_client(CONTROL_TIMEOUT_S, urls["control"]) as client:
                yield Standin(process, urls["ollama"], f"{urls['openai']}/v1", urls["control"], Control(client))
        finally:
            process.kill()
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)


def _told(process: Forked, printed: Path) -> Any:
    """Its first line, once it is there: where it listens."""
    line, newline, _ = printed.read_text().partition("\n") if printed.exists() else ("", "", "")
    assert newline or process.poll() is None, f"the stand-in did not start: exit code {process.returncode}"
    return json.loads(line) if newline else None


@dataclass
class Heard:
    """What a client heard of one answer: `end` is clean, cut, or silent (nothing more within the timeout)."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    head_s: float = 0.0
    end_s: float = 0.0
    end: str = "clean"

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON of each line of NDJSON, or of each data line of SSE."""
        told = [line.removeprefix("data: ") for line in self.lines]
        return [json.loads(line) for line in told if line.startswith("{")]

    @property
    def text(self) -> str:
        """An Ollama answer's text."""
        return "".join(told.get("message", {}).get("content", "") for told in self.objects)

    @property
    def last(self) -> dict[str, Any]:
        return self.objects[-1]


async def chat(url: str, asked: str | Sequence[dict[str, Any]], *, timeout_s: float = 20.0, **fields: Any) -> Heard:
    """Asks Ollama's /api/chat, or the completions of a URL that ends in /v1, and hears the answer to its end."""
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
    body = {"model": "smollm2:135m", "messages": messages, **fields}
    path = "/chat/completions" if url.endswith("/v1") else "/api/chat"
    heard = Heard()
    received = bytearray()
    began = time.monotonic()
    async with plain_client(timeout_s) as client:
        try:
            async with client.stream("POST", f"{url}{path}", json=body) as answer:
                heard.head_s = time.monotonic() - began
                heard.status, heard.headers = answer.status_code, dict(answer.headers)
                async for part in answer.aiter_raw():
                    received += part
        except httpx.ReadTimeout:
            heard.end = "silent"
        except httpx.TransportError:
            heard.end = "cut"
    heard.end_s = time.monotonic() - began
    heard.lines = [line for line in received.decode("utf-8", "replace").split("\n") if line]
    return heard


@asynccontextmanager
async def half_heard(url: str, asked: str, *, lines: int, **fields: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An answer of Ollama's wire that is heard up to so many lines; its connection closes where the block ends."""
    body = {"model": "smollm2:135m", "messages": [{"role": "user", "content": asked}], **fields}
    async with (
        plain_client(20.0) as client,
        client.stream("POST", f"{url}/api/chat", json=body) as answer,
    ):
        heard = 0
        async for part in answer.aiter_raw():
            heard += part.count(b"\n")
            if heard >= lines:
                break
        yield client


async def raw(url: str, request: bytes, *, until: bytes | None = None, timeout_s: float = 10.0) -> bytes:
    """Sends bytes as they are and gives back all bytes received, up to the connection's end or to `until`."""
    parts = httpx.URL(url)
    reader, writer = await asyncio.open_connection(parts.host, parts.port)
    received = bytearray()
    try:
        writer.write(request)
        while until is None or until not in received:
            part = await asyncio.wait_for(reader.read(65536), timeout_s)
            if not part:
                break
            received += part
    except ConnectionResetError:
        received += b"<reset>"
    finally:
        writer.close()
    return bytes(received)


def post(path: str, body: Any, *, host: str = "localhost") -> bytes:
    """An HTTP/1.1 request as bytes."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}"
    return head.encode() + b"\r\n\r\n" + payload
