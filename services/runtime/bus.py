"""The bus: every service's one connection to NATS, with each option said and none left to a library's default.

Owns connecting (reconnect for ever), durable publishes with their three endings, requests, live publishes, and telling
who asked that the connection was cut or that frames were dropped. A request on this connection is the barrier after a
subscribe; a flush is not (a PING overtakes the SUB in nats-py's buffer: measured). Must never know a payload's meaning.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
import structlog
from faststream.nats import NatsBroker
from faststream.security import SASLPlaintext
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

T = TypeVar("T")

Hook = Callable[[], Awaitable[None]]
Handler = Callable[[Msg], Awaitable[None]]

# A dead peer is noticed after two unanswered pings; nats-py's own 120 s would be minutes.
PING_INTERVAL_S = 5
PINGS_OUT = 2
CONNECT_TIMEOUT_S = 2
# A peer that takes nothing of what was written: the kernel ends the connection, as the pings do for one that says
# nothing. nats-py waits for a written buffer before it connects anew, on a half-open connection for ever (measured).
WRITE_TIMEOUT_S = 15
RECONNECT_WAIT_S = 0.25
DRAIN_TIMEOUT_S = 5
# The drain, and as long again for what it has left to write; then the connection is dropped as it is.
STOP_TIMEOUT_S = 10
# What waits in memory while the connection is down. Live frames are not sent then, so little is needed.
PENDING_BYTES = 2 * 1024 * 1024
# A subscription's own backlog: beyond it nats-py drops and reports a slow consumer, which we count as a gap.
SUBSCRIPTION_PENDING_MESSAGES = 64 * 1024
SUBSCRIPTION_PENDING_BYTES = 64 * 1024 * 1024
# What is said every second or two, and was not heard for so long: the subscription is made again.
SILENT_S = 30.0
# JetStream's error code for a publish that a stream's limits refuse; which limit is only in the text (measured).
LIMITS_ERR_CODE = 10077


class NotSent(Exception):
    """Nothing left this process, or the server said no: the message is certainly not stored."""


class NoAnswer(Exception):
    """It was sent and no answer came: whether it is stored is not known."""


class AlreadyQueued(Exception):
    """The subject holds a message already (discard new per subject)."""


class TooLarge(NotSent):
    """The payload is over the server's limit: it will never be taken."""


@dataclass(slots=True)
class _Repeated:
    """A subscription to what is said again and again. heard: since the last look."""

    subject: str
    handler: Handler
    subscription: Subscription | None = None
    heard: bool = False

    async def on_message(self, msg: Msg) -> None:
        self.heard = True
        await self.handler(msg)


@dataclass(frozen=True, slots=True)
class BusAddress:
    """Where the server is and who we are there."""

    url: str
    user: str
    password: str


