"""Steps 11, 12 and 14, inference/slots: one context in one slot, from the claim to the ack.

Owns the order of things: listen, claim, generate, let out after go, tell the end, ack once it is recorded. The
decisions are the run's; here they are carried out. Must never let a token or an end out before history's go, nor ack
before the turn's end is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from contracts import subjects
from contracts.frames import Loading, encode
from contracts.turns import QueuedContext, Word
from services.inference.claims import Claim, new_id
from services.inference.contexts import Delivery
from services.inference.generation import Bounds, Generation, request_of
from services.inference.health import Health
from services.inference.models.port import ModelServer
from services.inference.presence import Beacon
from services.inference.run import Lost, Run, Step, abandon, conclude, hear, next_step, terminal_of, waits_for_history
from services.inference.tokens import Answer
from services.runtime.bus import Bus
from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

# A model in memory says something sooner, or is busy with other requests: so the server is asked what it is.
LOADING_AFTER_S = 1.0
# Who attaches in the middle of a load of minutes hears of it so soon.
LOADING_AGAIN_S = 2.0
# Steps after which a run has nothing more to do but to answer for its delivery.
_OVER = frozenset({Step.ACK, Step.LEAVE, Step.GIVE_BACK})


@dataclass(frozen=True, slots=True)
class SlotRules:
    """What holds for every slot. Units as in their names."""

    bounds: Bounds
    token_chars: int
    heartbeat_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Station:
    """What all slots of a worker share."""

    bus: Bus
    health: Health
    beacon: Beacon
    rules: SlotRules


class TurnRun:
    """One run of one turn. `serve` is its whole life."""

    def __init__(self, station: Station, server: ModelServer, delivery: Delivery, context: QueuedContext) -> None:
        event = context.event
        self._bus = station.bus
        self._health = station.health
        self._beacon = station.beacon
        self._rules = station.rules
        self._delivery = delivery
        self._context = context
        self._feed = subjects.session_feed(event.user_id, event.session_id)
        self._run = Run(run_id=new_id())
        self._answer = Answer(event.session_id, context.turn_id, self._rules.token_chars)
        self._generation = Generation(server, request_of(context), self._answer, self._rules.bounds)
        self._claim = Claim(self._bus, context, self._run.run_id, self._hear, self._held)
        self._changed = asyncio.Event()
        self._said = asyncio.Event()
        self._sending = asyncio.Lock()
        self._log = log.bind(turn_id=context.turn_id, run=self._run.run_id)

    async def serve(self) -> None:
        """Run the turn and answer for its delivery. Cancelled: the message comes again by silence."""
        self._beacon.begin(self._run.run_id, self._context.turn_id)
        try:
            step = await self._until_over()
            await self._answer_for_delivery(step)
        finally:
            self._beacon.end(self._run.run_id)

    def ask_soon(self) -> None:
        """The connection was cut or frames were dropped: a word may be lost."""
        self._claim.ask_soon()

    def give_up(self) -> None:
        """The process ends and cannot wait for this answer."""
        self._become(conclude(self._run, Lost("worker_lost")))

    async def _until_over(self) -> Step:
        """Everything at once, until the run's step is a last one; then the model's socket is closed, too."""
        await self._claim.open()
        try:
            async with asyncio.TaskGroup() as group:
                generating = group.create_task(self._generate())
                parts: tuple[Coroutine[Any, Any, None], ...] = (
                    self._delivery.keep(self._rules.heartbeat_s),
                    self._claim.publish_claim(),
                    self._claim.ask_while(lambda: waits_for_history(self._run)),
                    self._send_what_is_said(),
                    self._say_loading(),
                    self._tell_the_end(generating),
                )
                working = [generating, *(group.create_task(part) for part in parts)]
                await self._until(_is_over)
                # Again and again: a cancel that meets the answer to a request is swallowed in Python 3.11, and a
                # heartbeat that goes on would hold the turn for ever.
                await cancel_all(working)
            return next_step(self._run)
        finally:
            await self._claim.close()

    async def _generate(self) -> None:
        outcome = await self._generation.run(self._said.set)
        if isinstance(outcome, Lost):
            # Also where it was the last attempt: the next turn would meet the same server.
            self._health.failed(self._context.data.model, outcome.code)
        self._become(conclude(self._run, outcome))

    async def _send_what_is_said(self) -> None:
        """Wakes on the next turn of the loop after a piece: what came in one turn is one frame."""
        while True:
            await self._said.wait()
            self._said.clear()
            await self._send()

    async def _send(self) -> None:
        """A frame that cannot be sent is lost, and keeps its index: whoever misses it asks for the text so far."""
        async with self._sending:
            if next_step(self._run) in (Step.LET_OUT, Step.TELL):
                for frame in self._answer.give_out(self._run.attempt):
                    await self._bus.publish_live(self._feed, encode(frame))

    async def _say_loading(self) -> None:
        """A load takes up to minutes in which nothing comes: say what is waited for."""
        await self._until(lambda run: next_step(run) is Step.LET_OUT)
        await asyncio.sleep(LOADING_AFTER_S)
        model, event = self._context.data.model, self._context.event
        loading = Loading(session_id=event.session_id, turn_id=self._context.turn_id, model=model)
        while not self._answer.begun and not await self._health.is_loaded(model):
            await self._bus.publish_live(self._feed, encode(loading))
            await asyncio.sleep(LOADING_AGAIN_S)

    async def _tell_the_end(self, generating: asyncio.Task[None]) -> None:
        """Once there is an end: close the model's stream; after go, the last tokens and then the terminal."""
        await self._until(lambda run: run.outcome is not None)
        generating.cancel()
        try:
            async with asyncio.timeout(self._rules.end_s):
                await self._until(lambda run: next_step(run) is Step.TELL)
                await self._send()
                event_type, terminal = terminal_of(self._run, self._answer, self._context.data.model)
                await self._claim.publish_end(event_type, terminal)
                self._log.info("end_published", type=event_type, attempt=self._run.attempt)
                await self._until(_is_over)
        except TimeoutError:
            self._log.error("end_not_recorded", end_s=self._rules.end_s)
            self._become(abandon(self._run))

    async def _answer_for_delivery(self, step: Step) -> None:
        """The one place that acks, gives back, or leaves the context to the queue's own clock."""
        done = False
        if step is Step.ACK:
            done = await self._delivery.ack() or await self._delivery.ack()
        elif step is Step.GIVE_BACK:
            # History must hear that the run is over before it hears another claim, or it refuses that one.
            self._beacon.end(self._run.run_id)
            await self._beacon.say()
            done = await self._delivery.give_back()
        self._log.info("run_over", step=step.name, confirmed=done, attempt=self._run.attempt)

    def _hear(self, word: Word) -> None:
        self._become(hear(self._run, word))

    def _held(self, attempt: int) -> bytes | None:
        """The text so far of an attempt, if it is ours."""
        if attempt != self._run.attempt:
            return None
        return encode(self._answer.so_far(attempt))

    async def _until(self, true_of: Callable[[Run], bool]) -> None:
        while not true_of(self._run):
            await self._changed.wait()

    def _become(self, run: Run) -> None:
        if run == self._run:
            return
        self._run = run
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._said.set()  # what was held may be let out now


def _is_over(run: Run) -> bool:
    return next_step(run) in _OVER
