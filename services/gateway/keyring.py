"""Step 2, gateway/keyring: the keys' bucket, in memory, as it is now.

Owns following the bucket: all records first, then each change as it comes; all of them again after a reconnect, after
dropped frames, and once a minute, so that a watch that died in silence costs that much and no more. Must never forget
what it has read before it has read again: a broker that is away ends nobody's socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy

from contracts import subjects
from contracts.errors import ContractError
from contracts.keys import KeyRecord, read_key_record
from services.gateway.intake import Refused
from services.runtime.bus import Bus
from services.runtime.health import Reason

log = structlog.get_logger(__name__)

READ_TIMEOUT_S = 2.0
# Silence for so long, and everything is read again.
REREAD_S = 60.0
RETRY_S = 0.5
# The server forgets the consumer of a gateway that went; a watch that is only cut for a moment is made anew anyway.
INACTIVE_S = 10.0
# A bucket marks a deleted record with this header.
_OPERATION = "KV-Operation"


class KeyRing:
    """The records of all keys."""

    def __init__(self, bus: Bus, on_failure: Callable[[str], None]) -> None:
        self._bus = bus
        self._on_failure = on_failure
        self._records: dict[str, KeyRecord] | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._bus.after_reconnect(self._begin_again)
        self._bus.after_drop(self._begin_again)
        await self._begin_again()

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    def find(self, key_id: str) -> KeyRecord | None:
        """The record of a key. Raises Refused(not_ready) until the bucket was read once."""
        if self._records is None:
            raise Refused("not_ready", "the keys are not read yet", retry_after_s=1)
        return self._records.get(key_id)

    def reasons(self) -> Sequence[Reason]:
        return [] if self._records is not None else [Reason("keys_unread", "the keys' bucket is not read yet")]

    async def _begin_again(self) -> None:
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._follow(), name="keys")
        self._following.add_done_callback(self._ended)

    def _ended(self, following: asyncio.Task[None]) -> None:
        """A gateway that no longer hears of revocations must not go on as if it did."""
        if not following.cancelled():
            self._on_failure(f"the keys are no longer followed: {type(following.exception()).__name__}")

    async def _follow(self) -> None:
        while True:
            try:
                await self._read_and_watch()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.warning("keys_unread", error=type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _read_and_watch(self) -> None:
        """Everything, then what changes, until a minute has been silent."""
        watch = await self._bus.jetstream(READ_TIMEOUT_S).subscribe(
            subjects.KEYS_SUBJECTS,
            stream=subjects.KEYS_STREAM,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            inactive_threshold=INACTIVE_S,
        )
        try:
            read: dict[str, KeyRecord] = {}
            for _ in range(await _count(watch)):
                _take(read, await watch.next_msg(READ_TIMEOUT_S))
            self._records = read
            with contextlib.suppress(nats.errors.TimeoutError):
                while True:
                    _take(read, await watch.next_msg(REREAD_S))
        finally:
            with contextlib.suppress(nats.errors.Error):  # cut off: the server forgets the consumer by itself
                await watch.unsubscribe()


async def _count(watch: JetStreamContext.PushSubscription) -> int:
    """How many records there were when the watch began; some may have come already."""
    told = await watch.consumer_info()
    delivered = told.delivered.consumer_seq if told.delivered is not None else 0
    return delivered + (told.num_pending or 0)


def _take(records: dict[str, KeyRecord], msg: Msg) -> None:
    key_id = msg.subject.rpartition(".")[2]
    records.pop(key_id, None)
    if msg.headers and _OPERATION in msg.headers:
        return
    try:
        record = read_key_record(msg.data)
    except ContractError as error:
        log.warning("key_unreadable", key_id=key_id, reason=error.reason)
        return
    if record.key_id == key_id:
        records[key_id] = record
