"""The real stack for fault runs: each part a process that may be killed, paused and started again on its data.

Owns the processes, by their own pids, and plays their supervisor: a part that ends by itself is started again and
counted. Every connection between two parts goes through a proxy (proxy.py). Must never judge what the parts do.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from services.operator.provisioning import provision
from tests.brokers import Broker, prepared
from tests.environments import plain_environment
from tests.faults.proxy import Proxy, proxied
from tests.operated import free_port
from tests.polling import eventually
from tests.services import ROOT
from tests.standins import Control, arguments, plain_client

PartKind = Literal["nats", "history", "gateway", "worker", "standin", "box"]

MODEL = "smollm2:135m"
# Answers of half a second: long enough to be killed in the middle of, short enough for thousands.
SPEED = {"token_gap_ms": 20, "answer_tokens": 30, "load_s": 0.2, "prefill_tokens_per_s": 1e5, "slots": 8}
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
# A part that cannot start ends at once; one that is started again at once would take a whole core for that.
RESTART_S = 0.2
CONTROL_TIMEOUT_S = 5.0
# A turn whose model server is silent is found in seconds here, so that a run can wait for the end of every turn.
PATIENCE = {
    "CHATLOG_FIRST_TOKEN_S": "15",
    "CHATLOG_BETWEEN_TOKENS_S": "5",
    "CHATLOG_TURN_S": "60",
    "CHATLOG_GATEWAY_HEARTBEAT_S": "5",
}


@dataclass
class Part:
    """One process of the stack. held: whoever holds it starts it again; else its supervisor does."""

    name: str
    kind: PartKind
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: Path
    held: asyncio.Lock = field(default_factory=asyncio.Lock)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        inherited = plain_environment()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env={**inherited, **self.environment}, stdout=log, stderr=log
            )

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait until the system has its ports and locks back."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int | None:
        """SIGTERM; its exit code."""
        return await self._end(signal.SIGTERM)

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    async def _end(self, by: signal.Signals) -> int | None:
        process = self.process
        if process is None:
            return None
        self.send(by)
        self.resume()
        try:
            return await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)


@dataclass
class Stack:
    """All parts, and the proxies between them by name: `a>b` carries what a opens to b."""

    folder: Path
    broker: Broker
    parts: dict[str, Part] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)
    controls: dict[str, Control] = field(default_factory=dict)
    ended_by_themselves: Counter[str] = field(default_factory=Counter)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def of(self, kind: PartKind) -> list[Part]:
        return [part for part in self.parts.values() if part.kind == kind]

    def door(self, gateway: int) -> str:
        """Where clients reach a gateway: through a proxy."""
        return f"http://127.0.0.1:{self.proxies[f'client>gateway-{gateway}'].port}"

    @property
    def gateways(self) -> int:
        return len(self.of("gateway"))

    async def supervise(self) -> None:
        """Start again what ended by itself, for ever."""
        while True:
            for part in self.parts.values():
                if not part.held.locked() and not part.alive:
                    self.ended_by_themselves[part.name] += 1
                    part.spawn()
            await asyncio.sleep(RESTART_S)  # pace: a supervisor looks now and then

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until both gateways would take a message now, and a worker of each model server is heard."""
        for gateway in range(self.gateways):
            await eventually(
                lambda n=gateway: self._takes_messages(n),  # type: ignore[misc]
                reason=f"gateway {gateway} is ready",
                timeout_s=timeout_s,
            )

    async def _takes_messages(self, gateway: int) -> bool:
        port = self.parts[f"gateway-{gateway}"].environment["CHATLOG_GATEWAY_PORT"]
        try:
            async with plain_client(CONTROL_TIMEOUT_S, f"http://127.0.0.1:{port}") as client:
                ready = (await client.get("/readyz")).status_code == 200
                models = (await client.get("/v1/models")).json().get("data", []) if ready else []
        except httpx.HTTPError:
            return False
        return any(model["id"] == MODEL for model in models)

    async def end(self) -> None:
        for part in reversed(self.parts.values()):
            await part.kill()


@asynccontextmanager
async def stack(
    folder: Path, *, gateways: int = 2, workers: tuple[str, ...] = ("ollama", "openai"), with_box: bool = False
) -> AsyncIterator[Stack]:
    """Everything up and ready: a worker and a stand-in of its own for each wire named; with_box: a further worker, and
    the small real model for it."""
    broker = prepared(folder, port=free_port())
    async with AsyncExitStack() as opened:
        running = Stack(folder, broker)
        opened.push_async_callback(running.end)
        await _start_broker(running)
        await _add_history(running, opened)
        for number, wire in enumerate(workers):
            await _add_worker(running, opened, number, wire)
        if with_box:
            await _add_box(running, opened, len(workers))
        for number in range(gateways):
            await _add_gateway(running, opened, number)
        supervisor = asyncio.create_task(running.supervise())
        opened.push_async_callback(_cancelled, supervisor)
        await running.ready()
        yield running


