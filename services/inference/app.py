"""The worker's wiring: settings -> bus, model server connections, worker; started, watched and drained in that order.

Owns constructing; nothing else in this service constructs a client. Must never decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.inference.claims import new_id
from services.inference.generation import Bounds
from services.inference.health import OK
from services.inference.models.factory import open_model_server
from services.inference.models.port import ModelServer
from services.inference.presence import Identity
from services.inference.settings import InferenceSettings
from services.inference.slots import SlotRules
from services.inference.worker import Servers, Worker
from services.runtime.bus import Bus, BusAddress
from services.runtime.health import Reason, listening
from services.runtime.lifecycle import Lifecycle


async def main(settings: InferenceSettings, lifecycle: Lifecycle) -> None:
    """The whole life of the process, after its settings are read and before its exit code."""
    worker_id = settings.worker_id or new_id()
    bus = Bus(
        BusAddress(settings.nats_url, settings.nats_user, settings.nats_password.get_secret_value()),
        f"inference {worker_id}",
    )
    servers = Servers(asked=open_server(settings), slots=[open_server(settings) for _ in range(settings.slots)])
    identity = Identity(worker_id, settings.model_server, settings.slots, settings.presence_s)
    await bus.start()
    worker = Worker(bus, servers, identity, rules_of(settings))
    lifecycle.supervise(worker.run(), "worker")

    async def ready() -> Sequence[Reason]:
        return readiness(bus, worker)

    async with listening(settings.health_address, ready):
        await lifecycle.stopping.wait()
        await worker.drain(settings.drain_timeout_s)
    await lifecycle.cancel_tasks()
    await bus.stop()


def open_server(settings: InferenceSettings) -> ModelServer:
    """One connection to the model server: one HTTP client shared by all slots was measured to add 235 ms."""
    return open_model_server(
        settings.model_server,
        settings.model_server_url,
        settings.openai_key() if settings.model_server == "openai" else None,
        settings.num_ctx,
    )


def rules_of(settings: InferenceSettings) -> SlotRules:
    return SlotRules(
        bounds=Bounds(
            first_token_s=settings.first_token_s,
            between_tokens_s=settings.between_tokens_s,
            turn_s=settings.turn_s,
            answer_chars=settings.answer_chars,
        ),
        token_chars=settings.token_chars,
        heartbeat_s=settings.heartbeat_s,
        end_s=settings.end_s,
    )


def readiness(bus: Bus, worker: Worker) -> list[Reason]:
    """Why this worker serves nobody. A server without a model is ready: it is asked again every few seconds."""
    reasons = []
    if not bus.connected:
        reasons.append(Reason("broker_disconnected", "no connection to NATS"))
    if worker.health.state != OK:
        reasons.append(Reason(worker.health.state, "the model server does not answer as it should"))
    return reasons
