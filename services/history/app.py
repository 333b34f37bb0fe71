"""History's wiring: lock, log, stream, catch up, views, hello, dispatch, ready: in this order, in one place.

Owns the construction of every part of the service and nothing of what they do. Must never hold logic.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import uuid_utils
from nats.aio.msg import Msg

from contracts import subjects
from contracts.base import time_text
from contracts.errors import ContractError
from contracts.queries import StatusReply
from contracts.turns import read_presence
from services.history.backup_note import newest_backup
from services.history.context import ContextLimits
from services.history.deadlines import Deadlines, Patience
from services.history.decisions import Rules
from services.history.draft import Bounds, Situation
from services.history.follower import Follower, ask_stream
from services.history.imports import Imports
from services.history.liveness import Liveness, Workers
from services.history.log.reader import LogReader
from services.history.log.sqlite import SqliteLog
from services.history.parking import Parking
from services.history.places import queues_of
from services.history.publisher import Publisher
from services.history.queries import Queries
from services.history.recorder import Recorder
from services.history.scheduler import OpenTurn
from services.history.settings import HistorySettings
from services.history.swapping import Swapping
from services.history.upkeep import Upkeep
from services.history.views.folder import ViewFolder
from services.history.views.reader import ViewReader
from services.history.views.store import ViewStore, folded_another_log
from services.history.views.travel import Travel
from services.history.writer import LogThread, Writer
from services.runtime import streams
from services.runtime.bus import Bus, BusAddress, NoAnswer, NotSent
from services.runtime.health import BrokerHealth, Reason, listening
from services.runtime.lifecycle import Lifecycle

log = structlog.get_logger(__name__)


def new_id() -> str:
    return str(uuid_utils.uuid7())


def now_text() -> str:
    return time_text(datetime.now(UTC))


class History:
    """The parts of one history process."""

    def __init__(self, settings: HistorySettings, lifecycle: Lifecycle) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._folder = settings.data_dir
        address = BusAddress(settings.nats_url, settings.nats_user, settings.nats_password.get_secret_value())
        self.bus = Bus(address, "history")
        system = BusAddress(
            settings.nats_url, settings.nats_system_user, settings.nats_system_password.get_secret_value()
        )
        self.system = Bus(system, "history-readiness")
        self.broker_health = BrokerHealth(
            self.bus, self.system, streams.declared(settings.intake_max_bytes, settings.context_max_bytes)
        )
        self.thread = LogThread()
        self.publisher = Publisher(self.bus)
        self.liveness = Liveness(time.monotonic())
        patience = Patience(settings.no_worker_s, settings.requeue_s, settings.cancel_s)
        self.deadlines = Deadlines(patience, time.monotonic())
        self.ready = False

    async def serve(self) -> None:
        """Until the lifecycle stops; raises what must end the process."""
        async with AsyncExitStack() as stack:
            self._folder.mkdir(parents=True, exist_ok=True)
            events = await self.thread.run(lambda: SqliteLog(self._folder / "log.db", _new_epoch(), now_text()))
            stack.callback(self.thread.close)
            self._lifecycle.supervise(self.thread.watch(), "log")
            stack.push_async_callback(self.thread.run, events.close)
            recorder = await self.thread.run(
                lambda: Recorder(events, self._bounds(), new_id, self._settings.cached_sessions)
            )
            self.writer = Writer(self.thread, recorder, self.publisher, self._situation)
            self.reader = await LogReader.open(self._folder / "log.db")
            stack.push_async_callback(self.reader.close)
            await self._connect(stack)
            await stack.enter_async_context(listening(self._settings.health_address, self.reasons))
            await self._catch_up()
            await self._open_views(stack)
            await self._dispatch()
            await self._lifecycle.stopping.wait()
            self.ready = False
            # Before the bus drains: it would wait its whole 5 s for a follower that still fetches.
            await self._lifecycle.cancel_tasks()

    async def _connect(self, stack: AsyncExitStack) -> None:
        await self.bus.connect()
        stack.push_async_callback(self.bus.stop)
        await self.system.connect()
        stack.push_async_callback(self.system.stop)
        stack.push_async_callback(self.publisher.stop)
        await self.bus.subscribe_repeated(subjects.PRESENCE_ALL, self._hear_presence)
        self._lifecycle.supervise(self.bus.watch_silence(), "silence")
        # The server may have been away for long: what counts is when beats could be heard.
        await self._heard_nothing()
        self.bus.after_reconnect(self._heard_nothing)

    async def _catch_up(self) -> None:
        """Follow until the stream's last sequence at start: what it holds may end turns that would else run again."""
        self.follower = Follower(self.bus, self.writer, self._settings.batch_events, self._settings.accept_gap)
        await self.follower.prepare()
        self._lifecycle.supervise(self.follower.run(), "follower")
        await _first(self.follower.caught_up.wait(), self._lifecycle.stopping.wait())

    async def _open_views(self, stack: AsyncExitStack) -> None:
        # Before the old views go, which are all that tells.
        if await folded_another_log(self._folder, self.reader):
            await self.writer.begin_epoch("the views have folded another log")
        store = await ViewStore.open(self._folder, self.reader)
        stack.push_async_callback(store.close)
        self.views = ViewFolder(store, self.reader, self.writer)
        await self.views.catch_up()
        self._lifecycle.supervise(self.views.run(), "views")
        travel = Travel(self.reader, self._settings.keep_deleted_s, now_text)
        queries = Queries(self.writer.epoch, self.reader, ViewReader(store), travel, self.views, self.writer)
        queries.register(self.bus, self.status, self.thread.broke)
        Parking(self.reader, self.writer).register(self.bus, self.thread.broke)
        Imports(self.writer, self._folder).register(self.bus, self.thread.broke)
        Swapping(self.views).register(self.bus, self.thread.broke)
        await self.bus.start()

    async def _dispatch(self) -> None:
        """From here on turns are started, contexts are queued, and whoever waits is told that history is here."""
        self.publisher.on_too_large = self._end_too_large
        self.bus.after_reconnect(self._back)
        self.deadlines.reset()
        await self.publisher.hello()
        await self.writer.start_waiting()
        await self._requeue()
        upkeep = Upkeep(self.bus, self.writer, self.deadlines, self._folder)
        self._lifecycle.supervise(upkeep.watch_turns(self.workers, self.default_model), "deadlines")
        self._lifecycle.supervise(upkeep.tell_load(self._settings.intake_max_bytes, self._situation), "load")
        self._lifecycle.supervise(upkeep.tell_places(self._situation), "places")
        keep_h, keep_days = self._settings.intake_keep_h, self._settings.outcomes_keep_days
        self._lifecycle.supervise(upkeep.forget(keep_h, self._settings.intake_max_bytes, keep_days), "forget")
        self.ready = True

    async def _heard_nothing(self) -> None:
        """At start and after a reconnect: beats were missed."""
        self.liveness.back(time.monotonic())
        self.deadlines.reset()

    async def _back(self) -> None:
        """After a reconnect: words and frames were lost, and so may queued contexts be."""
        await self.publisher.hello()
        await self._requeue()

    async def _requeue(self) -> None:
        turns = await self.writer.open_turns()
        await self.writer.requeue([turn for turn in turns if turn.active and not turn.cancelling])

    async def _end_too_large(self, user_id: str, turn_id: str) -> None:
        turns: list[tuple[OpenTurn, str]] = [
            (turn, "context_too_long")
            for turn in await self.writer.open_turns()
            if (turn.user_id, turn.turn_id) == (user_id, turn_id)
        ]
        await self.writer.end_turns(turns)

    async def _hear_presence(self, message: Msg) -> None:
        try:
            self.liveness.heard(read_presence(message.data), time.monotonic())
        except ContractError as error:
            # A newer worker, say: it is as if nothing had been heard of it, which every deadline allows for.
            log.warning("presence_unreadable", subject=message.subject, reason=error.reason)

    def workers(self) -> Workers:
        return self.liveness.at(time.monotonic())

    def default_model(self) -> str | None:
        return self._settings.model or self.workers().first_model()

    def _bounds(self) -> Bounds:
        return Bounds(
            rules=Rules(self._settings.attempts, self._settings.turns_waiting, self._settings.keep_deleted_s),
            context=ContextLimits(self._settings.context_messages, self._settings.context_reserve),
            active_per_user=self._settings.active_per_user,
        )

    def _situation(self) -> Situation:
        workers = self.workers()
        fixed, unknown = self._settings.num_ctx, self._settings.window_unknown
        return Situation(
            now=now_text(),
            catching_up=not self.follower.caught_up.is_set(),
            alive=workers.alive,
            default_model=self.default_model(),
            window_of=lambda model: fixed or workers.window_of(model) or unknown,
            digest_of=workers.digest_of,
            full_name=workers.full_name,
            room_of=lambda model: self._settings.room_for(workers.slots_of(model)),
        )

    async def reasons(self) -> Sequence[Reason]:
        """Why history is not ready."""
        found = list(await self.broker_health.reasons())
        if not self.ready:
            found.append(Reason("catching_up", "the intake is being followed to where it was at start"))
        return found

    async def status(self) -> StatusReply:
        """For `chatlog status`."""
        turns = await self.writer.open_turns()
        stream = self.follower.stream
        with suppress(NotSent, NoAnswer):  # what was heard last is an answer too
            stream = await ask_stream(self.bus)
        return StatusReply(
            epoch=self.writer.epoch,
            caught_up=self.follower.caught_up.is_set(),
            cursor=self.writer.cursor.sequence,
            last_sequence=stream.last_sequence if stream else 0,
            position=self.writer.position or await self.reader.last_position(),
            views_position=self.views.position,
            parked=await self.reader.parked(),
            turns_waiting=sum(not turn.active for turn in turns),
            turns_running=sum(turn.active for turn in turns),
            sizes=await asyncio.to_thread(_sizes, self._folder),
            queues=[queue.model_dump() for queue in queues_of(turns, self._situation().model_of)],
            backup=await asyncio.to_thread(newest_backup, self._folder, stream),
        )


async def main(settings: HistorySettings, lifecycle: Lifecycle) -> None:
    await History(settings, lifecycle).serve()


def _new_epoch() -> str:
    return uuid_utils.uuid4().hex


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("*.db*")}


async def _first(*waits: Coroutine[Any, Any, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
