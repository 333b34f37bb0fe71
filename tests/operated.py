"""`chatlog up` as a test's own process: its own data folder, free ports, and whatever of it is still alive.

Owns what it starts: the end of the block leaves nothing running, or the test fails.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.environments import plain_environment
from tests.polling import eventually

ROOT = Path(__file__).parent.parent
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 90.0


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass
class Up:
    """One `chatlog up`. output() is what its user has read so far."""

    data: Path
    environment: dict[str, str]
    output_file: Path
    process: asyncio.subprocess.Process | None = field(default=None)

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.environment['CHATLOG_GATEWAY_PORT']}"

    async def start(self, *command: str) -> None:
        """Start it, as `python -m services.operator up` or as another command in its place."""
        self.process = await _spawn(command or (sys.executable, "-m", "services.operator", "up"), self)

    async def ready(self, *, model: bool = True) -> None:
        """It has said where it is, and would answer a message (model: with one). A slow start may say first that it is
        not ready yet.
        """
        await self.says("is at http://", READY_TIMEOUT_S)
        await eventually(lambda: self._is_ready(model), reason="it would answer", timeout_s=READY_TIMEOUT_S)

    async def _is_ready(self, model: bool) -> bool:
        async with httpx.AsyncClient(base_url=self.gateway, timeout=30, trust_env=False) as client:
            with suppress(httpx.TransportError):  # it does not listen yet
                ready = (await client.get("/readyz")).status_code == 200
                return ready and (not model or bool((await client.get("/v1/models")).json()["data"]))
        return False

    async def says(self, words: str, timeout_s: float = 60.0) -> None:
        await eventually(lambda: self._says(words), reason=f"it says {words!r}", timeout_s=timeout_s)

    def output(self) -> str:
        return self.output_file.read_text() if self.output_file.exists() else ""

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        return await asyncio.wait_for(self.process.wait(), STOP_TIMEOUT_S)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def process_ids(self) -> dict[int, str]:
        """Every process that has our data folder in its environment, by id, with its command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str(self.data).encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, words: str) -> int:
        """The one process whose command line has these words."""
        [pid] = [pid for pid, command in self.process_ids().items() if words in command]
        return pid

    async def all_gone(self) -> None:
        await eventually(lambda: not self.process_ids(), reason="no orphan is left", timeout_s=STOP_TIMEOUT_S)

    def _says(self, words: str) -> bool:
        if words in self.output():
            return True
        if self.process is not None and self.process.returncode is not None:
            raise RuntimeError(f"it ended with {self.process.returncode}:\n{self.output()}")
        return False


@asynccontextmanager
async def operated(folder: Path, **settings: str) -> AsyncIterator[Up]:
    """A stack that is not started yet, on the stand-in unless the settings say otherwise."""
    chosen = {
        "CHATLOG_DATA_DIR": str(folder / "data"),
        "CHATLOG_MODEL_SERVER": "standin",
        **{f"CHATLOG_{name}_PORT": str(free_port()) for name in ("GATEWAY", "NATS", "STANDIN", "BOX")},
        **{f"CHATLOG_{name.upper()}": value for name, value in settings.items()},
    }
    plain = plain_environment()
    up = Up(folder / "data", plain | chosen, folder / "output.txt")
    try:
        yield up
    finally:
        if up.process is not None and up.process.returncode is None:
            up.process.send_signal(signal.SIGTERM)
            await up.ended()
        await up.all_gone()


async def _spawn(command: tuple[str, ...], up: Up) -> asyncio.subprocess.Process:
    with up.output_file.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, env=up.environment, stdout=output, stderr=output, stdin=asyncio.subprocess.DEVNULL
        )
