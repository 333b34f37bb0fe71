"""Beside the road, history/tools (core): an exported file, session by session, judged before anything of it is sent.

Owns what a file must hold: whole sessions whose events can follow each other and make the state that the file says. A
session with a line that cannot be read is a problem that names the line; the others are not held up by it. Holds one
session at a time in memory. Must never change an event's bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.imports import EventDigest, ExportedEvent
from services.history.session import Session, evolve
from services.history.succession import check_succession
from services.history.tools.lines import Close, End, EventLine, Header, read_line
from services.history.views.fold import Recorded
from services.history.views.rows import Rows


class NotAnExport(Exception):
    """The file is not one, or not all of one. The text names the line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A session of the file that cannot be imported, and the line that says why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class FileEvent:
    """settled: no turn is unfinished after it, so a part may end here."""

    line: int
    exported: ExportedEvent
    digest: EventDigest
    settled: bool


@dataclass(frozen=True, slots=True)
class FileSession:
    user_id: str
    session_id: str
    events: list[FileEvent]


@dataclass
class _Gathered:
    """The session whose lines are being read."""

    user_id: str
    state: Session | None = None
    rows: Rows = field(default_factory=Rows)
    events: list[FileEvent] = field(default_factory=list)
    problem: Problem | None = None

    def add(self, number: int, line: EventLine) -> None:
        """Raises ContractError for an event that cannot follow those before it."""
        event = read_event(line.body)
        state = self.state or Session(self.user_id, event.session_id)
        if (event.user_id, event.session_id) != (state.user_id, state.session_id):
            raise ContractError("event_parked", "an event of another user or session")
        if line.version != state.version + 1:
            raise ContractError("event_parked", f"version {line.version} after {state.version}")
        check_succession(state, event)
        # A place in the log of its own is not part of a session's state: the version orders its events as well.
        self.state = evolve(state, event, line.version)
        self.rows.fold(Recorded(line.version, line.version, line.recorded_at, event))
        digest = EventDigest(event_id=event.event_id, body_hash=hashlib.sha256(line.body).hexdigest())
        exported = ExportedEvent(version=line.version, recorded_at=line.recorded_at, body=line.body.decode())
        self.events.append(FileEvent(number, exported, digest, not any(self.state.open_turns())))

    def close(self, number: int, close: Close) -> FileSession | Problem:
        if self.problem is not None:
            return self.problem
        if self.state is None or (self.state.session_id, len(self.events)) != (close.session_id, close.events):
            return Problem(number, "the session has not as many events as its last line says")
        if not self.events[-1].settled:
            return Problem(number, "a turn of the session is unfinished")
        if self.rows.state_hash(self.user_id, close.session_id) != close.state_hash:
            return Problem(number, "the session's events do not make the state that its last line says")
        return FileSession(self.user_id, close.session_id, self.events)


def sessions_of(lines: Iterable[bytes], expected: str | None = None) -> Iterator[FileSession | Problem]:
    """Each session, or why it cannot be imported. expected: the user whose they are.

    Raises NotAnExport for another file or user, and where it ends early.
    """
    numbered = iter(enumerate(lines, 1))
    user_id = _header(next(numbered, (1, b""))[1])
    if expected not in (None, user_id):
        raise NotAnExport(f"line 1: these are the sessions of {user_id}, and keep their user")
    gathered = _Gathered(user_id)
    closed = events = 0
    for number, raw in numbered:
        try:
            line = read_line(raw)
            if isinstance(line, EventLine) and gathered.problem is None:
                gathered.add(number, line)
        except ContractError as error:
            gathered.problem = gathered.problem or Problem(number, error.reason)
            continue
        if isinstance(line, Close):
            closed, events = closed + 1, events + line.events
            yield gathered.close(number, line)
            gathered = _Gathered(user_id)
        elif isinstance(line, End):
            if (line.sessions, line.events) != (closed, events) or next(numbered, None) is not None:
                raise NotAnExport(f"line {number}: the file does not hold what its last line says")
            return
    raise NotAnExport("the file ends before its last line: it was cut")


def _header(raw: bytes) -> str:
    """Whose sessions they are."""
    try:
        header = read_line(raw)
    except ContractError:
        header = None
    if not isinstance(header, Header):
        raise NotAnExport("line 1 is not that of an export of this version of Chatlog")
    return header.user_id
