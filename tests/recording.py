"""A recorder on a real SQLite log, without processes or a broker: given deliveries, when it records, then these rows.

Owns the log in a test's folder, a cursor that moves by one for each delivery, and ids and times that can be foreseen.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from contracts import subjects
from contracts.envelope import Event
from contracts.imports import ImportReply
from contracts.turns import OutcomeMessage, Word
from services.history.arrivals import Delivery
from services.history.context import ContextLimits
from services.history.decisions import Rules
from services.history.draft import Bounds, Situation
from services.history.effects import Effect, Queue, Show, TellSender, TellWorkers
from services.history.importing import Importing
from services.history.log.port import Cursor, Stored, StoredOutcome
from services.history.log.sqlite import SqliteLog
from services.history.recorder import Committed, Recorder
from services.history.scheduler import OpenTurn
from tests.conversing import MODEL, USER, claim, make_event, message, new_id, session_started

E = TypeVar("E", bound=Effect)

NOW = "2026-11-21T10:00:00.000Z"
REPLY = "_INBOX.sender"
DIGEST = "9f4c7a2e11d0"
STREAM = "2026-11-20T00:00:00Z"
RULES = Rules(attempts=3, waiting_per_session=20, keep_deleted_s=60)
BOUNDS = Bounds(RULES, ContextLimits(messages=200, reserve=0.25), None)


def delivered(event: Event, sequence: int = 0, *, reply: str | None = REPLY, **headers: str) -> Delivery:
    """An event as it comes from the intake. headers: what the publisher said otherwise."""
    said = {subjects.CHAT_EVENT: event.event_id, subjects.CHAT_USER: event.user_id}
    if event.turn_id is not None:
        said[subjects.CHAT_TURN] = event.turn_id
    if reply is not None:
        said[subjects.CHAT_REPLY] = reply
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    subject = subjects.intake(event.user_id, event.session_id, event.type)
    return Delivery(sequence, subject, {**said, **named}, event.body)


def cancel(event: Event) -> Event:
    """A user's stop of the turn that this message opened."""
    return make_event("cancel_requested", event.session_id, {}, user_id=event.user_id, turn_id=event.turn_id)


def ended(of: Event, event_type: str, attempt: int, **data: Any) -> Event:
    """A worker's answer_failed or answer_cancelled."""
    code = "cancelled" if event_type == "answer_cancelled" else "model_error"
    whole = {"attempt": attempt, "code": code, "last_index": 1, **data}
    return make_event(event_type, of.session_id, whole, user_id=of.user_id, turn_id=of.turn_id)


def only(values: list[Any]) -> Any:
    [value] = values
    return value


