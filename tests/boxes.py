"""A real box for a test: its own process, port and key, and the ways in which it may die."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.environments import plain_environment
from tests.polling import eventually

# Python's imports, the model's load and llama.cpp's warm-up: 1.5 s alone, more than 30 s were seen beside other tests.
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
MODEL = "smollm2:135m"


@dataclass
class Box:
    """A running box. `async with box(tmp_path) as b` makes one and ends it."""

    process: subprocess.Popen[bytes]
    log_file: Path
    api_key: str
    url: str = field(default="", init=False)

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    async def get(self, path: str, *, with_key: bool = True) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.api_key}"} if with_key else {}
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            return await client.get(self.url + path, headers=headers)

    async def busy_slots(self) -> int:
        """How many slots are generating or reading a prompt, by the server's own word."""
        slots = (await self.get("/slots")).raise_for_status().json()
        return sum(slot["is_processing"] for slot in slots)

    async def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and give the exit code."""
        self.process.send_signal(by)
        return await asyncio.to_thread(self.process.wait, STOP_TIMEOUT_S)

    def address(self) -> str:
        """Where it listens; '' before it does."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the box ended with {self.process.returncode}:\n{self.log}")
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return next((line["address"] for line in lines if line["event"] == "box_listening"), "")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any CHATLOG_*, and the given settings: slots is CHATLOG_BOX_SLOTS."""
    inherited = plain_environment()
    return inherited | {f"CHATLOG_BOX_{name.upper()}": value for name, value in settings.items()}


def spawn(log_file: Path, **settings: str) -> subprocess.Popen[bytes]:
    with log_file.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.llamacpp"], env=environment(**settings), stdout=log, stderr=log
        )


@asynccontextmanager
async def box(folder: Path, *, slots: int = 1, port: int = 0, api_key: str = "") -> AsyncIterator[Box]:
    """A box on a port of its own, ready to answer."""
    api_key, log_file = api_key or secrets.token_urlsafe(), folder / f"box-{secrets.token_hex(4)}.log"
    running = Box(spawn(log_file, port=str(port), slots=str(slots), api_key=api_key), log_file, api_key)
    try:
        running.url = await eventually(running.address, reason="the box listens", timeout_s=START_TIMEOUT_S)
        yield running
    finally:
        if running.process.poll() is None:
            await running.stop(signal.SIGKILL)
