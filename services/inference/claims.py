"""Step 11, inference/claims: a worker's side of the talk with history about one run of one turn.

Owns the turn's subject: listening to words, answering snapshots, publishing the claim and the end until the queue has
them, and asking for the word. Must never decide what a word means: the run does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog
import uuid_utils
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from contracts import subjects
from contracts.base import dump, time_text
from contracts.envelope import Envelope, Event, write_event
from contracts.errors import ContractError
from contracts.events import schema_version_of
from contracts.queries import Failure, TurnQuery, TurnReply, read_reply
from contracts.turns import Go, QueuedContext, Snapshot, Word, read_turn_message
from services.runtime.bus import Bus, NoAnswer, NotSent, TooLarge

log = structlog.get_logger(__name__)

# The queue's answer takes a fsync, a millisecond or some; without it the same event is published again.
PUBACK_TIMEOUT_S = 5.0
PUBLISH_AGAIN_S = 0.5
# History answers a claim in milliseconds; a word that went lost is asked for every second.
ASK_EVERY_S = 1.0
ASK_TIMEOUT_S = 1.0


def new_id() -> str:
    """A UUIDv7."""
    return str(uuid_utils.uuid7())


class Claim:
    """One run's line to history. heard: called with each word. held: the frame of an attempt, or None if not held."""

    def __init__(
        self,
        bus: Bus,
        context: QueuedContext,
        run_id: str,
        heard: Callable[[Word], None],
        held: Callable[[int], bytes | None],
    ) -> None:
        self._bus = bus
        self._context = context
        self._run_id = run_id
        self._heard = heard
        self._held = held
        self._claimed_at: int | None = None  # the intake's sequence of the claim, once it is stored
        self._subscription: Subscription | None = None
        self._ask_now = asyncio.Event()

    async def open(self) -> None:
        """Listen. What is published after this on the same connection cannot be answered too early for us."""
        subject = subjects.turn(self._context.event.user_id, self._context.turn_id)
        self._subscription = await self._bus.subscribe(subject, self._on_message)

    async def close(self) -> None:
        if self._subscription is not None and not self._bus.client.is_closed:
            await self._subscription.unsubscribe()

    async def publish_claim(self) -> None:
        """Ask for the turn, until the queue has it. A repeat is the same event: a known run's claim records nothing."""
        self._claimed_at = await self._publish(self._event("turn_claimed", {"run": self._run_id}))

    async def publish_end(self, event_type: str, data: dict[str, Any]) -> None:
        """The turn's terminal, until the queue has it: minted once, so that a repeat is the same event."""
        await self._publish(self._event(event_type, data))

    def ask_soon(self) -> None:
        """A word may have been lost on the way: ask now, whatever the run waits for."""
        self._ask_now.set()

    async def ask_while(self, waiting: Callable[[], bool]) -> None:
        """Ask every second while the run waits for a word, and whenever one may have been lost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(ASK_EVERY_S):
                    await self._ask_now.wait()
            asked_for = self._ask_now.is_set()
            self._ask_now.clear()
            if asked_for or waiting():
                await self._ask()

    async def _ask(self) -> None:
        user_id = self._context.event.user_id
        claimed_at = self._claimed_at or 0
        query = TurnQuery(user_id=user_id, turn_id=self._context.turn_id, run=self._run_id, claimed_at=claimed_at)
        try:
            raw = await self._bus.request(subjects.history_query("turn", user_id), dump(query), ASK_TIMEOUT_S)
            reply = read_reply(TurnReply, raw)
        except (NotSent, NoAnswer):
            return  # history is away: the next ask is a second off
        except ContractError as error:
            log.warning("unreadable_word", turn_id=self._context.turn_id, reason=error.reason)
            return
        if isinstance(reply, Failure) or reply.word is None:
            return
        self._take(reply.word)

    async def _on_message(self, msg: Msg) -> None:
        try:
            message = read_turn_message(msg.data)
        except ContractError as error:
            log.warning("unreadable_word", turn_id=self._context.turn_id, reason=error.reason)
            return
        if not isinstance(message, Snapshot):
            self._take(message)
        elif (frame := self._held(message.attempt)) is not None and msg.reply:
            await self._bus.publish_live(msg.reply, frame)

    def _take(self, word: Word) -> None:
        """A go for the run before ours is no answer to a claim that the queue does not have yet."""
        if isinstance(word, Go) and word.run != self._run_id and self._claimed_at is None:
            return
        self._heard(word)

    async def _publish(self, event: Event) -> int:
        """The intake's sequence of the event."""
        subject = subjects.intake(event.user_id, event.session_id, event.type)
        headers = {
            subjects.CHAT_EVENT: event.event_id,
            subjects.CHAT_USER: event.user_id,
            subjects.CHAT_TURN: self._context.turn_id,
        }
        while True:
            try:
                return await self._bus.publish_durable(
                    subjects.INTAKE_STREAM, subject, event.body, headers, PUBACK_TIMEOUT_S
                )
            except TooLarge:
                raise
            except (NotSent, NoAnswer) as error:
                log.warning("publish_again", turn_id=self._context.turn_id, type=event.type, reason=str(error))
            await asyncio.sleep(PUBLISH_AGAIN_S)

    def _event(self, event_type: str, data: dict[str, Any]) -> Event:
        cause = self._context.event
        return write_event(
            Envelope(
                event_id=new_id(),
                type=event_type,
                schema_version=schema_version_of(event_type),
                user_id=cause.user_id,
                session_id=cause.session_id,
                turn_id=cause.turn_id,
                causation_id=cause.event_id,
                occurred_at=time_text(datetime.now(UTC)),
                data=data,
            )
        )
