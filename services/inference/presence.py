"""Step 11, inference/presence: what the worker says of itself, every 2 s and at once on a change.

Owns the broadcast, the regular question to the model server, and whether that server counts as well. History tells by
it which runs are alive; gateways which models there are. Must never call a run alive that nobody works on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from contracts import subjects
from contracts.base import dump
from contracts.turns import ModelPresence, Presence, RunPresence
from services.inference.models.port import Model, ModelFailure, ModelServer
from services.runtime.bus import Bus

log = structlog.get_logger(__name__)

# A model that was pulled or unloaded is known within this time; the question costs the server a millisecond.
PROBE_EVERY_S = 5.0
# A sick server is asked more often: until it answers, nobody is served.
PROBE_SICK_EVERY_S = 1.0
# A busy worker begins and ends a hundred runs a second, and everybody reads each broadcast: changes that follow one so
# closely share the next.
MERGE_S = 0.05
# Each model costs a consumer and a waiting pull; the broker takes 1 000 consumers for a stream.
MAX_MODELS = 200
MAX_NAME_CHARS = 200
OK = "ok"


@dataclass(frozen=True, slots=True)
class Identity:
    """What never changes while the process lives."""

    worker_id: str
    server_kind: Literal["ollama", "openai"]
    slots: int
    every_s: float


class Beacon:
    """The worker's presence. changed: called after each change of the models or of the server's health."""

    def __init__(self, bus: Bus, server: ModelServer, identity: Identity, changed: Callable[[], None]) -> None:
        self._bus = bus
        self._server = server
        self._identity = identity
        self._changed = changed
        self._due = asyncio.Event()
        self._sick = asyncio.Event()
        self._losses = 0
        self._runs: dict[str, str] = {}  # run -> turn
        self.models: tuple[Model, ...] = ()
        self.server = "model_unreachable"  # until it has answered
        self.stopping = False

    @property
    def well(self) -> bool:
        return self.server == OK

    async def is_loaded(self, model: str) -> bool:
        """Whether the server has the model in memory: asked now, and of Ollama only, whose API alone tells."""
        if self._identity.server_kind != "ollama":
            return True
        await self._probe()
        return any(known.name == model and known.window is not None for known in self.models)

    def begin(self, run_id: str, turn_id: str) -> None:
        self._runs[run_id] = turn_id
        self.say_soon()

    def end(self, run_id: str) -> None:
        if self._runs.pop(run_id, None) is not None:
            self.say_soon()

    def say_soon(self) -> None:
        """Broadcast at once, or right after MERGE_S where the last one is younger."""
        self._due.set()

    def server_lost(self, code: str) -> None:
        """The server failed a run: it counts as sick until a question that is asked from now on is answered."""
        self._losses += 1
        self._become(self.models, code)

    async def say(self) -> None:
        """Broadcast now."""
        await self._bus.publish_live(subjects.presence(self._identity.worker_id), dump(self._presence()))

    async def keep_saying(self) -> None:
        """Broadcast until cancelled."""
        while True:
            self._due.clear()
            await self.say()
            await asyncio.sleep(MERGE_S)  # pace: what changes meanwhile is one broadcast
            await _at_most(self._due, self._identity.every_s)

    async def keep_probing(self) -> None:
        """Ask the server what it can run, until cancelled."""
        while True:
            await self._probe()
            if self.well:
                await _at_most(self._sick, PROBE_EVERY_S)
            if not self.well:
                # Never at once, not even after a loss: a server needs a moment to come back.
                await asyncio.sleep(PROBE_SICK_EVERY_S)

    async def _probe(self) -> None:
        losses = self._losses
        try:
            models = await self._server.models()
        except ModelFailure as failure:
            self._become(self.models, failure.code)
            return
        if losses == self._losses:
            self._become(_offered(models), OK)

    def _become(self, models: tuple[Model, ...], server: str) -> None:
        if (models, server) == (self.models, self.server):
            return
        if server != self.server:
            log.warning("model_server", state=server, before=self.server, models=len(models))
        self.models, self.server = models, server
        if self.well:
            self._sick.clear()
        else:
            self._sick.set()
        self.say_soon()
        self._changed()

    def _presence(self) -> Presence:
        identity = self._identity
        return Presence(
            worker_id=identity.worker_id,
            models=[ModelPresence(name=model.name, window=model.window, digest=model.digest) for model in self.models],
            server=self.server,
            server_kind=identity.server_kind,
            slots=identity.slots,
            free=max(0, identity.slots - len(self._runs)),
            runs=[RunPresence(turn_id=turn_id, run=run_id) for run_id, turn_id in self._runs.items()],
            stopping=self.stopping,
        )


def _offered(models: list[Model]) -> tuple[Model, ...]:
    """The models that can be asked for by name; of a hosted server's hundreds, the first so many."""
    named = [model for model in models if 1 <= len(model.name) <= MAX_NAME_CHARS]
    return tuple(sorted(named, key=lambda model: model.name)[:MAX_MODELS])


async def _at_most(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but no longer than this."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
