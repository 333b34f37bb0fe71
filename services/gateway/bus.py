"""Step 4, gateway/bus: publish an event to the intake stream, and follow what becomes of it.

Owns the PubAck that makes an event accepted, the inbox that history sends outcomes to, and the question to history
where an outcome was missed. Must never call an event accepted that the stream has not synced.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from nats.aio.msg import Msg

from contracts import subjects
from contracts.envelope import Event
from contracts.errors import ContractError
from contracts.turns import OutcomeMessage, read_outcome
from services.gateway.intake import RETRY_AFTER_S, Refused
from services.gateway.queries import History, HistoryAway
from services.runtime.bus import Bus, NoAnswer, NotSent, TooLarge
from services.runtime.lifecycle import cancel_all

log = structlog.get_logger(__name__)

# The broker fsyncs each publish: milliseconds. Five seconds means that something is wrong.
PUBLISH_TIMEOUT_S = 5.0
# How long an outcome is awaited before history is asked for it, and how rarely that is repeated at the most.
FIRST_ASK_S = 1.0
SLOWEST_ASK_S = 5.0
# The longest turn: after it nobody waits any more, and who still wants to know repeats the send with its key.
FOLLOW_S = 30 * 60.0
# Outcomes that are followed at once, over all sessions: each is a task of a few KiB.
FOLLOWED = 10_000

# Told of each event that was recorded: user, session, version.
OnRecorded = Callable[[str, str, int], None]


@dataclass(frozen=True, slots=True)
class Sent:
    """An accepted event. outcome ends with history's word, or with TimeoutError after 30 minutes."""

    event: Event
    outcome: asyncio.Task[OutcomeMessage]

    async def outcome_within(self, timeout_s: float) -> OutcomeMessage | None:
        """The outcome, or None where it is not known in time; it is followed further."""
        done, _ = await asyncio.wait({self.outcome}, timeout=timeout_s)
        if not done or self.outcome.cancelled() or self.outcome.exception() is not None:
            return None
        return self.outcome.result()


class Intake:
    """Publishes events and hears their outcomes."""

    def __init__(self, bus: Bus, history: History, on_recorded: OnRecorded) -> None:
        self._bus = bus
        self._history = history
        self._on_recorded = on_recorded
        self._inbox = f"_INBOX.gateway.{secrets.token_hex(8)}"
        self._numbers = 0
        self._awaited: dict[str, asyncio.Future[OutcomeMessage]] = {}
        self._unrecorded: Counter[tuple[str, str]] = Counter()
        self._following: set[asyncio.Task[OutcomeMessage]] = set()

    async def start(self) -> None:
        await self._bus.subscribe(f"{self._inbox}.*", self._on_outcome)

    async def stop(self) -> None:
        """Follow nothing more: every outcome can still be asked for."""
        await cancel_all(self._following)

    def unrecorded(self, user_id: str, session_id: str) -> int:
        """Sends of a session that this gateway published and knows no outcome of."""
        return self._unrecorded[user_id, session_id]

    async def publish(self, event: Event) -> Sent:
        """Publish; the event is accepted when this returns. Raises Refused: not_accepted, unknown or too_long."""
        if len(self._following) >= FOLLOWED:
            raise _refused("queue_full", "too many sends are unrecorded", event)
        self._numbers += 1
        reply_to = f"{self._inbox}.{self._numbers}"
        reply: asyncio.Future[OutcomeMessage] = asyncio.get_running_loop().create_future()
        self._awaited[reply_to] = reply
        self._unrecorded[event.user_id, event.session_id] += 1
        try:
            await self._publish(event, reply_to)
        except BaseException:
            self._let_go(event, reply_to)
            raise
        task = asyncio.create_task(self._follow(event, reply_to, reply), name=f"outcome of {event.event_id}")
        self._following.add(task)
        task.add_done_callback(self._followed)
        return Sent(event, task)

    async def _publish(self, event: Event, reply_to: str) -> None:
        headers = {
            subjects.CHAT_REPLY: reply_to,
            subjects.CHAT_EVENT: event.event_id,
            subjects.CHAT_USER: event.user_id,
        }
        if event.turn_id is not None:
            headers[subjects.CHAT_TURN] = event.turn_id
        subject = subjects.intake(event.user_id, event.session_id, event.type)
        try:
            await self._bus.publish_durable(subjects.INTAKE_STREAM, subject, event.body, headers, PUBLISH_TIMEOUT_S)
        except TooLarge as error:
            raise _refused("too_long", "the event is larger than the queue takes", event) from error
        except NotSent as error:
            raise _refused("not_accepted", "the queue did not take it", event) from error
        except NoAnswer as error:
            raise _refused("unknown", "the queue did not answer; repeat it with the same key", event) from error

    async def _follow(self, event: Event, reply_to: str, reply: asyncio.Future[OutcomeMessage]) -> OutcomeMessage:
        try:
            async with asyncio.timeout(FOLLOW_S):
                outcome = await self._await_or_ask(event, reply)
        finally:
            self._let_go(event, reply_to)
        self._history.saw(event.user_id, outcome.position)
        if outcome.version is not None:
            self._on_recorded(event.user_id, event.session_id, outcome.version)
        return outcome

    async def _await_or_ask(self, event: Event, reply: asyncio.Future[OutcomeMessage]) -> OutcomeMessage:
        pause = FIRST_ASK_S
        while True:
            await asyncio.wait({reply}, timeout=pause)
            if reply.done():
                return reply.result()
            try:
                told = await self._history.outcome(event.user_id, event.event_id, event.data_hash)
            except (HistoryAway, Refused):
                # Nothing is lost: the event is in the stream, and the question is asked again.
                told = None
            if told is not None and told.outcome is not None:
                return told.outcome
            pause = min(2 * pause, SLOWEST_ASK_S)

    async def _on_outcome(self, msg: Msg) -> None:
        try:
            outcome = read_outcome(msg.data)
        except ContractError as error:
            log.warning("outcome_unreadable", reason=error.reason)
            return
        awaited = self._awaited.get(msg.subject)
        if awaited is not None and not awaited.done():
            awaited.set_result(outcome)

    def _let_go(self, event: Event, reply_to: str) -> None:
        self._awaited.pop(reply_to, None)
        key = event.user_id, event.session_id
        self._unrecorded[key] -= 1
        if self._unrecorded[key] <= 0:
            del self._unrecorded[key]

    def _followed(self, task: asyncio.Task[OutcomeMessage]) -> None:
        self._following.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.warning("outcome_not_followed", task=task.get_name(), error=type(task.exception()).__name__)


def _refused(code: str, detail: str, event: Event) -> Refused:
    return Refused(
        code,  # type: ignore[arg-type]
        detail,
        retry_after_s=None if code == "too_long" else RETRY_AFTER_S,
        event_id=event.event_id,
        turn_id=event.turn_id,
    )
