"""`chatlog import`: the sessions of a file, part by part, to a running history.

Owns how a session is cut into parts: bounded, and each ends where no turn is unfinished, for a turn that is appended
without its end would run here. Must never send anything of a session before history has said that nothing of it is in
the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from contracts.base import compact
from contracts.events import MESSAGES_PER_EVENT, ImportedMessage
from contracts.imports import (
    DIGESTS_PER_QUERY,
    ImportCheckQuery,
    ImportConversationQuery,
    ImportEventsQuery,
    ImportReply,
)
from services.history.tools.exported_file import FileEvent, FileSession, Problem
from services.operator.chatgpt import SOURCE, Conversation
from services.operator.queries import ask, who
from services.runtime.bus import Bus
from services.runtime.streams import MAX_PAYLOAD_BYTES

# A part is as large as history appends without holding up those who chat for long.
PART_BYTES = 512 * 1024
# A session in which some turn is always unfinished makes a larger one; JSON's escapes must fit one message too.
LARGEST_PART_BYTES = MAX_PAYLOAD_BYTES * 3 // 4
# A part is a transaction, behind those that are under way.
ASK_TIMEOUT_S = 60.0


@dataclass
class Sent:
    """What became of a file's sessions; problems: a line for each that was refused."""

    imported: int = 0
    unchanged: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, replies: list[ImportReply]) -> None:
        if any(reply.status == "imported" for reply in replies):
            self.imported += 1
        else:
            self.unchanged += 1


async def send_sessions(bus: Bus, sessions: Iterable[FileSession | Problem], sent: Sent) -> None:
    """Each whole session of an exported file. Raises AskFailed, and what reading the file raises."""
    for session in sessions:
        if isinstance(session, Problem):
            sent.problems.append(f"line {session.line}: {session.reason}")
            continue
        refused, replies = await _send_session(bus, session)
        if refused is None:
            sent.count(replies)
        else:
            line = _line_of(session, refused.version)
            sent.problems.append(f"line {line}: session {session.session_id}: {refused.code}: {refused.reason}")


async def send_conversation(bus: Bus, user_id: str, conversation: Conversation, sent: Sent) -> None:
    """One conversation of another service. Raises AskFailed."""
    replies: list[ImportReply] = []
    parts = list(message_parts(conversation.messages))
    for number, part in enumerate(parts, 1):
        query = ImportConversationQuery(
            user_id=user_id,
            session_id=conversation.session_id,
            by=who(),
            source=SOURCE,
            title=conversation.title,
            messages=part,
            head=conversation.head if number == len(parts) else None,
        )
        reply = await ask(bus, "import_conversation", query, ImportReply, ASK_TIMEOUT_S)
        if reply.status == "refused":
            sent.problems.append(f"session {conversation.session_id}: {reply.code}: {reply.reason}")
            return
        replies.append(reply)
    sent.count(replies)


async def _send_session(bus: Bus, session: FileSession) -> tuple[ImportReply | None, list[ImportReply]]:
    """(why not, if it is refused; what history said of each part)."""
    replies: list[ImportReply] = []
    parts = list(event_parts(session.events))
    for part in parts:
        if sum(len(event.exported.body) for event in part) > LARGEST_PART_BYTES:
            reason = "too much is said here without a moment in which no turn is unfinished"
            version = part[0].exported.version
            return ImportReply(status="refused", version=version, code="too_long", reason=reason), replies
    named = {"user_id": session.user_id, "session_id": session.session_id, "by": who()}
    for start in range(0, len(session.events), DIGESTS_PER_QUERY):
        digests = [event.digest for event in session.events[start : start + DIGESTS_PER_QUERY]]
        reply = await ask(bus, "import_check", ImportCheckQuery(**named, first=start + 1, events=digests), ImportReply)
        if reply.status == "refused":
            return reply, replies
    for part in parts:
        query = ImportEventsQuery(**named, events=[event.exported for event in part])
        reply = await ask(bus, "import_events", query, ImportReply, ASK_TIMEOUT_S)
        if reply.status == "refused":
            return reply, replies
        replies.append(reply)
    return None, replies


def event_parts(events: list[FileEvent]) -> Iterator[list[FileEvent]]:
    """Cut where no turn is unfinished, as soon as a part is large enough."""
    part: list[FileEvent] = []
    size = 0
    for event in events:
        part.append(event)
        size += len(event.exported.body)
        if size >= PART_BYTES and event.settled:
            yield part
            part, size = [], 0
    if part:
        yield part


def message_parts(messages: list[ImportedMessage]) -> Iterator[list[ImportedMessage]]:
    """Each becomes one event: so many messages, and so many bytes unless it is a single one."""
    part: list[ImportedMessage] = []
    size = 0
    for message in messages:
        more = len(compact(message.model_dump(mode="json")))
        if part and (size + more > PART_BYTES or len(part) == MESSAGES_PER_EVENT):
            yield part
            part, size = [], 0
        part.append(message)
        size += more
    if part:
        yield part


def _line_of(session: FileSession, version: int) -> int:
    """Of the event at fault, or of the session's first one."""
    return session.events[max(version, 1) - 1].line
