"""Steps 5 and 9, history/upkeep: what history does by the clock: deadlines, how full it is, what may be forgotten.

Owns the periodic work. Must never decide about a session: it asks the writer to.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats.errors
import structlog

from contracts import subjects
from contracts.base import dump, time_text
from contracts.turns import Cancel, Load
from services.history.backup_note import NoteUnreadable, read_note
from services.history.continuity import first_kept, kept_from
from services.history.deadlines import Deadlines
from services.history.draft import Situation
from services.history.follower import ask_stream
from services.history.liveness import Workers
from services.history.places import Places, queues_of, unassigned
from services.history.writer import Writer
from services.runtime.bus import Bus, NoAnswer, NotSent, heeding_cancel

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
LOAD_EVERY_S = 1.0
# A stream that is kept for a backup grows past half its limit: from there to 80 %, where gateways refuse, takes longer.
FORGET_EVERY_S = 600.0
# The rest of the intake's limit is for what history has not consumed, and for the last 24 h.
SHARE_FOR_BACKUP = 0.5
ASK_TIMEOUT_S = 5.0


class Upkeep:
    def __init__(self, bus: Bus, writer: Writer, deadlines: Deadlines, folder: Path) -> None:
        self._bus = bus
        self._writer = writer
        self._deadlines = deadlines
        self._folder = folder

    async def watch_turns(self, workers: Callable[[], Workers], default_model: Callable[[], str | None]) -> None:
        """Start, queue again or end what has waited too long, and tell workers what to stop, for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            turns = await self._writer.open_turns()
            if not self._bus.connected:
                self._deadlines.reset()
                continue
            due = self._deadlines.look(time.monotonic(), turns, workers(), default_model())
            for turn in due.cancelling:
                word = Cancel(turn_id=turn.turn_id)
                await self._bus.publish_live(subjects.turn(turn.user_id, turn.turn_id), dump(word))
            if due.over:
                log.warning("turns_over", turns={turn.turn_id: code for turn, code in due.over})
                await self._writer.end_turns(due.over)
            if due.silent:
                await self._writer.requeue(due.silent)
            await self._writer.start_waiting()

    async def tell_places(self, situation: Callable[[], Situation]) -> None:
        """Tell turns that wait how many are served before them, as that moves, for ever."""
        places = Places(time.monotonic())
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._bus.connected:
                await self._writer.show(lambda turns: places.look(time.monotonic(), turns, situation().model_of))

    async def tell_load(self, intake_max_bytes: int, situation: Callable[[], Situation]) -> None:
        """Say every second how full it is, for ever: gateways refuse by it before it is too late."""
        while True:
            await asyncio.sleep(LOAD_EVERY_S)
            try:
                stream = await ask_stream(self._bus)
            except (NotSent, NoAnswer):
                continue  # who hears nothing for a while knows as much
            turns, model_of = await self._writer.open_turns(), situation().model_of
            free = await asyncio.to_thread(lambda: shutil.disk_usage(self._folder).free)
            load = Load(
                intake_bytes=stream.bytes,
                intake_max_bytes=intake_max_bytes,
                disk_free_bytes=free,
                queues=queues_of(turns, model_of),
                default_model=model_of(None),
                unassigned=unassigned(turns, model_of),
            )
            await self._bus.publish_live(subjects.LOAD, dump(load))

    async def forget(self, intake_keep_h: float, intake_max_bytes: int, outcomes_keep_days: float) -> None:
        """Purge what the log has consumed and nobody may need again, for ever."""
        while True:
            await self._purge_intake(timedelta(hours=intake_keep_h), int(intake_max_bytes * SHARE_FOR_BACKUP))
            await self._writer.drop_outcomes(time_text(datetime.now(UTC) - timedelta(days=outcomes_keep_days)))
            await asyncio.sleep(FORGET_EVERY_S)

    async def _purge_intake(self, keep: timedelta, hold_bytes: int) -> None:
        """Behind the cursor, old, and not what the newest backup needs. A failed purge is tried again next time."""
        try:
            stream = await ask_stream(self._bus)
            limit = datetime.now(UTC) - keep
            oldest = max(stream.first_sequence, 1)  # a stream that never held a message says 0
            young = await self._first_after(limit, oldest, stream.last_sequence + 1)
            note = await asyncio.to_thread(read_note, self._folder)
            needed = kept_from(stream, note.cursor, hold_bytes) if note else None
            first = first_kept(self._writer.cursor.sequence, young, needed)
            if first > oldest:
                jetstream = self._bus.jetstream(ASK_TIMEOUT_S)
                await heeding_cancel(jetstream.purge_stream(subjects.INTAKE_STREAM, seq=first))
                log.info("intake_purged", before_sequence=first)
        except (NotSent, NoAnswer, NoteUnreadable, nats.errors.Error, OSError) as error:
            log.warning("intake_not_purged", error=type(error).__name__, reason=str(error))

    async def _first_after(self, limit: datetime, low: int, high: int) -> int:
        """The first sequence in low to high whose message is younger than the limit, by halving."""
        jetstream = self._bus.jetstream(ASK_TIMEOUT_S)
        while low < high:
            middle = (low + high) // 2
            message = await heeding_cancel(jetstream.get_msg(subjects.INTAKE_STREAM, seq=middle))
            if message.time is not None and message.time < limit:
                low = middle + 1
            else:
                high = middle
        return low
