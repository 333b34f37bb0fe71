"""Step 5 on real parts: the follower misses nothing and takes nothing twice, whatever happens to it (D2, A3, A4)."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from contracts import subjects
from contracts.envelope import Event
from services.history.log.port import Cursor
from services.history.log.sqlite import put_cursor
from services.operator.provisioning import provision
from tests.brokers import broker
from tests.conversing import make_event, new_id, session_started, talker
from tests.polling import eventually
from tests.roads import Road, road
from tests.services import service

ALL_THERE_S = 90.0


@dataclass
class Proxy:
    """Between history and the broker: its connections can be cut in the middle of what is on its way."""

    port: int
    cut_after: int | None = None  # bytes to history
    cuts: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    address: tuple[str, int] = ("127.0.0.1", 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back, False), self._pump(there, writer, True))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, to_history: bool) -> None:
        try:
            while chunk := await source.read(16_384):
                if to_history and self.cut_after is not None:
                    self.cut_after -= len(chunk)
                    if self.cut_after <= 0:
                        self.cut_after = None
                        self.cuts += 1
                        break
                target.write(chunk)
                await target.drain()
        except OSError:
            self.cuts += 0  # the other side has been cut
        for writer in self._writers:
            writer.close()
        self._writers.clear()


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    made = Proxy(port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.address = server.sockets[0].getsockname()
    try:
        yield made
    finally:
        server.close()
        for writer in made._writers:
            writer.close()


def renames(session_id: str, count: int) -> list[Event]:
    return [make_event("session_renamed", session_id, {"title": f"{n} " + "x" * 150}) for n in range(count)]


async def publish_all(walk: Road, events: list[Event]) -> None:
    await asyncio.gather(*(walk.talk.publish(event, ALL_THERE_S) for event in events))


async def all_recorded_once(walk: Road, session_id: str, events: list[Event]) -> None:
    def count() -> bool:
        return int(walk.sql("SELECT count(*) FROM events WHERE session_id = ?", session_id)[0][0]) > len(events)

    await eventually(count, reason="every event is recorded", timeout_s=ALL_THERE_S)
    rows = walk.sql("SELECT event_id FROM events WHERE session_id = ? AND version > 1", session_id)
    assert sorted(row[0] for row in rows) == sorted(event.event_id for event in events)


async def test_a_connection_cut_in_the_middle_of_a_batch_loses_nothing(tmp_path: Path) -> None:
    async with broker(tmp_path) as nats, proxy(nats.config.port) as between, talker(nats) as talk:
        url = f"nats://127.0.0.1:{between.address[1]}"
        settings = {**nats.environment(), "CHATLOG_DATA_DIR": str(tmp_path / "data"), "CHATLOG_NATS_URL": url}
        async with service("history", tmp_path, settings) as history:
            walk = Road(nats, history, talk, tmp_path / "data")
            session_id = new_id()
            await talk.say(session_started(session_id))
            events = renames(session_id, 1500)
            for part in range(5):
                between.cut_after = 20_000 + 7_000 * part
                await publish_all(walk, events[300 * part : 300 * (part + 1)])
                await eventually(lambda: between.cut_after is None, reason="the connection was cut")
            await all_recorded_once(walk, session_id, events)
            assert between.cuts == 5
            assert walk.said("follower_reopens")


async def test_a_consumer_that_is_deleted_is_replaced(tmp_path: Path) -> None:
    """While a fetch waits, nats-py returns an empty list; the stream that is ahead for 2 s tells it."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        events = renames(session_id, 20)
        jetstream = walk.talk.bus.jetstream()
        for event in events[::10]:
            for consumer in await jetstream.consumers_info(subjects.INTAKE_STREAM):
                await jetstream.delete_consumer(subjects.INTAKE_STREAM, consumer.name)
            await walk.talk.publish(event)
            await walk.talk.outcome(event.event_id)
        await publish_all(walk, [event for event in events if event not in events[::10]])
        await all_recorded_once(walk, session_id, events)