@dataclass
class Scene:
    """One log and its recorder; what it did outside is in effects, the latest call's in last."""

    folder: Path
    bounds: Bounds = BOUNDS
    cached_sessions: int = 100
    effects: list[Effect] = field(default_factory=list)
    last: tuple[Effect, ...] = ()
    now: str = NOW
    model: str | None = MODEL
    room: int = 1000
    window: int = 4096
    alive: Callable[[str, str], bool] = lambda turn, run: False
    sequence: int = 0

    def __post_init__(self) -> None:
        self.open()

    @property
    def path(self) -> Path:
        return self.folder / "log.db"

    def open(self) -> None:
        self.log = SqliteLog(self.path, "e" * 32, NOW)
        self.recorder = Recorder(self.log, self.bounds, new_id, self.cached_sessions)
        self.sequence = self.recorder.cursor.sequence

    def reopen(self) -> None:
        """As after a restart: nothing is in memory."""
        self.log.close()
        self.open()

    def situation(self, catching_up: bool = False) -> Situation:
        return Situation(
            self.now,
            catching_up,
            self.alive,
            self.model,
            window_of=lambda model: self.window,
            digest_of=lambda model: DIGEST,
            full_name=lambda model: model,
            room_of=lambda model: self.room,
        )

    def take(self, *arrivals: Event | Delivery, catching_up: bool = False) -> tuple[Effect, ...]:
        """One batch."""
        deliveries = [arrival if isinstance(arrival, Delivery) else delivered(arrival) for arrival in arrivals]
        after = Cursor(STREAM, self.sequence + len(deliveries))
        committed = self.recorder.record(deliveries, after, self.situation(catching_up))
        self.sequence = after.sequence
        return self.did(committed)

    def did(self, committed: Committed) -> tuple[Effect, ...]:
        self.last = committed.effects
        self.effects += committed.effects
        return committed.effects

    def do(self, work: Callable[[Importing], ImportReply]) -> ImportReply:
        """One transaction of an import."""
        committed = self.recorder.import_into(work, self.situation())
        self.did(committed)
        assert committed.imported is not None
        return committed.imported

    def end(self, turns: list[tuple[OpenTurn, str]]) -> tuple[Effect, ...]:
        return self.did(self.recorder.end_turns(turns, self.situation()))

    def start_waiting(self) -> tuple[Effect, ...]:
        return self.did(self.recorder.start_waiting(self.situation()))

    def requeue(self) -> list[Queue]:
        """What the queue would be given again."""
        active = [turn for turn in self.recorder.open_turns() if turn.active]
        return [e for e in self.did(self.recorder.requeue(active, self.situation())) if isinstance(e, Queue)]

    def say(self, *arrivals: Event | Delivery, catching_up: bool = False) -> OutcomeMessage:
        """What the last sender was told."""
        self.take(*arrivals, catching_up=catching_up)
        return self.of(TellSender)[-1].outcome

    def of(self, kind: type[E]) -> list[E]:
        """The latest call's effects of this kind."""
        return [effect for effect in self.last if isinstance(effect, kind)]

    def words(self) -> list[Word]:
        return [effect.word for effect in self.of(TellWorkers)]

    def shown(self) -> list[bytes]:
        return [effect.frame for effect in self.of(Show)]

    def claim(self, said: Event, run: str, *, catching_up: bool = False) -> tuple[Effect, ...]:
        return self.take(claim(said.session_id, str(said.turn_id), run, user_id=said.user_id), catching_up=catching_up)

    def running(self, session_id: str, text: str = "hello", *, user_id: str = USER) -> tuple[Event, str]:
        """A new turn whose first attempt runs: its message and the run."""
        said, run = message(session_id, text, user_id=user_id), new_id()
        self.take(said)
        self.claim(said, run)
        return said, run

    @contextmanager
    def look(self) -> Iterator[sqlite3.Connection]:
        """The log as another process sees it."""
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            yield connection
        finally:
            connection.close()

    def sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.look() as connection:
            return connection.execute(statement, parameters).fetchall()

    def types(self, session_id: str) -> list[str]:
        return [row[0] for row in self.sql("SELECT type FROM events WHERE session_id = ? ORDER BY version", session_id)]

    def parked(self) -> list[tuple[Any, ...]]:
        return self.sql("SELECT sequence, subject, headers, body, reason FROM parked ORDER BY parked_id")

    def outcome_in_log(self, user_id: str, event_id: str) -> StoredOutcome | None:
        """What the log says became of this event."""
        with self.log.look() as tx:
            return tx.outcome(user_id, event_id)

    def rows(self, user_id: str, session_id: str) -> list[Stored]:
        with self.log.look() as tx:
            return list(tx.session_rows(user_id, session_id))


@contextmanager
def scene(folder: Path, **options: Any) -> Iterator[Scene]:
    """A scene, closed at the end."""
    made = Scene(folder, **options)
    try:
        yield made
    finally:
        made.log.close()


def begin(on: Scene, user_id: str = USER) -> str:
    """A new session's id."""
    session_id = new_id()
    on.take(session_started(session_id, user_id=user_id))
    return session_id
