"""The stand-in for model servers as a test's own process, with a client for its control plane."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

ROOT: Final = Path(__file__).parent.parent
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
CONTROL_TIMEOUT_S: Final = 10.0


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

    async def _post(self, path: str, body: Any) -> dict[str, Any]:
        answer = await self._client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@dataclass(frozen=True)
class Standin:
    """A stand-in that runs."""

    process: asyncio.subprocess.Process
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
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.standin", *arguments(options), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT_S)
        assert line, f"the stand-in did not start: exit code {await process.wait()}"
        told = json.loads(line)
        urls = {name: f"http://{told['host']}:{told[name]}" for name in ("ollama", "openai", "control")}
        async with httpx.AsyncClient(base_url=urls["control"], timeout=CONTROL_TIMEOUT_S) as client:
            yield Standin(process, urls["ollama"], f"{urls['openai']}/v1", urls["control"], Control(client))
    finally:
        if process.returncode is None:
            process.kill()
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
