"""The JetStream streams, the keys' bucket and the context queue's consumers, declared with every option explicit.

Owns what a stream or consumer must look like, and the question whether the broker's streams look so. Readiness, the
provisioning step and the workers read the same declarations. Must never change a stream: services/operator/provisioning
does, once, before the services start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    PersistMode,
    ReplayPolicy,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from contracts import subjects

MIB = 1024 * 1024
GIB = 1024 * MIB

# The largest NATS message: a context of 20 texts of 100 000 characters fits with room for any script's UTF-8.
MAX_PAYLOAD_BYTES = 8 * MIB
INTAKE_MAX_BYTES = 2 * GIB
CONTEXT_MAX_BYTES = 1 * GIB
# Of the keys' bucket: some 30 000 records of 500 bytes.
KEYS_MAX_BYTES = 16 * MIB
_KEY_RECORD_MAX_BYTES = 4 * 1024

# Nothing of ours trusts Nats-Msg-Id (its window is stream-wide: one user's key swallowed another's). This is the least
# that the server takes, since 0 means two minutes to it.
_DUPLICATE_WINDOW_S = 0.1

# A worker sends a heartbeat every 3 s; three missed ones and the context goes to the next worker.
ACK_WAIT_S = 10.0
# More contexts in flight than any set of workers has slots, so that this bound is never what holds a turn back.
_MAX_ACK_PENDING = 1000
# Pull requests that may wait at once: one for each free slot of a model's workers.
_MAX_WAITING = 512
_NO_LIMIT = -1
# The server notes its version here; no one declares it.
_SERVERS_OWN = {"metadata"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One option in which the broker's stream is not what is declared. found is None where the stream is missing."""

    stream: str
    option: str
    wanted: object
    found: object

    def __str__(self) -> str:
        if self.option == "name":
            return f"stream {self.stream} is missing"
        found, wanted = (getattr(value, "value", value) for value in (self.found, self.wanted))
        return f"stream {self.stream}: {self.option} is {found}, should be {wanted}"


def declared(
    intake_max_bytes: int = INTAKE_MAX_BYTES, context_max_bytes: int = CONTEXT_MAX_BYTES
) -> tuple[StreamConfig, ...]:
    """All streams. An option that is left out here would be the server's to choose, so none is."""
    intake = _stream(subjects.INTAKE_STREAM, subjects.INTAKE_SUBJECTS, intake_max_bytes)
    context = _stream(subjects.CONTEXT_STREAM, subjects.CONTEXT_SUBJECTS, context_max_bytes)
    context.retention = RetentionPolicy.WORK_QUEUE
    context.max_msgs_per_subject = 1
    context.discard_new_per_subject = True
    # A lost context is published again from the log, so it need not wait for the disk as an accepted event must.
    context.persist_mode = PersistMode.ASYNC
    return intake, context, _keys_bucket()


async def check_streams(js: JetStreamContext, wanted: Sequence[StreamConfig] | None = None) -> list[Difference]:
    """In what the broker's streams differ from the declared ones. Empty means ready."""
    found = []
    for stream in declared() if wanted is None else wanted:
        found += await differences(js, stream)
    return found


async def differences(js: JetStreamContext, wanted: StreamConfig) -> list[Difference]:
    """In what one stream differs; a missing one differs in its name."""
    assert wanted.name is not None
    try:
        info = await js.stream_info(wanted.name)
    except NotFoundError:
        return [Difference(stream=wanted.name, option="name", wanted=wanted.name, found=None)]
    asked, found = wanted.as_dict(), info.config.as_dict()
    return [
        Difference(stream=wanted.name, option=option, wanted=asked.get(option), found=found.get(option))
        for option in sorted((asked.keys() | found.keys()) - _SERVERS_OWN)
        # The server leaves out what is false, zero or empty, so these and absence are one value.
        if (asked.get(option) or None) != (found.get(option) or None)
    ]


def context_consumer(model: str, purpose: subjects.Purpose = "answer") -> ConsumerConfig:
    """The durable consumer from which all workers of a model take its contexts."""
    name = subjects.context_consumer(purpose, model)
    return ConsumerConfig(
        name=name,
        durable_name=name,
        deliver_policy=DeliverPolicy.ALL,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        # Deliveries are not counted (the count restarts after a kill -9): attempts are numbered by the log.
        max_deliver=_NO_LIMIT,
        filter_subject=subjects.contexts_of(purpose, model),
        replay_policy=ReplayPolicy.INSTANT,
        max_waiting=_MAX_WAITING,
        max_ack_pending=_MAX_ACK_PENDING,
        headers_only=False,
        # A consumer outlives every worker: with a threshold, a night without workers would forget who holds what.
        inactive_threshold=0,
        num_replicas=0,
        mem_storage=False,
    )


async def ensure_context_consumer(js: JetStreamContext, model: str, purpose: subjects.Purpose = "answer") -> str:
    """Create the consumer of a model, or bring its options up to date; its name. Any worker may call this any time."""
    consumer = context_consumer(model, purpose)
    await js.add_consumer(subjects.CONTEXT_STREAM, consumer)
    assert consumer.durable_name is not None
    return consumer.durable_name


def _keys_bucket() -> StreamConfig:
    """The stream under a NATS key-value bucket: the last record of each key, none of them ever dropped."""
    keys = _stream(subjects.KEYS_STREAM, subjects.KEYS_SUBJECTS, KEYS_MAX_BYTES)
    keys.max_msgs_per_subject = 1
    keys.max_msg_size = _KEY_RECORD_MAX_BYTES
    # What makes a stream a bucket: a record is replaced or purged by publishing, never deleted by its sequence.
    keys.allow_rollup_hdrs = True
    keys.deny_delete = True
    return keys


def _stream(name: str, pattern: str, max_bytes: int) -> StreamConfig:
    """What all streams have in common; the declaration of the intake as it is."""
    return StreamConfig(
        name=name,
        subjects=[pattern],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        num_replicas=1,
        # New is refused, old is never dropped: a full stream says so to the sender.
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=False,
        max_bytes=max_bytes,
        max_msg_size=MAX_PAYLOAD_BYTES,
        max_msgs=_NO_LIMIT,
        max_msgs_per_subject=_NO_LIMIT,
        max_consumers=_NO_LIMIT,
        max_age=0,
        duplicate_window=_DUPLICATE_WINDOW_S,
        compression=StoreCompression.NONE,
        no_ack=False,
        sealed=False,
        deny_delete=False,
        deny_purge=False,
        allow_rollup_hdrs=False,
        allow_direct=False,
        mirror_direct=False,
        allow_msg_ttl=False,
        allow_msg_schedules=False,
        allow_atomic=False,
        allow_batched=False,
        allow_msg_counter=False,
    )
