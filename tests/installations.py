"""The whole stack for a test: nats-server, history, gateways, workers and a stand-in, each a real process.

Owns starting and ending them. Ports are reserved, everything is on loopback, and its data is in the test's folder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.brokers import Broker, broker
from tests.operated import free_port
from tests.polling import eventually
from tests.services import Service, service
from tests.standins import Standin, standin_process

# The stand-in's model with the larger window.
MODEL = "smollm2:135m"
# Answers of some 20 tokens in some 40 ms: long enough to come in the middle of, short enough to run hundreds.
QUICK: dict[str, Any] = {"token_gap_ms": 2, "answer_tokens": 20, "load_s": 0, "prefill_tokens_per_s": 1e6}


@dataclass
class Installation:
    """Processes of one installation."""

    folder: Path
    broker: Broker
    standin: Standin
    history: Service
    gateways: list[Service] = field(default_factory=list)
    workers: list[Service] = field(default_factory=list)

    def http(self, gateway: int = 0) -> str:
        return f"http://127.0.0.1:{self.gateways[gateway].environment['CHATLOG_GATEWAY_PORT']}"

    def ws(self, gateway: int = 0) -> str:
        return self.http(gateway).replace("http", "ws") + "/v1/ws"


@asynccontextmanager
async def installation(
    folder: Path, *, gateways: int = 1, workers: int = 1, slots: int = 2, wire: str = "ollama", **settings: str
) -> AsyncIterator[Installation]:
    """Everything up and ready; settings are CHATLOG_* variables of all services."""
    async with AsyncExitStack() as processes:
        nats = await processes.enter_async_context(broker(folder))
        standin = await processes.enter_async_context(standin_process(slots=slots * workers, **QUICK))
        data = {"CHATLOG_DATA_DIR": str(folder / "data"), "CHATLOG_MODEL": MODEL}
        shared = {**nats.environment(), **data, **settings}
        history = await processes.enter_async_context(service("history", folder, shared))
        running = Installation(folder, nats, standin, history)
        model_server = {
            "CHATLOG_MODEL_SERVER": wire,
            "CHATLOG_OLLAMA_URL" if wire == "ollama" else "CHATLOG_OPENAI_URL": (
                standin.ollama_url if wire == "ollama" else standin.openai_url
            ),
            "CHATLOG_SLOTS": str(slots),
        }
        for n in range(workers):
            worker = service("inference", folder, {**shared, **model_server}, label=f"inference-{n}")
            running.workers.append(await processes.enter_async_context(worker))
        for n in range(gateways):
            port = {"CHATLOG_GATEWAY_PORT": str(free_port())}
            gateway = service("gateway", folder, {**shared, **port}, label=f"gateway-{n}", started=False)
            running.gateways.append(await processes.enter_async_context(gateway))
            await start_gateway(running, n)
        yield running


async def start_gateway(running: Installation, n: int) -> None:
    """Start a gateway again, and wait until it answers that it is ready."""
    gateway = running.gateways[n]
    gateway.spawn()

    async def is_ready() -> bool:
        if not gateway.alive:
            raise RuntimeError(f"the gateway ended:\n{gateway.log_path.read_text()[-3000:]}")
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            try:
                return (await client.get(f"{running.http(n)}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

    await eventually(is_ready, reason=f"gateway {n} is ready", timeout_s=30)
