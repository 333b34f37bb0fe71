"""Step 3, gateway/intake (core): request + now + ids -> an event for the intake, or a refusal.

Owns what a gateway writes and what it refuses before anything is published. An event's data holds only what the client
sent and ids derived from it, so that a retry with the same key has the same data_hash. Must never read a clock, make an
id or ask anybody: what is known is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from contracts import events, ids
from contracts.base import KEY_BYTES
from contracts.envelope import Envelope, Event, write_event
from contracts.errors import Code, ContractError

GatewayType = Literal[
    "session_started",
    "session_renamed",
    "session_configured",
    "session_deleted",
    "session_restored",
    "user_message_submitted",
    "cancel_requested",
]

UnknownCode = Literal["session_unknown", "turn_unknown"]

# Of a session's name, as of a key.
MAX_NAME_BYTES = KEY_BYTES
# A long pasted document fits; a model's window does not hold more than this anyway.
MAX_TEXT_CHARS = 100_000
# Turns that may wait for one model: at 10 s an answer, the last one already waits for hours.
MAX_QUEUED_TURNS = 1000
# Sends of one session that history has not recorded, as while it is down. Which turns of a session wait is history's
# to know and to refuse.
MAX_UNRECORDED_PER_SESSION = 20
# From here on the intake takes no messages, so that workers' events always fit.
MAX_INTAKE_SHARE = 0.8
MIN_DISK_FREE_BYTES = 512 * 1024 * 1024
# Of the models that are there, a refusal names so many; GET /v1/models lists them all.
MODELS_TOLD = 20
# What a refused client is asked to wait.
RETRY_AFTER_S = 5

_MESSAGE_FIELDS = ("parent_id", "text", "model", "options", "on_busy")
_SESSION_FIELDS = ("name", "title", "model", "system", "on_busy")


class Refused(Exception):
    """What was asked is not done: a code of contracts/errors, words for people, and which send it was."""

    def __init__(
        self,
        code: Code,
        detail: str = "",
        *,
        retry_after_s: int | None = None,
        event_id: str | None = None,
        turn_id: str | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.event_id = event_id
        self.turn_id = turn_id


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, for which session, when, and the id that the event will have."""

    user_id: str
    session_id: str
    event_id: str
    now: str


@dataclass(frozen=True, slots=True)
class Room:
    """How full everything is, as this gateway has heard. None: nothing was heard."""

    intake_share: float | None
    disk_free_bytes: int | None
    queued_turns: int
    unrecorded_in_session: int


def message(request: Request, given: Mapping[str, Any]) -> Event:
    """user_message_submitted from the client's own JSON. Raises Refused."""
    text = given.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Refused("bad_request", "text: empty")
    if len(text) > MAX_TEXT_CHARS:
        raise Refused("too_long", f"text: more than {MAX_TEXT_CHARS} characters")
    turn_id = ids.turn_id_of(request.event_id)
    derived = {"message_id": ids.message_id_of(request.event_id), "answer_id": ids.answer_id_of(turn_id)}
    return _event(request, "user_message_submitted", derived | _kept(given, _MESSAGE_FIELDS), turn_id)


def session(request: Request, given: Mapping[str, Any]) -> Event:
    """session_started from the client's own JSON. Raises Refused."""
    return _event(request, "session_started", _kept(given, _SESSION_FIELDS), None)


def rename(request: Request, given: Mapping[str, Any]) -> Event:
    """session_renamed from the client's own JSON. Raises Refused."""
    return _event(request, "session_renamed", _kept(given, ("title",)), None)


def configure(request: Request, given: Mapping[str, Any]) -> Event:
    """session_configured from the client's own JSON. Raises Refused."""
    return _event(request, "session_configured", _kept(given, ("on_busy",)), None)


def delete(request: Request) -> Event:
    """session_deleted. Raises Refused."""
    return _event(request, "session_deleted", {}, None)


def restore(request: Request) -> Event:
    """session_restored. Whether it is still kept is history's to say. Raises Refused."""
    return _event(request, "session_restored", {}, None)


def cancel(request: Request, turn_id: str) -> Event:
    """cancel_requested. Whether there is such a turn, and whether it has ended, is history's to say. Raises Refused."""
    return _event(request, "cancel_requested", {}, turn_id)


def check_room(room: Room) -> None:
    """Refuse a message while there is no room for it. Raises Refused."""
    if room.intake_share is not None and room.intake_share >= MAX_INTAKE_SHARE:
        raise Refused("not_accepted", "the intake is nearly full", retry_after_s=RETRY_AFTER_S)
    if room.disk_free_bytes is not None and room.disk_free_bytes < MIN_DISK_FREE_BYTES:
        raise Refused("not_accepted", "the disk is nearly full", retry_after_s=RETRY_AFTER_S)
    if room.queued_turns >= MAX_QUEUED_TURNS:
        raise Refused("queue_full", f"{room.queued_turns} turns wait for this model", retry_after_s=RETRY_AFTER_S)
    if room.unrecorded_in_session >= MAX_UNRECORDED_PER_SESSION:
        raise Refused(
            "queue_full",
            f"{room.unrecorded_in_session} messages of this session are not recorded yet",
            retry_after_s=RETRY_AFTER_S,
        )


def check_model(model: str | None, named: frozenset[str], *, heard: bool) -> None:
    """Refuse a model that no worker has named, once one is heard, and any where none has one. Raises Refused."""
    offered = model is None or not named.isdisjoint((model, f"{model}:latest"))  # Ollama's `m` is `m:latest`
    if heard and not named:
        raise Refused("model_not_found", "no worker offers a model")
    if heard and not offered:
        there = ", ".join(sorted(named)[:MODELS_TOLD])
        more = f" and {len(named) - MODELS_TOLD} more" if len(named) > MODELS_TOLD else ""
        raise Refused("model_not_found", f"no worker offers {model}; there is {there}{more}")


def _kept(given: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields that the client sent, as it sent them: left out and null differ."""
    return {name: given[name] for name in fields if name in given}


def _event(request: Request, event_type: GatewayType, payload: dict[str, Any], turn_id: str | None) -> Event:
    try:
        return write_event(
            Envelope(
                event_id=request.event_id,
                type=event_type,
                schema_version=events.schema_version_of(event_type),
                user_id=request.user_id,
                session_id=request.session_id,
                turn_id=turn_id,
                occurred_at=request.now,
                data=payload,
            )
        )
    except ContractError as error:
        raise Refused("bad_request", error.reason) from error
