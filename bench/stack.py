"""Beside the road: the real stack for a measurement: nats-server, history, workers and a gateway, a process each.

Owns starting and ending them, on free ports and in a folder that is thrown away, and what each costs: CPU time and
memory, as the kernel counts them. Must never be part of what is measured: it is asked before and after.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nats

from services.operator import broker
from services.operator.provisioning import provision

ROOT = Path(__file__).parents[1]
START_S = 30.0
STOP_S = 15.0
POLL_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")


class NotMeasured(RuntimeError):
    """A measurement could not be taken. The text says why; nothing is reported in its place."""


@dataclass
class Process:
    """A running process and what it has cost so far."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """User and system time of all its threads."""
        fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_kib(self) -> int:
        """PSS: a page that several processes share counts once."""
        return pss_kib(Path(f"/proc/{self.popen.pid}"))

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(STOP_S)


@dataclass
class Stack:
    """What runs. settings: the CHATLOG_* values that the measurement changes, to be reported with its figures."""

    folder: Path
    settings: dict[str, str]
    gateway_port: int
    processes: list[Process] = field(default_factory=list)
    shared: dict[str, str] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        return {process.name: process.cpu_s() for process in self.processes}

    def process(self, name: str) -> Process:
        return next(process for process in self.processes if process.name == name)

    def spawn(self, name: str, *command: str, **environment: str) -> Process:
        log = self.folder / f"{name}.log"
        plain = {key: value for key, value in os.environ.items() if not key.startswith("CHATLOG_")}
        with log.open("ab") as output:
            popen = subprocess.Popen(
                command, cwd=ROOT, env={**plain, **self.shared, **self.settings, **environment}, stdout=output,
                stderr=output,
            )  # fmt: skip
        self.processes.append(process := Process(name, popen, log))
        return process

    def service(self, service: str, label: str = "", **environment: str) -> Process:
        return self.spawn(label or service, sys.executable, "-m", f"services.{service}", **environment)


def pss_kib(folder: Path) -> int:
    """Of the process with this folder in /proc."""
    return int(re.findall(r"^Pss:\s+(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)[0])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@asynccontextmanager
async def stack(model_server_url: str, *, workers: int = 1, **settings: object) -> AsyncIterator[Stack]:
    """Ready to be sent messages: every worker offers its models. settings: CHATLOG_* by their short names."""
    changed = {f"CHATLOG_{name.upper()}": str(value) for name, value in settings.items()}
    with tempfile.TemporaryDirectory(prefix="chatlog-bench-") as folder:
        running = Stack(Path(folder), changed, free_port())
        try:
            await _start_broker(running)
            await _start_services(running, model_server_url, workers)
            yield running
        finally:
            for process in reversed(running.processes):
                process.end()


async def _start_broker(running: Stack) -> None:
    words = [secrets.token_urlsafe() for _ in range(2)]
    config = broker.BrokerConfig(running.folder / "nats", "chatlog", words[0], "system", words[1], port=free_port())
    conf = running.folder / "nats.conf"
    conf.write_text(broker.render(config))
    running.spawn("nats", str(broker.find_nats_server()), "-c", str(conf))
    url = f"nats://127.0.0.1:{config.port}"
    await until(lambda: listens(config.port), "nats-server listens")
    client = await nats.connect(url, user=config.user, password=config.password, allow_reconnect=False)
    await provision(client.jetstream())
    await client.close()
    running.shared = {
        "CHATLOG_DATA_DIR": str(running.folder / "data"),
        "CHATLOG_NATS_URL": url,
        "CHATLOG_NATS_PASSWORD": config.password,
        "CHATLOG_NATS_SYSTEM_PASSWORD": config.system_password,
        "CHATLOG_GATEWAY_PORT": str(running.gateway_port),
        "CHATLOG_LOG_LEVEL": "info",
    }


async def _start_services(running: Stack, url: str, workers: int) -> None:
    openai = url.endswith("/v1")
    served = {
        "CHATLOG_MODEL_SERVER": "openai" if openai else "ollama",
        "CHATLOG_OPENAI_URL" if openai else "CHATLOG_OLLAMA_URL": url,
    }
    running.service("history")
    for number in range(1, workers + 1):
        running.service("inference", f"inference-{number}", **served)
    running.service("gateway")

    async def ready() -> bool:
        status, _ = await get(running.gateway_port, "/readyz")
        if status != 200:
            return False
        _, models = await get(running.gateway_port, "/v1/models")
        return bool(models["data"]) and all(model["workers"] == workers for model in models["data"])

    await until(ready, "every service is ready and every worker heard")


async def until(check: Callable[[], Awaitable[bool]], reason: str, timeout_s: float | None = None) -> None:
    """Poll until it holds. Raises NotMeasured."""
    deadline = time.monotonic() + (timeout_s or START_S)
    while True:
        with suppress(OSError, ValueError, IndexError, KeyError):
            if await check():
                return
        if time.monotonic() > deadline:
            raise NotMeasured(f"not in time: {reason}")
        await asyncio.sleep(POLL_S)  # pace: of a poll


async def listens(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


async def get(port: int, path: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    """Status and JSON of a GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(START_S):
            raw = await reader.read()
    finally:
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def told_port(*command: str, **environment: str) -> AsyncIterator[tuple[Process, int]]:
    """A process of the bench's own that prints the port it listens on."""
    with tempfile.NamedTemporaryFile(prefix="chatlog-bench-", suffix=".log") as log:
        process = await asyncio.to_thread(_spawn_teller, command, {**os.environ, **environment}, Path(log.name))
        try:
            assert process.popen.stdout is not None
            line = await asyncio.wait_for(asyncio.to_thread(process.popen.stdout.readline), START_S)
            port = json.loads(line)
            yield process, port["ollama"] if isinstance(port, dict) else port
        finally:
            process.end()


def _spawn_teller(command: tuple[str, ...], environment: dict[str, str], log: Path) -> Process:
    with log.open("ab") as errors:
        popen = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors
        )
    return Process(command[0], popen, log)