async def _start_broker(running: Stack) -> None:
    part = Part("nats", "nats", running.broker.command(), {}, running.folder)
    running.parts["nats"] = part
    part.spawn()

    async def listens() -> bool:
        _, writer = await asyncio.open_connection("127.0.0.1", running.broker.config.port)
        writer.close()
        return True

    await eventually(listens, reason="nats-server listens", timeout_s=READY_TIMEOUT_S)
    client = await running.broker.connect()
    await provision(client.jetstream())
    await client.close()


async def _road(running: Stack, opened: AsyncExitStack, name: str, target: int) -> int:
    """A proxy's port."""
    proxy = running.proxies[name] = await opened.enter_async_context(proxied(name, target))
    return proxy.port


async def _service(running: Stack, opened: AsyncExitStack, kind: PartKind, name: str, **settings: str) -> None:
    """A service of ours on a way of its own to the broker."""
    port = await _road(running, opened, f"{name}>nats", running.broker.config.port)
    environment = {
        **running.broker.environment(),
        "CHATLOG_NATS_URL": f"nats://127.0.0.1:{port}",
        "CHATLOG_DATA_DIR": str(running.data),
        "CHATLOG_MODEL": MODEL,
        **PATIENCE,
        **settings,
    }
    module = "inference" if kind == "worker" else kind
    part = Part(name, kind, (sys.executable, "-m", f"services.{module}"), environment, running.folder)
    running.parts[name] = part
    part.spawn()


async def _add_history(running: Stack, opened: AsyncExitStack) -> None:
    await _service(running, opened, "history", "history")


async def _add_gateway(running: Stack, opened: AsyncExitStack, number: int) -> None:
    port = free_port()
    door = await _road(running, opened, f"client>gateway-{number}", port)
    ways_in = {"CHATLOG_GATEWAY_PORT": str(port), "CHATLOG_GATEWAY_HOSTS": f"127.0.0.1:{door}"}
    await _service(running, opened, "gateway", f"gateway-{number}", **ways_in)


async def _add_worker(running: Stack, opened: AsyncExitStack, number: int, wire: str) -> None:
    """A worker, and its own stand-in behind a proxy."""
    ports = {"port": free_port(), "openai_port": free_port(), "control_port": free_port()}
    name = f"standin-{number}"
    command = (sys.executable, "-m", "services.standin", *arguments({**SPEED, **ports}))
    part = running.parts[name] = Part(name, "standin", command, {}, running.folder)
    part.spawn()
    client = await opened.enter_async_context(
        plain_client(CONTROL_TIMEOUT_S, f"http://127.0.0.1:{ports['control_port']}")
    )
    running.controls[name] = Control(client)
    target = ports["port"] if wire == "ollama" else ports["openai_port"]
    await _add_inference(running, opened, f"worker-{number}>{name}", target, _server(wire))


async def _add_box(running: Stack, opened: AsyncExitStack, number: int) -> None:
    """The box behind a proxy, and a worker for it. It has a slot: two cores are all there may be."""
    port, key = free_port(), secrets.token_urlsafe()
    environment = {"CHATLOG_BOX_PORT": str(port), "CHATLOG_BOX_API_KEY": key}
    command = (sys.executable, "-m", "services.llamacpp")
    part = running.parts["box"] = Part("box", "box", command, environment, running.folder)
    part.spawn()
    server = {**_server("openai"), "CHATLOG_OPENAI_API_KEY": key, "CHATLOG_SLOTS": "1"}
    await _add_inference(running, opened, f"worker-{number}>box", port, server)


def _server(wire: str) -> dict[str, str]:
    return {"CHATLOG_MODEL_SERVER": wire, "CHATLOG_SLOTS": "4"}


async def _add_inference(
    running: Stack, opened: AsyncExitStack, name: str, target: int, server: dict[str, str]
) -> None:
    """A worker, on a way of its own to its model server. name: of that way."""
    road = await _road(running, opened, name, target)
    wire = server["CHATLOG_MODEL_SERVER"]
    url = f"http://127.0.0.1:{road}" + ("/v1" if wire == "openai" else "")
    await _service(running, opened, "worker", name.partition(">")[0], **server, **{f"CHATLOG_{wire.upper()}_URL": url})


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
