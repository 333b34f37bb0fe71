"""Beside the road, history/tools: `chatlog export`: sessions of a user out of the log, for another Chatlog or to read.

Owns what is exported: each session up to its last moment without an unfinished turn, so that an import starts nothing,
and a later export of the same session goes on where this one ended. Holds one session at a time in memory. Must never
write to the log: it reads one snapshot of it, whether the stack runs or not.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.events import TERMINALS
from services.history.log.reader import read_only
from services.history.tools.lines import Close, End, EventLine, Header, write_line
from services.history.tools.markdown import page
from services.history.views.fold import Recorded
from services.history.views.rows import Rows

Write = Callable[[bytes], object]


class ExportFailed(Exception):
    """The export cannot be made. The text is one clear line."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what was not yet: events since an unfinished turn began, of so many sessions."""

    sessions: int = 0
    events: int = 0
    unfinished: int = 0
    left_out: int = 0

    def with_session(self, events: int, left_out: int) -> Exported:
        return Exported(
            self.sessions + bool(events),
            self.events + events,
            self.unfinished + bool(left_out),
            self.left_out + left_out,
        )


class Source:
    """One snapshot of a user's part of the log. damaged: the positions of the events read so far whose bytes are not
    those that were recorded.
    """

    def __init__(self, connection: sqlite3.Connection, user_id: str) -> None:
        self._connection = connection
        self.user_id = user_id
        self.damaged: list[int] = []

    def sessions(self) -> Iterator[str]:
        rows = self._connection.execute(
            "SELECT DISTINCT session_id FROM events WHERE user_id = ? ORDER BY session_id", (self.user_id,)
        )
        return (row[0] for row in rows)

    def settled(self, session_id: str) -> tuple[int, int]:
        """(the session's last version at which no turn was unfinished, its last version)."""
        unfinished: set[str] = set()
        settled = last = 0
        for last, event_type, turn_id in self._connection.execute(
            "SELECT version, type, turn_id FROM events WHERE user_id = ? AND session_id = ? ORDER BY version",
            (self.user_id, session_id),
        ):
            if event_type == "user_message_submitted":
                unfinished.add(turn_id)
            elif event_type in TERMINALS:
                unfinished.discard(turn_id)
            settled = settled if unfinished else last
        return settled, last

    def events(self, session_id: str, until: int) -> Iterator[EventLine]:
        for position, body_hash, *line in self._connection.execute(
            "SELECT position, body_hash, version, recorded_at, body FROM events"
            " WHERE user_id = ? AND session_id = ? AND version <= ? ORDER BY version",
            (self.user_id, session_id, until),
        ):
            event = EventLine(*line)
            if hashlib.sha256(event.body).digest() != body_hash:
                self.damaged.append(position)
            yield event


@contextmanager
def opened(log: Path, user_id: str) -> Iterator[Source]:
    """The log as it is now. Raises ExportFailed."""
    if not log.exists():
        raise ExportFailed(f"there is no log at {log}")
    try:
        connection = read_only(log)
        try:
            connection.execute("BEGIN")
            yield Source(connection, user_id)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise ExportFailed(f"{log} cannot be read: {error}") from error


def export_lines(source: Source, session_ids: Iterator[str], write: Write) -> Exported:
    """JSON Lines: everything that an import needs to make the same sessions. Raises ExportFailed."""
    done = Exported()
    write(write_line(Header(user_id=source.user_id)))
    for session_id in session_ids:
        until, last = source.settled(session_id)
        state = Rows()
        for line in source.events(session_id, until):
            fold_line(state, line)
            write(write_line(line))
        if until:
            state_hash = state.state_hash(source.user_id, session_id)
            write(write_line(Close(session_id=session_id, events=until, state_hash=state_hash)))
        done = done.with_session(until, last - until)
    write(write_line(End(sessions=done.sessions, events=done.events)))
    return done


def export_markdown(source: Source, session_ids: Iterator[str], write: Write) -> Exported:
    """One page for people, a chapter for each session that is not deleted. Raises ExportFailed."""
    done = Exported()
    for session_id in session_ids:
        until, last = source.settled(session_id)
        state = Rows()
        for line in source.events(session_id, until):
            fold_line(state, line)
        there = [row for row in state.of("sessions", source.user_id, session_id) if row["deleted_at"] is None]
        for session in there:
            write(page(session, state.of("messages", source.user_id, session_id)).encode())
        done = done.with_session(until if there else 0, last - until)
    return done


def fold_line(state: Rows, line: EventLine) -> None:
    """Raises ExportFailed for an event that this version cannot read."""
    try:
        event = read_event(line.body)
    except ContractError as error:
        raise ExportFailed(f"version {line.version} of a session cannot be read: {error.reason}") from error
    # A place in the log of its own is not part of a session's state: the version orders its events as well.
    state.fold(Recorded(line.version, line.version, line.recorded_at, event))
