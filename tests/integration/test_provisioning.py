"""Provisioning on a real broker: it creates, it repeats, it repairs, and it names what it cannot change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import DiscardPolicy, PersistMode, RetentionPolicy, StorageType
from nats.js.errors import KeyWrongLastSequenceError

from contracts import subjects
from services.operator.provisioning import ProvisioningRefused, provision
from services.runtime import streams
from tests.brokers import broker

INTAKE, CONTEXT, KEYS = streams.declared()
NAMES = [stream.name for stream in streams.declared()]


async def test_creates_every_stream_once(tmp_path: Path) -> None:
    async with broker(tmp_path, provisioned=False) as b:
        client = await b.connect()
        js = client.jetstream()
        missing = [str(difference) for difference in await streams.check_streams(js)]
        assert missing == [f"stream {name} is missing" for name in NAMES]
        assert await provision(js) == [f"stream {name} created" for name in NAMES]
        assert await streams.check_streams(js) == []
        again = await provision(js)
        assert again == [f"stream {name} is as declared" for name in NAMES]
        await client.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_bytes", 1_000_000),
        ("max_msg_size", 100),
        ("max_age", 3600),
        ("discard", DiscardPolicy.OLD),
        ("duplicate_window", 120),
        ("allow_direct", True),
        ("max_consumers", 3),
        # Not declared at all: what somebody added is a difference too.
        ("description", "mine now"),
    ],
)
async def test_repairs_an_option_that_drifted(tmp_path: Path, option: str, value: Any) -> None:
    async with broker(tmp_path) as b:
        client = await b.connect()
        js = client.jetstream()
        await js.update_stream(dataclasses.replace(INTAKE, **{option: value}))
        assert [difference.option for difference in await streams.check_streams(js)] == [option]
        assert (await provision(js))[0] == f"stream CHAT_INTAKE updated: {option}"
        assert await streams.check_streams(js) == []
        await client.close()


async def test_names_what_cannot_be_changed_and_changes_the_rest(tmp_path: Path) -> None:
    async with broker(tmp_path, provisioned=False) as b:
        client = await b.connect()
        js = client.jetstream()
        foreign = dataclasses.replace(CONTEXT, persist_mode=PersistMode.DEFAULT, max_bytes=1_000_000)
        await js.add_stream(foreign)
        with pytest.raises(
            ProvisioningRefused, match=r"CHAT_CONTEXT: persist_mode is None, should be async: .*persist"
        ):
            await provision(js)
        assert [difference.option for difference in await streams.check_streams(js)] == ["persist_mode"]
        await client.close()


async def test_streams_are_durable_and_bounded(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        client = await b.connect()
        js = client.jetstream()
        intake = (await js.stream_info(subjects.INTAKE_STREAM)).config
        context = (await js.stream_info(subjects.CONTEXT_STREAM)).config
        await client.close()
    assert (intake.storage, intake.discard, intake.max_bytes) == (StorageType.FILE, DiscardPolicy.NEW, 2 * streams.GIB)
    assert (intake.retention, intake.max_age, intake.persist_mode) == (RetentionPolicy.LIMITS, 0, None)
    assert (context.retention, context.max_msgs_per_subject) == (RetentionPolicy.WORK_QUEUE, 1)
    assert (context.discard_new_per_subject, context.persist_mode) == (True, PersistMode.ASYNC)


async def test_the_keys_bucket_is_one_that_nats_takes_for_a_bucket(tmp_path: Path) -> None:
    """Each option is ours; what makes it a bucket is what NATS's own clients would have chosen."""
    async with broker(tmp_path) as b:
        client = await b.connect()
        js = client.jetstream()
        theirs = await js.create_key_value(bucket="theirs", history=1)
        wanted = (await js.stream_info("KV_theirs")).config
        await theirs.put("k", b"v")
        bucket = await js.key_value(subjects.KEYS_BUCKET)
        await bucket.create("k", b"one")
        await bucket.put("k", b"two")
        with pytest.raises(KeyWrongLastSequenceError):
            await bucket.create("k", b"three")
        assert (await bucket.get("k")).value == b"two"
        assert (await js.stream_info(subjects.KEYS_STREAM)).state.messages == 1
        await client.close()
    for option in ("max_msgs_per_subject", "allow_rollup_hdrs", "deny_delete", "storage", "retention", "discard"):
        assert getattr(KEYS, option) == getattr(wanted, option), option
    assert (KEYS.num_replicas, KEYS.max_age) == (1, 0)


async def test_a_full_context_subject_refuses_the_second_message(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        client = await b.connect()
        js = client.jetstream()
        subject = subjects.context("answer", "small", "turn-1")
        await js.publish(subject, b"one")
        with pytest.raises(Exception, match="maximum messages per subject exceeded"):
            await js.publish(subject, b"two")
        await client.close()


async def test_the_context_consumer_is_made_once_and_kept_up_to_date(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        client = await b.connect()
        js = client.jetstream()
        name = await streams.ensure_context_consumer(js, "smollm2:135m")
        assert await streams.ensure_context_consumer(js, "smollm2:135m") == name
        drifted = dataclasses.replace(streams.context_consumer("smollm2:135m"), ack_wait=99, max_ack_pending=1)
        await js.add_consumer(subjects.CONTEXT_STREAM, drifted)
        await streams.ensure_context_consumer(js, "smollm2:135m")
        found = (await js.consumer_info(subjects.CONTEXT_STREAM, name)).config
        await client.close()
    assert (found.ack_wait, found.max_deliver, found.max_ack_pending) == (streams.ACK_WAIT_S, -1, 1000)
    assert found.filter_subject == subjects.contexts_of("answer", "smollm2:135m")


async def test_streams_survive_a_killed_broker(tmp_path: Path) -> None:
    async with broker(tmp_path) as b:
        client = await b.connect()
        await client.jetstream().publish(subjects.intake("local", "s", "t"), b"accepted")
        await client.close()
        url = b.url
        await b.kill()
        await b.start()
        assert b.url == url
        client = await b.connect()
        js = client.jetstream()
        assert (await js.stream_info(subjects.INTAKE_STREAM)).state.messages == 1
        assert await streams.check_streams(js) == []
        await client.close()