async def test_a_consumer_that_has_gone_silent_is_replaced(tmp_path: Path) -> None:
    """Its pulls are answered with nothing and no error comes; only that the stream is ahead tells."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        [consumer] = await walk.talk.bus.jetstream().consumers_info(subjects.INTAKE_STREAM)
        for_long = json.dumps({"pause_until": "2999-01-01T00:00:00Z"}).encode()
        subject = f"$JS.API.CONSUMER.PAUSE.{subjects.INTAKE_STREAM}.{consumer.name}"
        assert json.loads(await walk.talk.bus.request(subject, for_long, 5))["paused"]
        events = renames(session_id, 3)
        await publish_all(walk, events)
        await all_recorded_once(walk, session_id, events)


async def test_a_broker_that_stands_still_and_goes_on(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        events = renames(session_id, 200)
        publishing = asyncio.create_task(publish_all(walk, events))
        walk.nats.pause()
        await asyncio.sleep(0)
        walk.nats.resume()
        await publishing
        await all_recorded_once(walk, session_id, events)


async def purge(walk: Road, before: int) -> None:
    await walk.talk.bus.jetstream().purge_stream(subjects.INTAKE_STREAM, seq=before)


async def test_a_gap_in_the_stream_is_named_and_history_does_not_start(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.history.stop()
        events = renames(session_id, 5)
        for event in events:
            await walk.talk.publish(event)
        await purge(walk, 4)
        assert "events 2 to 3 are gone from the intake stream" in await walk.refuses()
        walk.history.environment["CHATLOG_ACCEPT_GAP"] = "true"
        await walk.history.start()
        await walk.talk.outcome(events[-1].event_id)
        assert len(await walk.talk.types(session_id)) == 4, "what is left goes on: 4 to 6"
        assert (await walk.status()).cursor == 6


async def test_a_stream_purged_behind_the_cursor_is_no_gap(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.history.stop()
        await purge(walk, 2)
        await walk.history.start()
        assert (await walk.talk.say(renames(session_id, 1)[0])).version == 2


@pytest.mark.parametrize("used", [False, True])
async def test_another_stream_is_refused(tmp_path: Path, used: bool) -> None:
    """The intake was wiped: gateways would be told accepted, and a follower at the old cursor would see nothing."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        epoch = (await walk.status()).epoch
        await walk.history.stop()
        jetstream = walk.talk.bus.jetstream()
        await jetstream.delete_stream(subjects.INTAKE_STREAM)
        await provision(jetstream)
        events = renames(session_id, 3)
        if used:
            for event in events:
                await walk.talk.publish(event)
        assert "it is another stream" in await walk.refuses()
        walk.history.environment["CHATLOG_ACCEPT_GAP"] = "true"
        await walk.history.start()
        assert (await walk.status()).epoch != epoch, "nobody knows whether this log says all that clients were shown"
        if not used:
            await publish_all(walk, events)
        await all_recorded_once(walk, session_id, events)


async def test_a_stream_that_is_made_anew_under_a_running_history_ends_it(tmp_path: Path) -> None:
    """Else it would go on behind a cursor that the new stream has not reached, and gateways would say accepted."""
    async with road(tmp_path) as walk:
        await walk.begin()
        jetstream = walk.talk.bus.jetstream()
        await jetstream.delete_stream(subjects.INTAKE_STREAM)
        await provision(jetstream)
        assert await walk.history.ended(timeout_s=60) == 1
        assert "it is another stream" in walk.said("task_died")[0]["exception"][0]["words"]


def move_cursor(data_dir: Path, sequence: int) -> None:
    """As another writer would."""
    with closing(sqlite3.connect(data_dir / "log.db")) as connection, connection:
        [(created,)] = connection.execute("SELECT stream_created FROM cursor").fetchall()
        put_cursor(connection, Cursor(created, sequence))


async def test_a_log_that_is_ahead_of_its_stream_is_refused(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        await walk.begin()
        await walk.history.stop()
        move_cursor(walk.data_dir, 1000)
        assert "up to 1000" in await walk.refuses()


async def test_a_second_history_on_the_same_data_ends_with_a_clear_line(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        second = replace(walk, history=replace(walk.history, label="second"))
        assert "another process writes to this log" in await second.refuses()
        await walk.begin()


async def test_a_history_that_lost_its_place_ends(tmp_path: Path) -> None:
    """The lock was got around: another writer moved the cursor. The first ends; what it held is decided anew."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        move_cursor(walk.data_dir, 0)
        event = renames(session_id, 1)[0]
        await walk.talk.publish(event)
        assert await walk.history.ended() == 1
        assert walk.said("task_died")[0]["exception"][0]["kind"] == "LogFenced"
        move_cursor(walk.data_dir, 1)
        await walk.history.start()
        assert (await walk.talk.outcome(event.event_id)).version == 2


async def test_a_fresh_log_on_a_stream_that_has_lost_its_start_is_refused(tmp_path: Path) -> None:
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        await walk.talk.say(renames(session_id, 1)[0])
        await walk.history.stop()
        await purge(walk, 2)
        shutil.rmtree(walk.data_dir)
        assert "events 1 to 1 are gone" in await walk.refuses()


async def test_a_step_in_the_consumers_sequence_is_seen(tmp_path: Path) -> None:
    """Somebody takes deliveries from history's own consumer: what never came must not be passed over."""
    async with road(tmp_path) as walk:
        session_id = await walk.begin()
        jetstream = walk.talk.bus.jetstream()
        [consumer] = await jetstream.consumers_info(subjects.INTAKE_STREAM)
        stolen = await jetstream.pull_subscribe_bind(consumer=consumer.name, stream=subjects.INTAKE_STREAM)
        events = renames(session_id, 100)
        stealing = [asyncio.create_task(stolen.fetch(5, timeout=2)) for _ in range(3)]
        await publish_all(walk, events)
        taken = await asyncio.gather(*stealing, return_exceptions=True)
        assert any(isinstance(each, list) and each for each in taken), "history has missed some"
        await all_recorded_once(walk, session_id, events)
        assert any("consumer sequence" in line["reason"] for line in walk.said("follower_reopens"))
