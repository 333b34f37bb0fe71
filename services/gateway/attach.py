"""Step 13, gateway/attach: bring clients of one session up to date, from the log and from the worker.

Owns the order of an attach: the feed is subscribed already, then history is asked for what is after the client's
version (this request on the same connection is the barrier), page by page as the client reads, then the worker for the
text of the answer in flight. A repair after a gap is the same thing. Must never take a token or an event from anywhere
else, and never cut a page that a client has not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import structlog

from contracts.errors import ContractError
from contracts.frames import Cursor
from contracts.queries import EventsReply
from services.gateway.queries import History, HistoryAway
from services.gateway.relay import Frame, Relay, Step, read_frame

log = structlog.get_logger(__name__)

ResyncReason = Literal["epoch", "version"]


class Viewer(Protocol):
    """What a door does with the frames of one watched session."""

    def deliver(self, watch: Watch, step: Step, *, counted: bool) -> None:
        """Send a frame. counted: it is live, and counts against the client's bound."""

    def attached(self, watch: Watch, version: int) -> None:
        """Everything up to version was delivered."""

    def resync(self, watch: Watch, reason: ResyncReason) -> None:
        """The cursor cannot be served; the watch has ended."""

    async def drained(self) -> bool:
        """Wait until the client has read what was delivered. False: it does not; the viewer ends itself."""


class Watch:
    """One client watching one session: its place, and whether it has caught up (live)."""

    def __init__(self, user_id: str, session_id: str, viewer: Viewer) -> None:
        self.user_id = user_id
        self.session_id = session_id
        self.viewer = viewer
        self.relay = Relay()
        self.epoch: str | None = None
        self._after = Cursor("", 0)
        self._served = False
        self.live = False
        self.ended = False

    def start(self, after: Cursor | None) -> None:
        """Begin after a client's cursor, or with the session's first event."""
        self._after = after or self._after
        self.epoch = after.epoch if after else None

    def start_after(self, version: int) -> None:
        """Begin after a version of the present log."""
        self._after = Cursor("", version)

    @property
    def version(self) -> int:
        return self.relay.version if self._served else self._after.version

    def serve(self, epoch: str) -> None:
        """Let frames out: only now is it known that the cursor is one of this log."""
        if not self._served:
            self.epoch = epoch
            self._served = True
            after = self._after
            self._deliver(self.relay.start_at(after.version, after.attempt, after.index), counted=False)

    def offer(self, frame: Frame, *, counted: bool = True) -> None:
        if not self.ended:
            self._deliver(self.relay.offer(frame), counted=counted)

    def settle(self, reply: EventsReply) -> None:
        self._deliver(self.relay.settle(reply.running_turn_id, reply.running_attempt), counted=False)

    def misses(self, reply: EventsReply, version_when_asked: int) -> ResyncReason | None:
        """Why this log cannot serve this watch: it is another one, or it is shorter than what the client had."""
        if self.epoch not in (None, reply.epoch):
            return "epoch"
        return "version" if version_when_asked > reply.version else None

    def cursor_at(self, step: Step) -> str:
        return str(Cursor(self.epoch or "", step.version, step.attempt, step.last_index))

    @property
    def cursor(self) -> str:
        """Where the client is now."""
        inside = (self.relay.attempt, self.relay.index) if self.relay.turn_id else (0, 0)
        return str(Cursor(self.epoch or "", self.relay.version, *inside))

    def end(self) -> None:
        """Deliver nothing more."""
        self.ended = True

    def _deliver(self, steps: list[Step], *, counted: bool) -> None:
        for step in steps:
            if self.ended:
                return
            self.viewer.deliver(self, step, counted=counted)


async def catch_up(history: History, watches: Sequence[Watch]) -> None:
    """Bring these watches of one session to the log's end, and to where the worker is. Raises HistoryAway, Refused."""
    group = list(watches)
    while True:
        group = [watch for watch in group if not watch.ended and await watch.viewer.drained()]
        if not group:
            return
        # Live events may overtake the reply: it is held against what a watch had when history was asked.
        versions = {watch: watch.version for watch in group}
        reply = await history.events(group[0].user_id, group[0].session_id, min(versions.values()))
        group = [watch for watch in group if not _resynced(watch, reply, versions[watch])]
        _offer_page(history, group, reply)
        if not reply.more or not group:
            break
        if not reply.frames:
            raise HistoryAway("an empty page that is not the last")
    for watch in group:
        watch.settle(reply)
        if not watch.live and not watch.ended:
            watch.viewer.attached(watch, watch.relay.version)
    await _ask_worker(history, group)
    for watch in group:
        watch.live = True
        watch.relay.give_up_waiting()


def _resynced(watch: Watch, reply: EventsReply, version_when_asked: int) -> bool:
    if watch.ended:
        return True
    reason = watch.misses(reply, version_when_asked)
    if reason is None:
        watch.serve(reply.epoch)
        return False
    watch.end()
    watch.viewer.resync(watch, reason)
    return True


def _offer_page(history: History, group: list[Watch], reply: EventsReply) -> None:
    for raw in reply.frames:
        try:
            frame = read_frame(raw)
        except ContractError as error:
            raise HistoryAway(f"events: {error.reason}") from error
        for watch in group:
            watch.offer(frame, counted=False)
    if group and reply.frames:
        history.saw(group[0].user_id, frame.position)


async def _ask_worker(history: History, group: list[Watch]) -> None:
    """Ask for the text so far of each answer in flight: one, unless an event came between."""
    in_flight = {
        (watch.relay.turn_id, watch.relay.attempt) for watch in group if watch.relay.turn_id and not watch.ended
    }
    for turn_id, attempt in sorted(in_flight, key=str):
        raw = await history.snapshot(group[0].user_id, str(turn_id), attempt)
        if raw is None:
            # The worker is gone: the next answer_started or the terminal repairs what is missing.
            continue
        try:
            frame = read_frame(raw)
        except ContractError as error:
            log.warning("snapshot_unreadable", turn_id=turn_id, reason=error.reason)
            continue
        for watch in group:
            watch.offer(frame, counted=False)
