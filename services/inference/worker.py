"""Step 11, inference/worker: takes contexts for free slots, one run per slot, and drains when it is told to.

Owns the slots, the gate that says whether any context may be taken (a slot is free, the process is not ending), and a
pull loop for each model, which pulls while the model is well. Must never hold a context that it has no slot for: it
goes straight back to the queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from contracts import subjects
from contracts.errors import ContractError
from contracts.turns import read_context
from services.inference.contexts import PULL_EXPIRES_S, ContextQueue, Delivery
from services.inference.health import Health, TrialTimes
from services.inference.models.port import ModelServer
from services.inference.presence import Beacon, Identity
from services.inference.slots import SlotRules, Station, TurnRun
from services.runtime.bus import Bus
from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

# Of the drain's time, this is kept for giving back what does not finish: a presence, a nak, or a last terminal.
GIVE_BACK_S = 3.0


@dataclass(frozen=True, slots=True)
class Servers:
    """One connection for the questions, and one for each slot."""

    asked: ModelServer
    slots: Sequence[ModelServer]


class Worker:
    """All of one process's slots. `run` until cancelled; `drain` before that."""

    def __init__(self, bus: Bus, servers: Servers, identity: Identity, rules: SlotRules) -> None:
        self._bus = bus
        self._servers = servers
        self._idle = list(servers.slots)
        self._running: dict[asyncio.Task[None], TurnRun] = {}
        self._gate = asyncio.Event()
        self._turnstile = asyncio.Lock()
        self._queues: dict[str, tuple[ContextQueue, asyncio.Task[None]]] = {}
        self._models_changed = asyncio.Event()
        times = TrialTimes(turn_s=rules.bounds.first_token_s, at_most_s=rules.bounds.turn_s)
        tells_loads = identity.server_kind == "ollama"
        self.health = Health(servers.asked, times, self._on_health_change, tells_loads=tells_loads)
        self.beacon = Beacon(bus, self.health, identity)
        self._station = Station(bus, self.health, self.beacon, rules)
        self._mind_gate()
        bus.after_reconnect(self._on_gap)
        bus.after_drop(self._on_gap)

    async def run(self) -> None:
        """Say who we are, ask the server what it has, and serve each of its models' queues."""
        await self._bus.subscribe(subjects.HELLO, self._on_hello)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.health.keep_asking())
                group.create_task(self.health.keep_trying())
                group.create_task(self.beacon.keep_saying())
                while True:
                    self._models_changed.clear()
                    self._serve_queues(group)
                    await self._models_changed.wait()
        finally:
            for task in self._running:
                task.cancel()

    async def drain(self, within_s: float) -> None:
        """Take nothing more, finish what runs, and in time give back the rest. Then the model's sockets are closed."""
        self.beacon.stopping = True
        self._mind_gate()
        await self.beacon.say()
        log.info("draining", running=len(self._running))
        await self._ended(within_s - GIVE_BACK_S)
        for turn in self._running.values():
            turn.give_up()
        await self._ended(min(within_s, GIVE_BACK_S) / 2)
        await cancel_all(self._running)
        for server in (self._servers.asked, *self._servers.slots):
            await server.aclose()

    async def _ended(self, within_s: float) -> None:
        if self._running:
            await asyncio.wait(set(self._running), timeout=max(0.0, within_s))

    def _serve_queues(self, group: asyncio.TaskGroup) -> None:
        """One pull loop for each model that the server has; it pulls while the model may be given turns."""
        models = {model.name for model in self.health.models}
        for gone in self._queues.keys() - models:
            group.create_task(_end_after_its_pull(*self._queues.pop(gone)))
        for new in sorted(models - self._queues.keys()):
            queue = ContextQueue(self._bus, new, partial(self._take, new), lambda: len(self._idle))
            self._queues[new] = queue, group.create_task(queue.serve(self._turnstile, self._gate))
        for model, (queue, _) in self._queues.items():
            if self.health.serves(model):
                queue.wanted.set()
            else:
                queue.wanted.clear()

    async def _take(self, model: str, delivery: Delivery) -> None:
        """A context has come: into a free slot, or back. Two models' pulls may meet in the last free slot."""
        if not self._gate.is_set() or not self.health.serves(model):
            await delivery.give_back()
            return
        try:
            context = read_context(delivery.payload)
        except ContractError as error:
            # Another version's: never acked, since somebody else may read it; history ends the turn if nobody can.
            log.error("context_unreadable", reason=error.reason)
            return
        server = self._idle.pop()
        turn = TurnRun(self._station, server, delivery, context)
        task = asyncio.create_task(turn.serve(), name=f"turn {context.turn_id}")
        self._running[task] = turn
        task.add_done_callback(lambda ended: self._free(ended, server))
        self._mind_gate()

    def _free(self, ended: asyncio.Task[None], server: ModelServer) -> None:
        del self._running[ended]
        self._idle.append(server)
        self._mind_gate()
        if not ended.cancelled() and (error := ended.exception()) is not None:
            # A mistake of ours. The context comes again by silence, and after the last attempt history ends the turn.
            log.error("run_died", task=ended.get_name(), exc_info=error)

    def _mind_gate(self) -> None:
        if self._idle and not self.beacon.stopping:
            self._gate.set()
        else:
            self._gate.clear()

    def _on_health_change(self) -> None:
        self.beacon.say_soon()
        self._models_changed.set()

    async def _on_hello(self, _msg: object) -> None:
        self.beacon.say_soon()

    async def _on_gap(self) -> None:
        self.beacon.say_soon()
        for turn in self._running.values():
            turn.ask_soon()


async def _end_after_its_pull(queue: ContextQueue, serving: asyncio.Task[None]) -> None:
    """End a pull loop once its last pull has expired: what came to one that nobody hears would lie there for 10 s."""
    queue.wanted.clear()
    await asyncio.sleep(PULL_EXPIRES_S)  # pace: it begins no further one
    await cancel_all([serving])
