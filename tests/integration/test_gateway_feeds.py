"""When a gateway asks again, on a real bus: gaps, silence, history's hello, replies that live events overtake.

History is played by the test: it answers the events query from a list, and says when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg
from nats.errors import SlowConsumerError

from contracts import subjects
from contracts.base import compact, parse
from contracts.frames import event_frame
from contracts.queries import EventsReply, encode_events_reply
from services.gateway.attach import Watch
from services.gateway.feeds import Feeds
from services.gateway.queries import History
from services.gateway.relay import Step
from services.runtime.bus import Bus, BusAddress
from tests.brokers import broker
from tests.polling import eventually

USER = "local"
SESSION = "11111111-1111-4111-8111-111111111111"
TURN = "22222222-2222-4222-8222-222222222222"
QUIET_S = 0.2


@dataclass
class Viewer:
    """A client that reads at once."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    resyncs: list[str] = field(default_factory=list)

    def deliver(self, _watch: Watch, step: Step, *, counted: bool) -> None:
        self.frames.append(parse(step.frame.raw))

    def attached(self, _watch: Watch, version: int) -> None:
        self.frames.append({"type": "attached", "version": version})

    def resync(self, _watch: Watch, reason: str) -> None:
        self.resyncs.append(reason)

    async def drained(self) -> bool:
        return True

    async def has(self, version: int) -> None:
        await eventually(lambda: self.versions == list(range(1, version + 1)), reason=f"versions 1 to {version}")

    @property
    def versions(self) -> list[int]:
        return [frame["version"] for frame in self.frames if frame["type"] == "event"]


@dataclass
class Played:
    """History, the worker and the gateway's feeds on one bus."""

    bus: Bus
    feeds: Feeds
    epoch: str = "e1"
    events: list[bytes] = field(default_factory=list)
    running: tuple[str | None, int] = (None, 0)
    asked: int = 0
    at_once: int = 0
    most_at_once: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    text_so_far: bytes = b""

    def record(self, event_type: str, turn: str | None = TURN, **fields: Any) -> bytes:
        """A recorded event's frame; nothing is published."""
        body: dict[str, Any] = {"type": event_type, "data": fields} | ({"turn_id": turn} if turn else {})
        version = len(self.events) + 1
        self.events.append(event_frame(compact(body), SESSION, version, version, "2026-11-20T10:00:00.000Z"))
        return self.events[-1]

    async def tell(self, frame: bytes) -> None:
        await self.bus.client.publish(subjects.session_feed(USER, SESSION), frame)
        await self.bus.client.flush()

    async def tell_hello(self) -> None:
        await self.bus.client.publish(subjects.HELLO, b"{}")
        await self.bus.client.flush()

    async def watch(self) -> tuple[Watch, Viewer]:
        viewer = Viewer()
        watch = Watch(USER, SESSION, viewer)
        await self.feeds.join(watch)
        watch.start(None)
        await self.feeds.attach(watch)
        return watch, viewer

    async def answer(self, msg: Msg) -> None:
        """The reply is read from the log now, and sent once hold is set."""
        self.asked += 1
        query = parse(msg.data)
        reply = EventsReply(
            self.epoch, len(self.events), False, *self.running, frames=tuple(self.events[query["after"] :])
        )
        asyncio.get_running_loop().create_task(self._send(msg, encode_events_reply(reply)))

    async def _send(self, msg: Msg, reply: bytes) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.hold.wait()
        self.at_once -= 1
        await msg.respond(reply)

    async def snapshot(self, msg: Msg) -> None:
        if self.text_so_far:
            await msg.respond(self.text_so_far)


@asynccontextmanager
async def played(folder: Path, quiet_s: float = 60) -> AsyncIterator[Played]:
    async with broker(folder, provisioned=False) as b:
        bus = Bus(BusAddress(b.url, b.user, b.password), "gateway")
        await bus.start()
        feeds = Feeds(bus, History(bus), quiet_s)
        whole = Played(bus, feeds)
        whole.hold.set()
        await feeds.start()
        await bus.subscribe(subjects.history_query("events", USER), whole.answer)
        await bus.subscribe(subjects.turn(USER, TURN), whole.snapshot)
        whole.record("session_started", None)
        try:
            yield whole
        finally:
            # Else a test that fails never ends: nats-py would connect for ever to a broker that is gone.
            await feeds.stop()
            await bus.stop()


def token(index: int) -> bytes:
    return compact(
        {"type": "token", "session_id": SESSION, "turn_id": TURN, "attempt": 1, "index": index, "text": f"<{index}>"}
    )


async def test_a_gap_is_asked_for_once_and_for_all_watchers(tmp_path: Path) -> None:
    async with played(tmp_path) as whole:
        _, first = await whole.watch()
        _, second = await whole.watch()
        before = whole.asked
        whole.hold.clear()
        whole.record("session_renamed", None, title="lost")
        for _ in range(5):
            await whole.tell(whole.record("session_renamed", None, title="x"))
        whole.hold.set()
        for viewer in (first, second):
            await viewer.has(7)
        assert whole.most_at_once == 1
        assert whole.asked - before <= 3


