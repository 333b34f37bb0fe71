"""Step 8, history/states: the sessions and unfinished turns that the write side keeps at hand.

Owns the cache of folded sessions (bounded, least recently used goes first) and the index of unfinished turns. A batch
works on copies (Working), which replace what is cached after its commit; on a rollback they are dropped. Must never
change a cached state in place.
"""

from __future__ import annotations

from collections import OrderedDict

from services.history.log.port import Transaction
from services.history.scheduler import OpenTurn
from services.history.session import Session, Turn, evolve

Key = tuple[str, str]  # (user_id, session_id): a foreign session is simply an unknown one


class States:
    """What was committed, as far as it is kept in memory."""

    def __init__(self, cached_sessions: int) -> None:
        self._cached_sessions = cached_sessions
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self.open: dict[str, dict[str, OpenTurn]] = {}

    def load_open_turns(self, tx: Transaction) -> None:
        """At start: find the unfinished turns, and fold their sessions for what the turns are at."""
        working = Working(self, tx)
        for turn in tx.open_turns():
            session = working.session(turn.user_id, turn.session_id)
            working.note(session, session.turns[turn.turn_id])
        self.replace(working)

    def session(self, key: Key) -> Session | None:
        return self._sessions.get(key)

    def open_turns(self) -> list[OpenTurn]:
        return [turn for turns in self.open.values() for turn in turns.values()]

    def replace(self, working: Working) -> None:
        """Take over what a committed batch made of its copies."""
        for key, session in working.sessions.items():
            self._sessions[key] = session
            self._sessions.move_to_end(key)
        while len(self._sessions) > self._cached_sessions:
            self._sessions.popitem(last=False)
        for user_id, turns in working.open.items():
            if turns:
                self.open[user_id] = turns
            else:
                self.open.pop(user_id, None)


class Working:
    """The copies that one transaction works on."""

    def __init__(self, states: States, tx: Transaction) -> None:
        self._states = states
        self._tx = tx
        self.sessions: dict[Key, Session] = {}
        self.open: dict[str, dict[str, OpenTurn]] = {}

    def session(self, user_id: str, session_id: str) -> Session:
        """The session as it is in this transaction; version 0 where there is none."""
        key = (user_id, session_id)
        found = self.sessions.get(key)
        if found is None:
            cached = self._states.session(key)
            found = cached.copy() if cached is not None else self._fold(key)
            self.sessions[key] = found
        return found

    def open_turns(self, user_id: str) -> list[OpenTurn]:
        return list(self._turns_of(user_id).values())

    def note(self, session: Session, turn: Turn) -> None:
        """The turn has moved: keep the index of unfinished turns in step."""
        turns = self._turns_of(session.user_id)
        if turn.phase == "ended":
            turns.pop(turn.turn_id, None)
            return
        turns[turn.turn_id] = OpenTurn(
            user_id=session.user_id,
            session_id=session.session_id,
            turn_id=turn.turn_id,
            position=turn.position,
            active=turn.phase != "waiting",
            model=turn.model,
            run=turn.run,
            attempt=turn.attempt,
            cancelling=turn.cancelling,
        )

    def reload(self, user_id: str, session_id: str) -> None:
        """Forget what an event that raised may have left half done; the transaction's rows tell what is true."""
        self.sessions[(user_id, session_id)] = session = self._fold((user_id, session_id))
        turns = self._turns_of(user_id)
        for turn_id in [t.turn_id for t in turns.values() if t.session_id == session_id]:
            del turns[turn_id]
        for turn in session.open_turns():
            self.note(session, turn)

    def _turns_of(self, user_id: str) -> dict[str, OpenTurn]:
        if user_id not in self.open:
            self.open[user_id] = dict(self._states.open.get(user_id, {}))
        return self.open[user_id]

    def _fold(self, key: Key) -> Session:
        session = Session(*key)
        for stored in self._tx.session_rows(*key):
            evolve(session, stored.event, stored.position)
        return session
