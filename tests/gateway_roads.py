"""The whole road for a test: a real broker, history, worker and gateways, with the stand-in as the model server.

Owns the processes. A test talks to the gateways as a client does, and to the processes as a fault does.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.brokers import Broker, broker
from tests.gateways import Gateway, gateway
from tests.keys import bearer, new_key
from tests.polling import eventually
from tests.services import Service, service
from tests.standins import QUICK, Standin, standin_process

MODEL = "smollm2:135m"


@dataclass
class GatewayRoad:
    """Everything between a client and a model."""

    broker: Broker
    history: Service
    worker: Service
    model: Standin
    gateways: list[Gateway]
    data: Path
    # What the road's own requests carry: the key of `local`, where keys are asked for.
    headers: dict[str, str]

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    def http(self, number: int = 0, **options: Any) -> httpx.AsyncClient:
        return self.gateways[number].http(**{"headers": self.headers, **options})

    async def new_session(self, **fields: Any) -> str:
        """The id of a session that is recorded, with a model of its own unless fields say another."""
        async with self.http(headers={**self.headers, "idempotency-key": secrets.token_hex(8)}) as client:

            async def recorded() -> httpx.Response | None:
                created = await client.post("/v1/sessions", json={"model": MODEL, **fields})
                assert created.status_code in (200, 201, 202), created.text
                return created if created.status_code != 202 else None  # it takes longer than this gateway waits

            created: httpx.Response = await eventually(recorded, reason="the session is recorded")
        return str(created.json()["session_id"])

    async def has_model(self) -> None:
        """Wait until each gateway has heard the worker."""

        async def heard() -> bool:
            for each in self.gateways:
                async with each.http(headers=self.headers) as client:
                    names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
                    if MODEL not in names:
                        return False
            return True

        await eventually(heard, reason="the gateways have heard a worker")


@asynccontextmanager
async def gateway_road(
    folder: Path, *, gateways: int = 1, speed: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[GatewayRoad]:
    """The road, ready for a message. settings: the gateways'. speed: the stand-in's."""
    async with AsyncExitStack() as stack:
        b = await stack.enter_async_context(broker(folder))
        model = await stack.enter_async_context(standin_process(**(QUICK if speed is None else speed)))
        kept = folder / "data"
        kept.mkdir()
        shared = {**b.environment(), "CHATLOG_DATA_DIR": str(kept)}
        history = await stack.enter_async_context(service("history", folder, shared))
        asked = {
            **shared,
            "CHATLOG_MODEL_SERVER": "ollama",
            "CHATLOG_OLLAMA_URL": model.ollama_url,
            "CHATLOG_SLOTS": "4",
        }
        worker = await stack.enter_async_context(service("inference", folder, asked))
        running = [
            await stack.enter_async_context(gateway(folder, b, label=f"gateway{number}", **settings))
            for number in range(gateways)
        ]
        headers = bearer(await new_key(b, "local")) if settings.get("auth") == "keys" else {}
        whole = GatewayRoad(b, history, worker, model, running, kept, headers)
        await whole.has_model()
        yield whole
