"""Steps 2 to 4, gateway/sends: from what a door has read to an accepted event.

Owns the order of the checks: what can be seen here is refused before anything is published. Keeps which sessions are
known to exist, so that a message is accepted while history is away. Must never decide what history decides.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import uuid_utils

from contracts import ids
from contracts.base import time_text
from contracts.envelope import Event
from contracts.queries import SessionRow
from services.gateway import intake
from services.gateway.bus import Intake, Sent
from services.gateway.intake import RETRY_AFTER_S, Refused, Request
from services.gateway.load import Heard
from services.gateway.queries import History, HistoryAway

# Sessions that were seen to exist, of all users: some 200 bytes each.
KNOWN_SESSIONS = 10_000
NAME_PREFIX = "name:"
# What a client may change of a session, and the event that says so.
_CHANGES: tuple[tuple[str, str, Callable[[Request, Mapping[str, Any]], Event]], ...] = (
    ("title", "session_renamed", intake.rename),
    ("on_busy", "session_configured", intake.configure),
)


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time and new ids come from; tests pass their own."""

    now: Callable[[], str] = lambda: time_text(datetime.now(UTC))
    new_id: Callable[[], str] = lambda: str(uuid_utils.uuid7())


class Sends:
    """What users do, as accepted events."""

    def __init__(self, history: History, published: Intake, heard: Heard, clock: Clock) -> None:
        self._history = history
        self._intake = published
        self._heard = heard
        self._clock = clock
        self._known: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    def new_key(self) -> str:
        """An idempotency key for a client that gave none."""
        return self._clock.new_id()

    def know(self, user_id: str, row: SessionRow) -> None:
        """The session exists, with this model of its own."""
        key = user_id, row.session_id
        self._known[key] = row.model
        self._known.move_to_end(key)
        if len(self._known) > KNOWN_SESSIONS:
            self._known.popitem(last=False)

    async def message(self, user_id: str, session_id: str, key: str | None, given: Mapping[str, Any]) -> Sent:
        """An accepted user message. Raises Refused."""
        event_id = self._event_id(user_id, session_id, "user_message_submitted", key)
        event = intake.message(Request(user_id, session_id, event_id, self._clock.now()), given)
        try:
            session_model = await self._model_of(user_id, session_id)
            model = given.get("model") or session_model
            intake.check_model(model, self._heard.named, heard=bool(self._heard.workers))
            intake.check_room(await self._heard.room_for_message(model, self._intake.unrecorded(user_id, session_id)))
        except Refused as refusal:
            refusal.event_id, refusal.turn_id = event.event_id, event.turn_id
            raise
        return await self._intake.publish(event)

    async def session(self, user_id: str, key: str, given: Mapping[str, Any]) -> Sent:
        """An accepted session_started: of the name, else of the key. Raises Refused."""
        name = given.get("name")
        session_id = ids.session_id_of_key(user_id, key) if name is None else ids.session_id_of_name(user_id, name)
        event_id = self._event_id(user_id, session_id, "session_started", key)
        event = intake.session(Request(user_id, session_id, event_id, self._clock.now()), given)
        intake.check_room(await self._heard.room(self._intake.unrecorded(user_id, session_id)))
        return await self._intake.publish(event)

    async def change(self, user_id: str, session_id: str, key: str, given: Mapping[str, Any]) -> list[Sent]:
        """An accepted session_renamed, session_configured, or both. Raises Refused."""
        changes: list[Event] = []
        for field, event_type, written in _CHANGES:
            if field in given:
                event_id = self._event_id(user_id, session_id, event_type, key)
                changes.append(written(Request(user_id, session_id, event_id, self._clock.now()), given))
        await self._model_of(user_id, session_id)
        intake.check_room(await self._heard.room(self._intake.unrecorded(user_id, session_id)))
        return [await self._intake.publish(event) for event in changes]

    async def delete(self, user_id: str, session_id: str, key: str) -> Sent:
        """An accepted session_deleted. Raises Refused."""
        event_id = self._event_id(user_id, session_id, "session_deleted", key)
        sent = await self._delete_or_restore(intake.delete(Request(user_id, session_id, event_id, self._clock.now())))
        self._known.pop((user_id, session_id), None)  # what is sent to it next is refused at once, not once accepted
        return sent

    async def restore(self, user_id: str, session_id: str, key: str) -> Sent:
        """An accepted session_restored. Raises Refused."""
        event_id = self._event_id(user_id, session_id, "session_restored", key)
        return await self._delete_or_restore(intake.restore(Request(user_id, session_id, event_id, self._clock.now())))

    async def cancel(self, user_id: str, session_id: str, turn_id: str, key: str | None) -> Sent:
        """An accepted cancel_requested. Raises Refused."""
        event_id = self._event_id(user_id, session_id, "cancel_requested", key)
        event = intake.cancel(Request(user_id, session_id, event_id, self._clock.now()), turn_id)
        try:
            await self._model_of(user_id, session_id)
            intake.check_room(await self._heard.room(self._intake.unrecorded(user_id, session_id)))
        except Refused as refusal:
            refusal.event_id, refusal.turn_id = event.event_id, event.turn_id
            raise
        return await self._intake.publish(event)

    async def _delete_or_restore(self, event: Event) -> Sent:
        """Of a session that is there, or was: whether it is deleted now is history's to say."""
        user_id, session_id = event.user_id, event.session_id
        try:
            await self._model_of(user_id, session_id)
        except Refused as refusal:
            if refusal.code != "session_deleted":
                raise
        intake.check_room(await self._heard.room(self._intake.unrecorded(user_id, session_id)))
        return await self._intake.publish(event)

    def _event_id(self, user_id: str, session_id: str, event_type: str, key: str | None) -> str:
        return self._clock.new_id() if key is None else ids.event_id_of_key(user_id, session_id, event_type, key)

    async def _model_of(self, user_id: str, session_id: str) -> str | None:
        """The session's own model. Raises Refused(session_unknown), or not_accepted where history cannot say."""
        key = user_id, session_id
        if key not in self._known:
            try:
                self.know(user_id, await self._history.session(user_id, session_id))
            except HistoryAway as error:
                detail = "history does not answer, and this gateway does not know the session"
                raise Refused("not_accepted", detail, retry_after_s=RETRY_AFTER_S) from error
        return self._known[key]


def session_id_of(user_id: str, reference: str) -> str:
    """The session that a client means: an id, or name:<the user's own name>. Raises Refused(session_unknown)."""
    if reference.startswith(NAME_PREFIX):
        name = reference.removeprefix(NAME_PREFIX)
        if not 1 <= len(name.encode(errors="replace")) <= intake.MAX_NAME_BYTES:
            raise Refused("session_unknown", "a name has 1 to 200 bytes")
        return ids.session_id_of_name(user_id, name)
    return uuid_of(reference, "session_unknown")


def uuid_of(text: str, code: intake.UnknownCode) -> str:
    """An id as a client wrote it, in the one form that we write. Raises Refused with code."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise Refused(code, "not an id") from error
