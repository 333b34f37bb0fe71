"""Step 8, history/states: the sessions and unfinished turns that the write side keeps at hand.

Owns the cache of folded sessions (bounded, least recently used goes first) and the scheduler that knows the unfinished
turns. A batch works on copies of sessions (Working), which replace what is cached after its commit. The scheduler moves
on with the batch, for the batch starts turns: after a rollback all of this is dropped and loaded anew. Must never
change a cached session in place.
"""

from __future__ import annotations

from collections import OrderedDict

from services.history.log.port import Transaction
from services.history.scheduler import OpenTurn, Scheduler
from services.history.session import Session, evolve

Key = tuple[str, str]  # (user_id, session_id): a foreign session is simply an unknown one


class States:
    """What was committed, as far as it is kept in memory."""

    def __init__(self, cached_sessions: int, scheduler: Scheduler) -> None:
        self._cached_sessions = cached_sessions
        self._sessions: OrderedDict[Key, Session] = OrderedDict()
        self.scheduler = scheduler

    def load_open_turns(self, tx: Transaction) -> None:
        """At start: find the unfinished turns, fold their sessions for what the turns are at, and whose turn it is."""
        working = Working(self, tx)
        opened = tx.open_turns()
        for user_id, session_id, turn_id in opened:
            session = working.session(user_id, session_id)
            working.note(session, turn_id)
        self.replace(working)
        oldest = min((turn.position for turn in self.scheduler.turns()), default=0)
        for user_id, position in tx.last_contexts(oldest) if opened else ():
            self.scheduler.served(user_id, position)

    def session(self, key: Key) -> Session | None:
        return self._sessions.get(key)

    def replace(self, working: Working) -> None:
        """Take over what a committed batch made of its copies."""
        for key, session in working.sessions.items():
            self._sessions[key] = session
            self._sessions.move_to_end(key)
        while len(self._sessions) > self._cached_sessions:
            self._sessions.popitem(last=False)


class Working:
    """The copies that one transaction works on."""

    def __init__(self, states: States, tx: Transaction) -> None:
        self._states = states
        self._tx = tx
        self.sessions: dict[Key, Session] = {}
        self.scheduler = states.scheduler

    def session(self, user_id: str, session_id: str) -> Session:
        """The session as it is in this transaction; version 0 where there is none."""
        key = (user_id, session_id)
        found = self.sessions.get(key)
        if found is None:
            cached = self._states.session(key)
            found = cached.copy() if cached is not None else self._fold(key)
            self.sessions[key] = found
        return found

    def note(self, session: Session, turn_id: str) -> None:
        """The turn has moved, by events that stay in this transaction: the scheduler is to know."""
        turn = session.turns[turn_id]
        moved = OpenTurn(
            user_id=session.user_id,
            session_id=session.session_id,
            turn_id=turn_id,
            position=turn.position,
            active=turn.phase != "waiting",
            wanted=turn.asked_model or session.model,
            model=turn.model,
            context_position=turn.context_position,
            run=turn.run,
            attempt=turn.attempt,
            cancelling=turn.cancelling,
        )
        if turn.phase == "ended":
            self.scheduler.end(moved)
        else:
            self.scheduler.put(moved)

    def reload(self, user_id: str, session_id: str) -> None:
        """Forget what an event that raised may have left half done; the transaction's rows tell what is true."""
        self.sessions[(user_id, session_id)] = self._fold((user_id, session_id))

    def _fold(self, key: Key) -> Session:
        session = Session(*key)
        for stored in self._tx.session_rows(*key):
            evolve(session, stored.event, stored.position)
        return session
