"""Beside the road, history/importing: what one transaction does with part of a session that was recorded elsewhere.

Owns what an import may append: events of another log at the versions, with the bytes and times that they had there,
or a conversation's messages that the session lacks. All of a part or nothing of it. Must never append over an id that
is there with something else, nor leave a turn unfinished: it would run here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from contracts import ids
from contracts.envelope import Envelope, Event, read_event, write_event
from contracts.errors import ContractError
from contracts.events import ImportedMessage, schema_version_of
from contracts.imports import (
    EventDigest,
    ExportedEvent,
    ImportCheckQuery,
    ImportCode,
    ImportConversationQuery,
    ImportEventsQuery,
    ImportReply,
)
from services.history.draft import CoreFailed, Draft
from services.history.session import Session
from services.history.succession import check_succession


class ImportRefused(Exception):
    """Nothing of the part is appended. version: of the event that is at fault."""

    def __init__(self, code: ImportCode, reason: str, version: int = 0) -> None:
        super().__init__(reason)
        self.code: ImportCode = code
        self.reason = reason
        self.version = version


class Importing:
    """The imports of one transaction."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def check(self, query: ImportCheckQuery) -> ImportReply:
        """What would be refused of these, before anything of their session is appended."""
        session = self._session(query)
        try:
            for version, digest in enumerate(query.events, query.first):
                self._is_held(session, version, digest)
        except ImportRefused as refused:
            return _refusal(refused)
        more = query.first + len(query.events) - 1 > session.version
        return ImportReply(status="imported" if more else "unchanged", version=session.version)

    def events(self, query: ImportEventsQuery) -> ImportReply:
        """Another log's events, in version order."""
        session = self._session(query)
        held = session.version
        try:
            with self._draft.whole():
                self._append_all(session, query.events)
                if session.version > held and any(session.open_turns()):
                    raise ImportRefused("turn_unfinished", "a turn would be left unfinished", session.version)
        except CoreFailed as failed:
            return _refusal(failed.__cause__)
        return ImportReply(status="imported" if session.version > held else "unchanged", version=session.version)

    def conversation(self, query: ImportConversationQuery) -> ImportReply:
        """The messages that the session lacks; its head moves with them unless somebody has gone on here."""
        session = self._session(query)
        held = session.version
        try:
            with self._draft.whole():
                self._add_messages(session, query)
        except CoreFailed as failed:
            return _refusal(failed.__cause__)
        return ImportReply(status="imported" if session.version > held else "unchanged", version=session.version)

    def _session(self, query: ImportCheckQuery | ImportEventsQuery | ImportConversationQuery) -> Session:
        return self._draft.working.session(query.user_id, query.session_id)

    def _append_all(self, session: Session, events: Sequence[ExportedEvent]) -> None:
        busy = any(session.open_turns())
        brought: set[str] = set()
        for each in events:
            try:
                event = read_event(each.body.encode())
                if (event.user_id, event.session_id) != (session.user_id, session.session_id):
                    raise ContractError("event_parked", "it is of another user or session")
                if self._is_held(session, each.version, _digest_of(event)):
                    continue
                if busy:
                    raise ImportRefused("session_busy", "a turn of the session is unfinished here", each.version)
                self._check_cause(event, brought)
                check_succession(session, event)
            except ContractError as error:
                raise ImportRefused("unreadable", error.reason, each.version) from error
            if event.event_id in brought:
                raise ImportRefused("conflict", "its event_id comes twice", each.version)
            brought.add(event.event_id)
            self._draft.show(self._draft.append(session, event, each.recorded_at))

    def _is_held(self, session: Session, version: int, digest: EventDigest) -> bool:
        """Whether this very event is at this version here. Raises ImportRefused where something else is."""
        tx = self._draft.tx
        found = tx.outcome(session.user_id, digest.event_id)
        recorded = found is not None and found.type is not None and found.code is None
        if found is not None and recorded and found.position is not None:
            same = (found.session_id, found.version) == (session.session_id, version)
            body = tx.events_at([found.position])[found.position].body
            if same and hashlib.sha256(body).hexdigest() == digest.body_hash:
                return True
            raise ImportRefused("conflict", "its event_id is there with something else", version)
        if tx.owner(digest.event_id) is not None:
            raise ImportRefused("conflict", "its event_id is another user's", version)
        if version <= session.version:
            raise ImportRefused("conflict", "the session has another history here", version)
        return False

    def _check_cause(self, event: Event, brought: set[str]) -> None:
        """An event names as its cause one that is recorded in its own session, or comes before it in this part."""
        cause = event.envelope.causation_id
        if cause is None or cause in brought:
            return
        found = self._draft.tx.outcome(event.user_id, cause)
        if found is None or found.code is not None or found.session_id != event.session_id:
            raise ContractError("event_parked", "its causation_id is not an event of this session")

    def _add_messages(self, session: Session, query: ImportConversationQuery) -> None:
        if session.version == 0:
            self._append_own(session, "session_started", {"title": query.title} if query.title else {})
        elif session.deleted_at is not None:
            raise ImportRefused("session_deleted", "its user deleted the session", session.version)
        elif session.imported_from != query.source:
            raise ImportRefused("conflict", "the session was not imported from there", session.version)
        lacking = [each for each in query.messages if each.message_id not in session.messages]
        data: dict[str, Any] = {
            "source": query.source,
            "messages": [each.model_dump(mode="json", exclude_none=True) | _parent(each) for each in lacking],
        }
        if query.head is not None and session.head == session.imported_head != query.head:
            data["head"] = query.head
        if lacking or "head" in data:
            self._append_own(session, "session_imported", data)

    def _append_own(self, session: Session, event_type: str, data: dict[str, Any]) -> None:
        """An event of history's own: its id is the session's and the version's, so no retry makes it twice."""
        event = write_event(
            Envelope(
                event_id=ids.import_event_id_of(session.user_id, session.session_id, session.version + 1),
                type=event_type,
                schema_version=schema_version_of(event_type),
                user_id=session.user_id,
                session_id=session.session_id,
                occurred_at=self._draft.situation.now,
                data=data,
            )
        )
        try:
            check_succession(session, event)
        except ContractError as error:
            raise ImportRefused("unreadable", error.reason, session.version + 1) from error
        self._draft.show(self._draft.append(session, event))


def _digest_of(event: Event) -> EventDigest:
    return EventDigest(event_id=event.event_id, body_hash=hashlib.sha256(event.body).hexdigest())


def _parent(message: ImportedMessage) -> dict[str, str | None]:
    """A root says so: null is not left out."""
    return {"parent_id": message.parent_id}


def _refusal(error: BaseException | None) -> ImportReply:
    if isinstance(error, ImportRefused):
        return ImportReply(status="refused", code=error.code, reason=error.reason, version=error.version)
    return ImportReply(status="refused", code="unreadable", reason=f"{type(error).__name__} while importing", version=0)
