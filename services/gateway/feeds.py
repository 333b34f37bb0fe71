"""Step 13, gateway/feeds: one subscription per watched session, however many clients watch it.

Owns the subscriptions (ref-counted), the way of a frame to every watcher, and the one question that is asked again: on
a gap, after our own reconnect, on dropped frames, on history's hello, and after 15 s without a frame while a turn is
unfinished or a recorded version has not come; then the subscription is made again too, since a server that lost it says
nothing. One ask per session at a time. Must never hold a timer or a task for a session where nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import subjects
from contracts.errors import ContractError
from services.gateway.attach import Watch, catch_up
from services.gateway.intake import Refused
from services.gateway.queries import History, HistoryAway
from services.gateway.relay import Kind, read_frame
from services.runtime.bus import Bus
from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

# An answer's tokens come many times a second; so long a silence may be a lost last frame.
QUIET_S = 15.0
# Between two asks of one session that found a gap again.
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0


class Channel:
    """One session's feed in this gateway: its watchers, and what is asked for them."""

    def __init__(self, feeds: Feeds, user_id: str, session_id: str) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.watches: list[Watch] = []
        self.subscription = feeds.subscribe(self)
        self._feeds = feeds
        self._history = feeds.history
        self._quiet_s = feeds.quiet_s
        self._heard_at = 0.0
        self._expected = 0
        self._quiet_timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._wanted = False

    async def on_message(self, msg: Msg) -> None:
        try:
            frame = read_frame(msg.data)
        except ContractError as error:
            log.warning("feed_unreadable", session_id=self.session_id, reason=error.reason)
            return
        self._heard_at = asyncio.get_running_loop().time()
        if frame.kind is Kind.EVENT:
            self._history.saw(self.user_id, frame.position)
        if not frame.is_terminal:
            self.watch_quiet()
        gap = False
        for watch in tuple(self.watches):
            watch.offer(frame)
            gap = gap or (watch.live and watch.relay.gap)
        if gap:
            self.ask_again()

    @property
    def open_turns(self) -> set[str]:
        """Turns that some watcher has seen begin and none has seen end."""
        return {turn for watch in self.watches for turn in watch.relay.open_turns}

    def expect(self, version: int) -> None:
        """History has recorded this version: it must come."""
        self._expected = max(self._expected, version)
        self.watch_quiet()

    def watch_quiet(self) -> None:
        """Look again in 15 s: whether something is to come and nothing was heard."""
        if self._quiet_timer is None:
            self._quiet_timer = asyncio.get_running_loop().call_later(self._quiet_s, self._on_quiet)

    def ask_again(self) -> None:
        """Bring every live watcher up to date: now, or once more after the ask that runs."""
        self._wanted = True
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=f"ask {self.session_id}")

    def close(self) -> None:
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _on_quiet(self) -> None:
        self._quiet_timer = None
        if not self.open_turns and all(watch.version >= self._expected for watch in self._live()):
            return
        loop = asyncio.get_running_loop()
        left = self._heard_at + self._quiet_s - loop.time()
        if left > 0:
            self._quiet_timer = loop.call_later(left, self._on_quiet)
            return
        self._heard_at = loop.time()
        self._feeds.renew(self)
        self.ask_again()
        self.watch_quiet()

    async def _ask(self) -> None:
        pause = FIRST_PAUSE_S
        try:
            while self._wanted and self.watches:
                self._wanted = False
                if await self._ask_once() and not any(watch.relay.gap for watch in self._live()):
                    continue
                self._wanted = True
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
        finally:
            self._asking = None

    async def _ask_once(self) -> bool:
        """False: nobody answered."""
        try:
            await catch_up(self._history, self._live())
        except HistoryAway:
            return False
        except Refused as error:
            # The session is gone for its user; the watchers keep what they have.
            log.warning("ask_refused", session_id=self.session_id, code=error.code)
            return True
        return True

    def _live(self) -> list[Watch]:
        return [watch for watch in self.watches if watch.live and not watch.ended]


class Feeds:
    """All sessions that somebody watches through this gateway."""

    def __init__(self, bus: Bus, history: History, quiet_s: float = QUIET_S) -> None:
        self._bus = bus
        self.history = history
        self.quiet_s = quiet_s
        self._channels: dict[tuple[str, str], Channel] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._bus.after_reconnect(self.ask_all)
        self._bus.after_drop(self.ask_all)
        await self._bus.subscribe_repeated(subjects.HELLO, self._on_hello)

    async def ask_all(self) -> None:
        """Something may have been missed anywhere, history's hello too."""
        self.history.forget_positions()
        for channel in tuple(self._channels.values()):
            channel.ask_again()

    @property
    def watched(self) -> int:
        return len(self._channels)

    async def join(self, watch: Watch) -> None:
        """Subscribe the session's feed if nobody has: from now on the watch holds what comes."""
        key = watch.user_id, watch.session_id
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(self, *key)
        channel.watches.append(watch)
        await asyncio.shield(channel.subscription)

    async def attach(self, watch: Watch) -> None:
        """Bring a joined and started watch up to date; it is live from then on. Raises HistoryAway, Refused."""
        await catch_up(self.history, [watch])
        channel = self._channels.get((watch.user_id, watch.session_id))
        if channel is not None and not watch.ended:
            if watch.relay.open_turns:
                channel.watch_quiet()
            if watch.relay.gap:
                channel.ask_again()

    def leave(self, watch: Watch) -> None:
        """End a watch; the last one of a session unsubscribes its feed."""
        watch.end()
        key = watch.user_id, watch.session_id
        channel = self._channels.get(key)
        if channel is None or watch not in channel.watches:
            return
        channel.watches.remove(watch)
        if not channel.watches:
            del self._channels[key]
            channel.close()
            self._spawn(self._unsubscribe(channel.subscription))

    def expect(self, user_id: str, session_id: str, version: int) -> None:
        """An event of this gateway's own was recorded: whoever watches its session is to see it."""
        channel = self._channels.get((user_id, session_id))
        if channel is not None:
            channel.expect(version)

    def subscribe(self, channel: Channel) -> asyncio.Future[Subscription]:
        subject = subjects.session_feed(channel.user_id, channel.session_id)
        return asyncio.ensure_future(self._bus.subscribe(subject, channel.on_message))

    def renew(self, channel: Channel) -> None:
        """The new subscription before the old one's end; what comes twice is told once."""
        before, channel.subscription = channel.subscription, self.subscribe(channel)
        self._spawn(self._unsubscribe(before))

    async def stop(self) -> None:
        for channel in self._channels.values():
            channel.close()
        await cancel_all(self._tasks)

    async def _unsubscribe(self, subscription: asyncio.Future[Subscription]) -> None:
        await asyncio.wait({subscription})
        if self._bus.connected and subscription.exception() is None:
            await subscription.result().unsubscribe()

    async def _on_hello(self, _msg: Msg) -> None:
        await self.ask_all()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
