"""The log as its readers see it: each committed row is checked once, and folded beside history's own cache.

Owns the invariants of the log: dense positions, versions and attempts, one end for each turn, by its latest attempt,
one active turn for each session, a cache that equals a fold.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from contracts.envelope import Event
from contracts.events import (
    AnswerCancelled,
    AnswerCompleted,
    AnswerFailed,
    AnswerStarted,
    ContextAssembled,
    UserMessageSubmitted,
)
from contracts.frames import event_frame
from services.history.log.sqlite import stored_row
from services.history.session import Session, Turn, evolve
from tests.folding import SessionView
from tests.simulation.client import Client
from tests.simulation.history import History

Key = tuple[str, str]


class Ledger:
    """What was committed so far."""

    def __init__(self, path: Path) -> None:
        self._log = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
        self.position = 0
        self.sessions: dict[Key, Session] = {}
        self.frames: dict[Key, list[bytes]] = {}
        self.messages: list[str] = []  # event_ids

    def close(self) -> None:
        self._log.close()

    def read(self, *, catching_up: bool, alive: Callable[[str], bool]) -> None:
        """What is new. catching_up: then every claim is recorded, and an end whatever its attempt (design D2)."""
        rows = self._log.execute(
            "SELECT user_id, session_id, position, version, recorded_at, body FROM events WHERE position > ?"
            " ORDER BY position",
            (self.position,),
        ).fetchall()
        for user_id, session_id, *row in rows:
            stored = stored_row(*row)
            assert stored.position == self.position + 1
            self.position = stored.position
            session = self.sessions.setdefault((user_id, session_id), Session(user_id, session_id))
            assert stored.version == session.version + 1
            if stored.event.turn_id is not None:
                self._check_turn(session, stored.event, catching_up, alive)
            evolve(session, stored.event, stored.position)
            frame = event_frame(stored.event.body, session_id, stored.position, stored.version, stored.recorded_at)
            self.frames.setdefault((user_id, session_id), []).append(frame)

    def _check_turn(self, session: Session, event: Event, catching_up: bool, alive: Callable[[str], bool]) -> None:
        turn = session.turns.get(str(event.turn_id))
        if isinstance(event.data, UserMessageSubmitted):
            assert turn is None, "one send, two turns"
            self.messages.append(event.event_id)
            return
        assert turn is not None
        assert turn.phase != "ended", f"{event.type} after the end of its turn"
        if isinstance(event.data, ContextAssembled):
            active = [each.turn_id for each in session.open_turns() if each.phase != "waiting"]
            assert not active, "two active turns in a session"
        elif isinstance(event.data, AnswerStarted):
            assert event.data.attempt == turn.attempt + 1
            assert catching_up or turn.run is None or not alive(turn.run), "a turn is taken from a run that is alive"
        elif isinstance(event.data, AnswerCompleted | AnswerFailed | AnswerCancelled):
            assert catching_up or event.data.attempt == turn.attempt, "an end of another attempt"

    def check_cache(self, history: History) -> None:
        """What history holds in memory is what the log says."""
        for key, session in self.sessions.items():
            cached = history.recorder._states.session(key)
            assert cached is None or cached == session, key
        held = history.recorder.open_turns()
        assert held == history.recorder._load().scheduler.turns(), "a restart would start other turns"
        assert {turn.turn_id for turn in held} == {turn.turn_id for turn in self.open_turns()}

    def open_turns(self) -> list[Turn]:
        return [turn for session in self.sessions.values() for turn in session.open_turns()]

    def turn(self, turn_id: str | None) -> Turn | None:
        found = (session.turns.get(str(turn_id)) for session in self.sessions.values())
        return next((turn for turn in found if turn is not None), None)

    def version_of(self, client: Client) -> int:
        return len(self.frames.get((client.user_id, client.session_id), []))

    def replay(self, key: Key) -> SessionView:
        """What a client shows that has read the log alone."""
        view = SessionView(key[1])
        for frame in self.frames.get(key, []):
            view.take(frame.decode())
        return view