class Bus:
    """One connection. `broker` is FastStream's, for typed handlers; `client` is nats-py's, for the hot loops."""

    def __init__(self, address: BusAddress, name: str) -> None:
        self._after_reconnect: list[Hook] = []
        self._after_drop: list[Hook] = []
        self._repeated: list[_Repeated] = []
        self._generation = 0
        self.broker = NatsBroker(
            address.url,
            name=name,
            security=SASLPlaintext(address.user, address.password) if address.user else None,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]  # a float works: it is only slept
            connect_timeout=CONNECT_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=PINGS_OUT,
            drain_timeout=DRAIN_TIMEOUT_S,
            pending_size=PENDING_BYTES,
            dont_randomize=True,
            no_echo=False,
            pedantic=False,
            verbose=False,
            graceful_timeout=DRAIN_TIMEOUT_S,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            logger=None,
            # Handlers parse what they are given: FastStream's own injection takes a thread for each message (measured).
            apply_types=False,
        )

    @property
    def client(self) -> Client:
        return self.broker.connection

    @property
    def connected(self) -> bool:
        client = self.broker._connection
        return client is not None and client.is_connected

    @property
    def generation(self) -> int:
        """Counts reconnects: an answer asked for in an older generation may hide what was lost between."""
        return self._generation

    def jetstream(self, timeout_s: float = 5.0) -> JetStreamContext:
        return self.client.jetstream(timeout=timeout_s)

    def after_reconnect(self, hook: Hook) -> None:
        """hook runs after each reconnect: whatever went over core NATS meanwhile is lost."""
        self._after_reconnect.append(hook)

    def after_drop(self, hook: Hook) -> None:
        """hook runs when a subscription of ours was too slow and frames were dropped: the same as a gap."""
        self._after_drop.append(hook)

    async def connect(self) -> None:
        """Connect; tries for ever, since a service may be started before its server."""
        await self.broker.connect()
        self._bound_writes()

    async def start(self) -> None:
        """Connect, and start FastStream's handlers."""
        await self.broker.start()
        self._bound_writes()

    async def stop(self) -> None:
        """Drain and close, within STOP_TIMEOUT_S."""
        if self.broker._connection is None:
            return
        client = self.client
        client.options["allow_reconnect"] = False  # else it would connect anew in the middle of its own close
        ending = asyncio.ensure_future(self.broker.stop() if self.connected else client.close())
        _, late = await asyncio.wait({ending}, timeout=STOP_TIMEOUT_S)
        if late:
            log.warning("bus_not_drained")
            self._transport().abort()
            await asyncio.wait({ending}, timeout=DRAIN_TIMEOUT_S)
        # One that lives on would look for a server for ever, also while the loop is being closed.
        await cancel_all({task for task in (ending, client._reconnection_task) if task is not None})

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """handler is called for one message after the other."""
        return await self.client.subscribe(
            subject,
            queue=queue,
            cb=handler,
            pending_msgs_limit=SUBSCRIPTION_PENDING_MESSAGES,
            pending_bytes_limit=SUBSCRIPTION_PENDING_BYTES,
        )

    async def subscribe_repeated(self, subject: str, handler: Handler) -> None:
        """To broadcasts that come again and again, or at least may come twice: see watch_silence."""
        repeated = _Repeated(subject, handler)
        repeated.subscription = await self.subscribe(subject, repeated.on_message)
        self._repeated.append(repeated)

    async def watch_silence(self) -> None:
        """For ever: make each repeated subscription again that was silent, since a server that lost it says nothing."""
        while True:
            await asyncio.sleep(SILENT_S)
            for repeated in self._repeated:
                if not repeated.heard and self.connected:
                    with suppress(nats.errors.Error, OSError):  # the next look finds it as silent
                        await self._renew(repeated)
                repeated.heard = False

    async def _renew(self, repeated: _Repeated) -> None:
        log.debug("subscription_renewed", subject=repeated.subject)
        before, repeated.subscription = (
            repeated.subscription,
            await self.subscribe(repeated.subject, repeated.on_message),
        )
        if before is not None:
            await before.unsubscribe()

    async def publish_live(self, subject: str, payload: bytes, reply: str = "") -> bool:
        """Publish on core NATS, at most once. False: not connected, so it was not sent (nor buffered to come late)."""
        if not self.connected:
            return False
        try:
            await self.client.publish(subject, payload, reply=reply)
        except (nats.errors.Error, OSError):
            return False
        return True

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        """Ask on core NATS. Raises NotSent (not connected, nobody listens) or NoAnswer."""
        if not self.connected:
            raise NotSent("not connected")
        try:
            reply = await heeding_cancel(self.client.request(subject, payload, timeout=timeout_s))
        except nats.errors.NoRespondersError as error:
            raise NotSent("nobody answers there") from error
        except nats.errors.MaxPayloadError as error:
            raise TooLarge("over the server's payload limit") from error
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer("no answer in time") from error
        return reply.data

    async def publish_durable(
        self, stream: str, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float
    ) -> int:
        """Publish to a stream; the returned sequence means that it is stored and synced.

        Raises NotSent, TooLarge, AlreadyQueued or NoAnswer.
        """
        if not self.connected:
            raise NotSent("not connected")
        try:
            ack = await heeding_cancel(
                self.jetstream(timeout_s).publish(
                    subject, payload, timeout=timeout_s, stream=stream, headers=_copy(headers)
                )
            )
        except nats.errors.MaxPayloadError as error:
            raise TooLarge("over the server's payload limit") from error
        except nats.js.errors.NoStreamResponseError as error:
            raise NotSent("no stream takes this subject") from error
        except nats.js.errors.APIError as error:
            if error.err_code == LIMITS_ERR_CODE and "per subject" in (error.description or ""):
                raise AlreadyQueued(subject) from error
            raise NotSent(f"refused by the stream: {error.description}") from error
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer("no acknowledgement in time") from error
        return ack.seq

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            log.warning("bus_dropped_frames", subject=error.subject)
            await _run_all(self._after_drop)
        else:
            log.warning("bus_error", error=type(error).__name__)

    async def _on_disconnect(self) -> None:
        log.warning("bus_disconnected")

    async def _on_reconnect(self) -> None:
        self._generation += 1
        self._bound_writes()
        log.info("bus_reconnected", generation=self._generation)
        await _run_all(self._after_reconnect)

    def _bound_writes(self) -> None:
        with suppress(OSError):  # it is gone already, and the next one will be bounded
            connection = self._transport().get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, WRITE_TIMEOUT_S * 1000)

    def _transport(self) -> asyncio.WriteTransport:
        """nats-py keeps its socket to itself."""
        connection: Any = self.client._transport
        transport: asyncio.WriteTransport = connection._io_writer.transport
        return transport


async def heeding_cancel(answer: Awaitable[T]) -> T:
    """What answer gives, or the cancel that met it.

    nats-py waits in asyncio.wait_for, which in Python 3.11 swallows a cancel that comes in the same turn of the loop as
    the answer. Whoever asks in a loop then goes on for ever: a task group cancels its tasks only once.
    """
    task = asyncio.current_task()
    assert task is not None
    cancels = task.cancelling()
    try:
        return await answer
    finally:
        if task.cancelling() > cancels:
            raise asyncio.CancelledError


async def _run_all(hooks: list[Hook]) -> None:
    for hook in hooks:
        await hook()


def _copy(headers: dict[str, str] | None) -> dict[str, Any] | None:
    """nats-py writes its own header into the dict that it is given."""
    return dict(headers) if headers is not None else None
