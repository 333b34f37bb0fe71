"""Imports: what an operator gives history to append, and the shapes of its answers.

Owns request and reply of each chat.operator.import_* query. Each names one session of one user and holds a bounded
part of it. Must never write anything.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Contract, Key, Text, Time, UserId, Uuid
from contracts.events import MESSAGES_PER_EVENT, Hash, ImportedMessage

# Digests of events in one question: some 200 KiB.
DIGESTS_PER_QUERY = 2000

# Why nothing of a session was imported. unreadable: an event that this version cannot read, or that cannot follow what
# comes before it. conflict: an id is there with something else: another user's event, another history of this session.
ImportCode = Literal["unreadable", "conflict", "session_busy", "session_deleted", "turn_unfinished", "too_long"]

Version = Annotated[int, Field(ge=1)]


class EventDigest(Contract):
    """What an event is known by: its id, and the SHA-256 of its bytes."""

    event_id: Uuid
    body_hash: Hash


class ExportedEvent(Contract):
    """An event as another log recorded it; body: its bytes."""

    version: Version
    recorded_at: Time
    body: Text


class _OfSession(Contract):
    user_id: UserId
    session_id: Uuid
    by: Key  # who says so, for history's log


class ImportCheckQuery(_OfSession):
    """Could these events be appended, or are they there? first: the version of the first one."""

    first: Version
    events: Annotated[list[EventDigest], Field(max_length=DIGESTS_PER_QUERY)]


class ImportEventsQuery(_OfSession):
    """Append these, in one transaction. Those that are there, at the same version with the same bytes, stay."""

    events: list[ExportedEvent]


class ImportConversationQuery(_OfSession):
    """Add those of these messages that the session lacks, in one transaction; it begins where it is not there.

    head: with the last part of a conversation: the message that the next one follows, unless somebody has gone on here.
    """

    source: Literal["chatgpt"]
    title: Annotated[Text, Field(max_length=200)] | None
    messages: Annotated[list[ImportedMessage], Field(max_length=MESSAGES_PER_EVENT)]
    head: Uuid | None


class ImportReply(Contract):
    """version: of the session afterwards; refused: of the event that is at fault, where one is."""

    status: Literal["imported", "unchanged", "refused"]
    version: int
    code: ImportCode | None = None
    reason: str | None = None


IMPORT_QUERIES: dict[str, tuple[type[Contract], type[Contract]]] = {
    "import_check": (ImportCheckQuery, ImportReply),
    "import_events": (ImportEventsQuery, ImportReply),
    "import_conversation": (ImportConversationQuery, ImportReply),
}
