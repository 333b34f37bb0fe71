"""Step 11, inference/contexts: the context queue of one model: pull requests, and the delivery of each context.

Owns the pull loop on nats-py and the three answers to a delivery: heartbeat, ack, give back. A context is pulled only
for a free slot. Each pull has an inbox of its own, so that a status of an old one is never taken for the new one's;
what arrives is handed on at once: it never lies in a buffer while its ack_wait runs. Must never read a context.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import subjects
from services.inference.run import may_nak
from services.runtime import streams
from services.runtime.bus import Bus, NoAnswer, NotSent, heeding_cancel

log = structlog.get_logger(__name__)

# A pull waits so long at the server; the next one follows. Long, since an idle worker should cost next to nothing.
PULL_EXPIRES_S = 10.0
# The server says that a waiting pull is still there. Two missed, and it is not: a restarted server forgets pulls, and
# nobody says so.
PULL_HEARTBEAT_S = 1.0
PULL_SILENCE_S = 2.5
# After a refused or forgotten pull: at once would spin while the server starts.
REOPEN_AFTER_S = 0.25
# The server answers an ack or a heartbeat in a millisecond; well under the 5 s in which a nak is still allowed.
RECEIPT_TIMEOUT_S = 2.0

_ACK, _NAK, _PROGRESS = b"+ACK", b"-NAK", b"+WPI"
_IDLE_HEARTBEAT = "100"
_ENDED = frozenset({"404", "408"})  # nothing is queued; the pull expired


class Delivery:
    """One delivered context, ours for as long as heartbeats reach the server."""

    def __init__(self, bus: Bus, receipt_subject: str, payload: bytes) -> None:
        self._bus = bus
        self._receipt_subject = receipt_subject
        self._confirmed_at = asyncio.get_running_loop().time()
        self.payload = payload

    async def keep(self, every_s: float) -> None:
        """Heartbeats until cancelled. A missed one is no error: if too many are, another worker gets the context."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(every_s)
            sent_at = loop.time()
            if await self._receipt(_PROGRESS):
                self._confirmed_at = sent_at

    async def ack(self) -> bool:
        """Remove the context from the queue. Unconfirmed, it comes again, and its claim is answered with a stop."""
        return await self._receipt(_ACK)

    async def give_back(self) -> bool:
        """Let another worker have it now, if it is surely still ours; else the queue notices our silence."""
        age_s = asyncio.get_running_loop().time() - self._confirmed_at
        if not may_nak(connected=self._bus.connected, heartbeat_age_s=age_s, ack_wait_s=streams.ACK_WAIT_S):
            return False
        return await self._receipt(_NAK)

    async def _receipt(self, answer: bytes) -> bool:
        """Tell the server, and whether it says that it heard."""
        try:
            await self._bus.request(self._receipt_subject, answer, RECEIPT_TIMEOUT_S)
        except (NotSent, NoAnswer):
            return False
        return True


class _PullLost(Exception):
    """The server does not know of our pull, or of its consumer."""


class ContextQueue:
    """One model's contexts. `serve` pulls for as long as it runs; `arrived` is called with each delivery."""

    def __init__(
        self, bus: Bus, model: str, arrived: Callable[[Delivery], Awaitable[None]], free: Callable[[], int]
    ) -> None:
        self._bus = bus
        self._model = model
        self._arrived = arrived
        self._free = free
        self.wanted = asyncio.Event()  # whether the model may be given turns
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._pulls = 0
        self._signs: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, turnstile: asyncio.Lock, gate: asyncio.Event) -> None:
        """Pull while gate is open and the model wanted. The turnstile lets one model after the other ask for what is
        queued already.

        That is asked for all free slots at once: one after the other, 32 turns waited 0.2 s for their pulls (measured).
        """
        try:
            while True:
                await self.wanted.wait()
                async with turnstile:
                    await gate.wait()
                    got = self.wanted.is_set() and await self._pull_or_reopen(self._free(), wait=False)
                if not got and gate.is_set() and self.wanted.is_set():
                    await self._pull_or_reopen(1, wait=True)
        finally:
            await self._close()

    async def _pull_or_reopen(self, batch: int, *, wait: bool) -> bool:
        try:
            return await self._pull(batch, wait=wait)
        except (_PullLost, nats.errors.Error, OSError) as error:
            log.info("context_queue_reopened", model=self._model, error=type(error).__name__)
            await self._close()
            await asyncio.sleep(REOPEN_AFTER_S)
            return False

    async def _pull(self, batch: int, *, wait: bool) -> bool:
        """Ask for so many contexts: whether any came. Raises _PullLost when the server is silent or refuses."""
        await self._open()
        self._pulls += 1
        self._signs = asyncio.Queue()
        generation = self._bus.generation
        consumer = subjects.context_consumer("answer", self._model)
        await self._bus.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{subjects.CONTEXT_STREAM}.{consumer}",
            json.dumps(_request(batch, wait=wait)).encode(),
            reply=self._pull_inbox(),
        )
        came = 0
        while came < batch:
            try:
                async with asyncio.timeout(PULL_SILENCE_S):
                    sign = await self._signs.get()
            except TimeoutError:
                raise _PullLost("silent") from None
            if sign == "":
                came += 1
            elif sign in _ENDED:
                break
            elif sign != _IDLE_HEARTBEAT or generation != self._bus.generation:
                raise _PullLost(sign)
        return came > 0

    def _pull_inbox(self) -> str:
        return f"{self._inbox}.{self._pulls}"

    async def _open(self) -> None:
        """Make sure of the consumer, and listen. Any worker may create it; the first one does."""
        if self._subscription is not None:
            return
        if not self._bus.connected:
            raise _PullLost("not connected")
        await heeding_cancel(streams.ensure_context_consumer(self._bus.jetstream(), self._model))
        self._inbox = self._bus.client.new_inbox()
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*", self._on_message)

    async def _close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._bus.client.is_closed:
            await subscription.unsubscribe()

    async def _on_message(self, msg: Msg) -> None:
        status = (msg.headers or {}).get("Status", "") if not msg.data else ""
        if not status:
            await self._arrived(Delivery(self._bus, msg.reply, msg.data))
            self._signs.put_nowait("")
        elif msg.subject == self._pull_inbox():
            self._signs.put_nowait(status)


def _request(batch: int, *, wait: bool) -> dict[str, Any]:
    """A pull. wait False: only what is queued already."""
    if not wait:
        return {"batch": batch, "no_wait": True}
    nanoseconds = 1_000_000_000
    return {
        "batch": batch,
        "expires": int(PULL_EXPIRES_S * nanoseconds),
        "idle_heartbeat": int(PULL_HEARTBEAT_S * nanoseconds),
    }
