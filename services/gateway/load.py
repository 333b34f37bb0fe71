"""Step 3, gateway/load: what history and the workers say of themselves, and since when nobody said anything.

Owns the models on offer and the room that is left. Broadcasts are at most once, so what is not repeated is forgotten.
Must never guess: what was not heard is None.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import nats.errors
import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.errors import ContractError
from contracts.turns import PRESENCE_FORGOTTEN_S, Load, Presence, read_load, read_presence
from services.gateway.intake import Room
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)

# History tells its load every second; five missed ones and this gateway looks at the intake itself.
LOAD_S = 5.0
INTAKE_TIMEOUT_S = 2.0
# Names that workers have offered: more than any installation has, so that a bound is never met in earnest.
MODELS_KEPT = 1000
WORKERS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class ModelOnOffer:
    """One model, summed over the workers that offer it now."""

    name: str
    window: int | None
    workers: int
    slots: int
    free: int
    server: str


class Heard:
    """The latest word of every worker, and of history about the queues."""

    def __init__(self, bus: Bus, now: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._now = now
        self._workers: dict[str, tuple[float, Presence]] = {}
        self._named: set[str] = set()
        self._load: tuple[float, Load] | None = None
        self._intake_share: tuple[float, float] | None = None

    async def start(self) -> None:
        await self._bus.subscribe_repeated(subjects.PRESENCE_ALL, self._on_presence)
        await self._bus.subscribe_repeated(subjects.LOAD, self._on_load)

    @property
    def workers(self) -> list[Presence]:
        """Who was heard within the last 6 s."""
        since = self._now() - PRESENCE_FORGOTTEN_S
        self._workers = {worker: kept for worker, kept in self._workers.items() if kept[0] >= since}
        return [presence for _, presence in self._workers.values()]

    @property
    def named(self) -> frozenset[str]:
        """Every model that a worker has named: one that restarts must not make its model unknown."""
        return frozenset(self._named)

    def models(self) -> list[ModelOnOffer]:
        """What is on offer now, by name."""
        found: dict[str, ModelOnOffer] = {}
        for worker in self.workers:
            for model in worker.models:
                before = found.get(model.name)
                found[model.name] = ModelOnOffer(
                    name=model.name,
                    window=model.window or (before.window if before else None),
                    workers=(before.workers if before else 0) + 1,
                    slots=(before.slots if before else 0) + worker.slots,
                    free=(before.free if before else 0) + worker.free,
                    server="ok" if before and before.server == "ok" else worker.state_of(model),
                )
        return [found[name] for name in sorted(found)]

    async def room(self, unrecorded_in_session: int) -> Room:
        """How full it is for any event."""
        load = self._fresh_load()
        if load is None:
            return Room(await self._share_of_intake(), None, 0, unrecorded_in_session)
        share = load.intake_bytes / max(1, load.intake_max_bytes)
        return Room(share, load.disk_free_bytes, 0, unrecorded_in_session)

    async def room_for_message(self, model: str | None, unrecorded_in_session: int) -> Room:
        """How full it is for a message to this model (None: which one is history's choice)."""
        room, load = await self.room(unrecorded_in_session), self._fresh_load()
        return replace(room, queued_turns=_queued(load, model)) if load else room

    def _fresh_load(self) -> Load | None:
        if self._load is None or self._now() - self._load[0] > LOAD_S:
            return None
        return self._load[1]

    async def _share_of_intake(self) -> float | None:
        """Asked of the broker while history is silent: exactly then the intake fills."""
        if self._intake_share is None or self._now() - self._intake_share[0] > LOAD_S:
            try:
                found = await self._bus.jetstream(INTAKE_TIMEOUT_S).stream_info(subjects.INTAKE_STREAM)
            except (nats.errors.Error, OSError):
                # The publish that follows meets the same broker, and its error is the one to tell.
                return None
            self._intake_share = self._now(), found.state.bytes / max(1, found.config.max_bytes or 1)
        return self._intake_share[1]

    async def _on_presence(self, msg: Msg) -> None:
        try:
            presence = read_presence(msg.data)
        except ContractError as error:
            log.warning("presence_unreadable", reason=error.reason)
            return
        if presence.worker_id in self._workers or len(self._workers) < WORKERS_KEPT:
            self._workers[presence.worker_id] = self._now(), presence
        if len(self._named) < MODELS_KEPT:
            self._named.update(model.name for model in presence.models)

    async def _on_load(self, msg: Msg) -> None:
        try:
            self._load = self._now(), read_load(msg.data)
        except ContractError as error:
            log.warning("load_unreadable", reason=error.reason)


def _queued(load: Load, model: str | None) -> int:
    """Turns that wait for or run on it. Ollama's `m` is `m:latest`, and history counts under the name on offer."""
    wanted = model or load.default_model
    if wanted is None:
        return load.unassigned
    names = {wanted, f"{wanted}:latest"}
    return sum(queue.waiting + queue.running for queue in load.queues if queue.model in names)
