"""Beside the road, history/succession (core): may an event of another log follow what this session's log says?

Owns the rules that keep a file from being appended that no history wrote: derived ids, references that are there, turns
that begin, run and end once. decide has no say in it: the other log decided. Must never change the state.
"""

from __future__ import annotations

from contracts import ids
from contracts.envelope import Event
from contracts.errors import ContractError
from contracts.events import (
    AnswerStarted,
    ContextAssembled,
    EventData,
    SessionConfigured,
    SessionDeleted,
    SessionImported,
    SessionRenamed,
    SessionRestored,
    SessionStarted,
    TurnClaimed,
    UserMessageSubmitted,
)
from services.history.arrivals import check_message_ids
from services.history.session import Session, Turn


def check_succession(session: Session, event: Event) -> None:
    """Raises ContractError(event_parked) where the event cannot be the session's next one."""
    data = event.data
    _check_lifetime(session, data)
    if isinstance(data, TurnClaimed):
        raise _wrong("a claim is never recorded")
    if isinstance(data, UserMessageSubmitted):
        _check_message(session, event, data)
    elif isinstance(data, SessionImported):
        _check_imported(session, event, data)
    elif event.turn_id is not None:
        _check_turn(session, event)


def _check_lifetime(session: Session, data: EventData) -> None:
    """A session begins first, and again only once it is deleted; then it may be restored, and what ran in it ends."""
    is_there = session.version > 0 and session.deleted_at is None
    if isinstance(data, SessionStarted):
        follows = not is_there
    elif isinstance(data, SessionRestored):
        follows = session.deleted_at is not None
    elif isinstance(data, SessionRenamed | SessionConfigured | SessionDeleted | SessionImported | UserMessageSubmitted):
        follows = is_there
    else:
        follows = session.version > 0
    if not follows:
        raise _wrong("the session has not begun, is deleted, or is not")


def _check_message(session: Session, event: Event, data: UserMessageSubmitted) -> None:
    check_message_ids(event, data)
    parent = session.messages.get(data.parent_id) if data.parent_id is not None else None
    if data.parent_id is not None and (parent is None or parent.role != "assistant"):
        raise _wrong("parent_id is not an answer of this session")
    if data.message_id in session.messages or data.answer_id in session.messages:
        raise _wrong("its messages are there already")


def _check_imported(session: Session, event: Event, data: SessionImported) -> None:
    if event.event_id != ids.import_event_id_of(event.user_id, event.session_id, session.version + 1):
        raise _wrong("event_id is not the derived one")
    brought: set[str] = set()
    for each in data.messages:
        if each.message_id in session.messages or each.message_id in brought:
            raise _wrong("a message is there already")
        if each.parent_id is not None and each.parent_id not in session.messages and each.parent_id not in brought:
            raise _wrong("a message's parent is not there before it")
        brought.add(each.message_id)
    if data.head is not None and data.head not in session.messages and data.head not in brought:
        raise _wrong("head is not a message of this session")


def _check_turn(session: Session, event: Event) -> None:
    turn = session.turns.get(str(event.turn_id))
    if turn is None or turn.phase == "ended":
        raise _wrong("its turn is not there, or has ended")
    data = event.data
    if isinstance(data, ContextAssembled):
        _check_context(session, turn, event, data)
    elif isinstance(data, AnswerStarted) and not _may_begin(turn, data):
        raise _wrong("its turn cannot begin this attempt")


def _may_begin(turn: Turn, data: AnswerStarted) -> bool:
    return turn.phase != "waiting" and data.attempt == turn.attempt + 1 and data.run not in turn.runs


def _check_context(session: Session, turn: Turn, event: Event, data: ContextAssembled) -> None:
    if turn.phase != "waiting" or event.event_id != ids.context_event_id_of(turn.turn_id):
        raise _wrong("its turn has a context, or event_id is not the derived one")
    if any(message_id not in session.messages for message_id in data.message_ids):
        raise _wrong("a message of the context is not there")


def _wrong(reason: str) -> ContractError:
    return ContractError("event_parked", reason)