async def test_a_reply_that_live_events_overtake_is_no_resync(tmp_path: Path) -> None:
    async with played(tmp_path) as whole:
        _, viewer = await whole.watch()
        before = whole.asked
        whole.hold.clear()
        await whole.tell_hello()
        await eventually(lambda: whole.asked > before, reason="history is asked")
        await whole.tell(whole.record("session_renamed", None, title="x"))
        await eventually(lambda: viewer.versions == [1, 2], reason="the live event")
        whole.hold.set()
        await eventually(lambda: whole.at_once == 0, reason="the reply is sent")
        await whole.tell(whole.record("session_renamed", None, title="y"))
        await eventually(lambda: viewer.versions == [1, 2, 3], reason="the watch goes on")
        assert viewer.resyncs == []


async def test_another_log_is_a_resync(tmp_path: Path) -> None:
    async with played(tmp_path) as whole:
        watch, viewer = await whole.watch()
        whole.epoch = "e2"
        await whole.tell_hello()
        await eventually(lambda: viewer.resyncs == ["epoch"], reason="resync")
        assert watch.ended


async def test_a_lost_end_is_asked_for_after_silence_and_then_no_more(tmp_path: Path) -> None:
    async with played(tmp_path, QUIET_S) as whole:
        _, viewer = await whole.watch()
        await whole.tell(whole.record("user_message_submitted"))
        await whole.tell(whole.record("answer_started", attempt=1))
        whole.running = (TURN, 1)
        await whole.tell(token(1))
        whole.record("answer_completed", attempt=1)
        whole.running = (None, 0)
        await eventually(lambda: viewer.versions == [1, 2, 3, 4], reason="the end is asked for")
        (channel,) = whole.feeds._channels.values()
        await eventually(lambda: channel._quiet_timer is None, reason="no timer is left")


async def test_a_subscription_that_the_server_lost_is_made_again(tmp_path: Path) -> None:
    """Nothing says that it is lost: a version that was recorded and does not come does."""
    async with played(tmp_path, QUIET_S) as whole:
        _, viewer = await whole.watch()
        (channel,) = whole.feeds._channels.values()
        await whole.bus.client._send_unsubscribe((await channel.subscription)._id)
        await whole.tell(whole.record("session_renamed", None, title="not heard"))
        whole.feeds.expect(USER, SESSION, 2)
        await eventually(lambda: viewer.versions == [1, 2], reason="it is asked for")
        await whole.tell(whole.record("session_renamed", None, title="heard"))
        await eventually(lambda: viewer.versions == [1, 2, 3], reason="it is heard, although nobody expects it")
        await eventually(lambda: channel._quiet_timer is None, reason="no timer is left")


async def test_a_lost_token_is_repaired_by_its_worker(tmp_path: Path) -> None:
    async with played(tmp_path) as whole:
        _, viewer = await whole.watch()
        await whole.tell(whole.record("user_message_submitted"))
        await whole.tell(whole.record("answer_started", attempt=1))
        whole.running = (TURN, 1)
        whole.text_so_far = compact(
            {"type": "answer_so_far", "session_id": SESSION, "turn_id": TURN, "attempt": 1, "index": 3, "text": "<123>"}
        )
        for index in (1, 3, 4):
            await whole.tell(token(index))
        await eventually(lambda: viewer.frames[-1].get("index") == 4, reason="token 4")
        kinds = [(frame["type"], frame.get("index")) for frame in viewer.frames[-3:]]
        assert kinds == [("token", 1), ("answer_so_far", 3), ("token", 4)]


async def test_the_last_watcher_takes_the_subscription_with_it(tmp_path: Path) -> None:
    async with played(tmp_path) as whole:
        first, _ = await whole.watch()
        # The feed's own is one of these; the reply inbox, which comes with the first request, is another.
        subscribed = len(whole.bus.client._subs) - 1
        second, viewer = await whole.watch()
        assert len(whole.bus.client._subs) == subscribed + 1
        whole.feeds.leave(first)
        await whole.tell(whole.record("session_renamed", None, title="x"))
        await eventually(lambda: viewer.versions == [1, 2], reason="the other one still watches")
        whole.feeds.leave(second)
        whole.feeds.leave(second)
        await eventually(lambda: len(whole.bus.client._subs) == subscribed, reason="unsubscribed")
        assert whole.feeds.watched == 0


async def test_what_is_recorded_while_history_answers_an_attach_is_not_missed(tmp_path: Path) -> None:
    """The feed is subscribed first, and the question is the barrier: whatever its answer lacks comes live."""
    async with played(tmp_path) as whole:
        whole.hold.clear()
        attaching = asyncio.create_task(whole.watch())
        await eventually(lambda: whole.asked == 1, reason="history was asked")
        await whole.tell(whole.record("session_renamed", None, title="x"))
        whole.hold.set()
        _, viewer = await attaching
        await viewer.has(2)


@pytest.mark.parametrize("lost", ["connection", "frames"])
async def test_what_was_lost_on_the_way_is_asked_for_at_once(tmp_path: Path, lost: str) -> None:
    """Nothing that comes later would show it: it was the last frame, and history was never away."""
    async with played(tmp_path) as whole:
        _, viewer = await whole.watch()
        whole.record("session_renamed", None, title="x")
        if lost == "connection":
            transport: Any = whole.bus.client._transport
            transport.close()
        else:
            dropped = SlowConsumerError(subjects.session_feed(USER, SESSION), "", 1, whole.bus.client._subs[1])
            await whole.bus.client._error_cb(dropped)
        await viewer.has(2)
