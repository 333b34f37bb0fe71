"""Step 9, history/publisher: what follows from a commit goes out: outcomes, frames, words, contexts.

Owns the way out of history. Outcomes, frames and words go once, in order, on core NATS: who missed one asks for it. A
context goes to its queue on its own, for as long as it takes, so that one that does not fit never blocks the others.
Must never decide anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import nats.errors
import nats.js.errors
import structlog

from contracts import subjects
from contracts.base import dump
from services.history.effects import Effect, Queue, Show, TellSender, TellWorkers, Unqueue
from services.runtime.bus import AlreadyQueued, Bus, NoAnswer, NotSent, TooLarge, heeding_cancel
from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

# A context that the queue refuses (full, or the server is away) is tried again for ever, ever more slowly.
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 5.0
PUBLISH_TIMEOUT_S = 5.0

# Told of a turn whose context can never be queued.
TooLargeHook = Callable[[str, str], Awaitable[None]]


class Publisher:
    """Carries out the effects of one commit after the other."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._queueing: dict[str, asyncio.Task[None]] = {}
        self._unqueueing: set[asyncio.Task[None]] = set()
        self.on_too_large: TooLargeHook | None = None

    async def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, TellSender):
                await self._bus.publish_live(effect.reply, dump(effect.outcome))
            elif isinstance(effect, Show):
                await self._show(effect)
            elif isinstance(effect, TellWorkers):
                await self._bus.publish_live(subjects.turn(effect.user_id, effect.word.turn_id), dump(effect.word))
            elif isinstance(effect, Queue):
                self._start_queueing(effect)
            else:
                self._start_unqueueing(effect)

    async def hello(self) -> None:
        """History is (back) here: gateways and workers ask for what they may have missed."""
        await self._bus.publish_live(subjects.HELLO, b"{}")

    async def stop(self) -> None:
        """Drop what is still on its way to the queue: the next start queues it again from the log."""
        await cancel_all([*self._queueing.values(), *self._unqueueing])

    async def _show(self, effect: Show) -> None:
        await self._bus.publish_live(subjects.session_feed(effect.user_id, effect.session_id), effect.frame)
        if effect.lists:
            await self._bus.publish_live(subjects.user_feed(effect.user_id), effect.frame)

    def _start_queueing(self, effect: Queue) -> None:
        if effect.turn_id in self._queueing:
            return
        task = asyncio.create_task(self._queue(effect), name=f"queue {effect.turn_id}")
        self._queueing[effect.turn_id] = task
        task.add_done_callback(lambda _: self._queueing.pop(effect.turn_id, None))

    def _start_unqueueing(self, effect: Unqueue) -> None:
        queueing = self._queueing.get(effect.turn_id)
        task = asyncio.create_task(self._unqueue(effect, queueing), name=f"unqueue {effect.turn_id}")
        self._unqueueing.add(task)
        task.add_done_callback(self._unqueueing.discard)

    async def _queue(self, effect: Queue) -> None:
        """Until the queue has it: a full queue and a server that is away end, a context that is too large does not."""
        subject = subjects.context("answer", effect.model, effect.turn_id)
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._bus.publish_durable(
                    subjects.CONTEXT_STREAM, subject, effect.payload, None, PUBLISH_TIMEOUT_S
                )
                return
            except AlreadyQueued:
                return
            except TooLarge:
                # No longer on its way: ending the turn cancels whatever is.
                self._queueing.pop(effect.turn_id, None)
                log.warning("context_too_large", turn_id=effect.turn_id, bytes=len(effect.payload))
                if self.on_too_large is not None:
                    await self.on_too_large(effect.user_id, effect.turn_id)
                return
            except (NotSent, NoAnswer) as error:
                log.warning("context_not_queued", turn_id=effect.turn_id, reason=str(error))
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MOST_S)

    async def _unqueue(self, effect: Unqueue, queueing: asyncio.Task[None] | None) -> None:
        """Best effort: a worker that meets a context of an ended turn is told to stop, and acks it."""
        if queueing is not None:
            # A publish that is on its way would come after the purge, and stay for a worker to take.
            await asyncio.wait({queueing}, timeout=PUBLISH_TIMEOUT_S)
            queueing.cancel()
        subject = subjects.context("answer", effect.model, effect.turn_id)
        try:
            jetstream = self._bus.jetstream(PUBLISH_TIMEOUT_S)
            message = await heeding_cancel(jetstream.get_last_msg(subjects.CONTEXT_STREAM, subject))
            # By its sequence: after a purge of its subject the server forgets earlier contexts that workers hold, and
            # delivers them to nobody ever again (measured: nats-server 2.15.1).
            await heeding_cancel(jetstream.delete_msg(subjects.CONTEXT_STREAM, message.seq or 0))
        except nats.js.errors.NotFoundError:
            return  # a worker has acked it
        except (nats.errors.Error, OSError) as error:
            log.warning("context_not_removed", turn_id=effect.turn_id, error=type(error).__name__)
