"""Step 6, history/arrivals (core): is a delivery from the intake what its subject says, and whose is it if it is not?

Owns reading one delivery into an event, and what can still be told of one that cannot be read. Must never do I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from contracts import ids, subjects
from contracts.base import UserId
from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from contracts.events import GATEWAY_WRITES, INFERENCE_WRITES, UserMessageSubmitted

_USER_ID: TypeAdapter[str] = TypeAdapter(UserId)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message of the intake stream, as it came."""

    sequence: int
    subject: str
    headers: dict[str, str]
    body: bytes

    @property
    def reply(self) -> str | None:
        """Where its outcome goes."""
        return self.headers.get(subjects.CHAT_REPLY)


@dataclass(frozen=True, slots=True)
class Sender:
    """Whose event it is that is set aside: by its own word where it could be read, else by headers and subject."""

    user_id: str
    session_id: str
    type: str
    event_id: str | None
    turn_id: str | None


def read_delivery(delivery: Delivery) -> Event:
    """Raises ContractError(event_parked) where the event is not what its subject and its own ids say."""
    event = read_event(delivery.body)
    if event.type not in GATEWAY_WRITES | INFERENCE_WRITES:
        raise ContractError("event_parked", f"{event.type} does not come from the intake")
    if delivery.subject != subjects.intake(event.user_id, event.session_id, event.type):
        raise ContractError("event_parked", "the subject is not the one that the envelope builds")
    if isinstance(event.data, UserMessageSubmitted):
        check_message_ids(event, event.data)
    return event


def check_message_ids(event: Event, data: UserMessageSubmitted) -> None:
    """Are they the ones that its own event_id gives? Raises ContractError(event_parked)."""
    turn_id = ids.turn_id_of(event.event_id)
    derived = (turn_id, ids.message_id_of(event.event_id), ids.answer_id_of(turn_id))
    if derived != (event.turn_id, data.message_id, data.answer_id):
        raise ContractError("event_parked", "turn_id, message_id or answer_id is not the derived one")


def sender_of(delivery: Delivery, event: Event | None) -> Sender | None:
    """Whose event this is; event: as it was read, if it was. Never raises: it is asked when all else has failed.

    None where the headers do not agree with the subject: nobody can be told.
    """
    if event is not None:
        return Sender(event.user_id, event.session_id, event.type, event.event_id, event.turn_id)
    try:
        address = subjects.parse_intake(delivery.subject)
        user_id = _USER_ID.validate_python(delivery.headers.get(subjects.CHAT_USER))
    except (ContractError, ValidationError):
        return None
    if subjects.token_of(user_id) != address.user_token or not _UUID.fullmatch(address.session_id):
        return None
    return Sender(
        user_id=user_id,
        session_id=address.session_id,
        type=address.type,
        event_id=_uuid(delivery.headers.get(subjects.CHAT_EVENT)),
        turn_id=_uuid(delivery.headers.get(subjects.CHAT_TURN)),
    )


def _uuid(text: str | None) -> str | None:
    return text if text is not None and _UUID.fullmatch(text) else None
