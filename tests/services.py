"""Real service processes for tests: started as they run in production, killed, paused and started again.

Owns the processes it starts; each is ended by its own pid.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.environments import plain_environment
from tests.forks import Forked, fork_server
from tests.polling import eventually

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_S = 60.0
# Two cores, and a suite that runs beside it: a start takes 0.5 s alone.
READY_TIMEOUT_S = 60.0


@dataclass
class Service:
    """One process: python -m services.<name>, or a test's double of it. folder holds its log and its health socket."""

    name: str
    folder: Path
    environment: dict[str, str]
    label: str = ""
    module: str = ""
    process: Forked | None = field(default=None, init=False)

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.label or self.name}.log"

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.label or self.name}.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None, "not running"
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def logged(self) -> list[dict[str, Any]]:
        """Its log, a line each."""
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def spawn(self) -> None:
        assert not self.alive, "already running"
        inherited = plain_environment()
        environment = {**inherited, "CHATLOG_HEALTH_ADDRESS": f"unix:{self.socket}", **self.environment}
        module = self.module or f"services.{self.name}"
        self.process = fork_server().spawn(module, (), environment, self.log_path)

    async def start(self) -> None:
        """Start it, and wait until it says that it is ready."""
        self.spawn()
        await self.ready()

    async def ready(self) -> None:
        await eventually(self._is_ready, reason=f"{self.name} is ready", timeout_s=READY_TIMEOUT_S)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        return await self._end(signal.SIGTERM)

    async def ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, timeout_s)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, by: signal.Signals) -> int:
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(by)
            process.send_signal(signal.SIGCONT)
        code = await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        if self.process is process:  # a test's supervisor may have started the next one already
            self.process = None
        return code

    async def _is_ready(self) -> bool:
        if not self.alive:
            raise RuntimeError(f"{self.name} ended:\n{self.log_path.read_text()[-3000:]}")
        status, _ = await self.ask("/readyz")
        return status == 200

    async def ask(self, path: str) -> tuple[int, Any]:
        """Status and JSON body of its health listener."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            async with asyncio.timeout(30):
                raw = await reader.read()
        finally:
            writer.close()
        head, _, body = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def service(
    name: str, folder: Path, environment: Mapping[str, str], *, label: str = "", started: bool = True
) -> AsyncIterator[Service]:
    """A process of this service, started and ready unless started is False, ended at the end."""
    running = Service(name=name, folder=folder, environment=dict(environment), label=label)
    try:
        if started:
            await running.start()
        yield running
    finally:
        await running.kill()
