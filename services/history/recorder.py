"""Step 8, history/recorder: the write side: each call is one transaction of the log and what it leaves to be done.

Owns the cached states and the rule that they change only after the commit. All of it runs in the log's own thread. Must
never publish anything: it returns the effects of what was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from contracts.imports import ImportReply
from contracts.turns import Go, Stop
from services.history.arrivals import Delivery
from services.history.batch import Batch, Retried
from services.history.decisions import word_of
from services.history.draft import Bounds, Draft, Situation
from services.history.effects import Effect
from services.history.importing import Importing
from services.history.log.port import Cursor, Log
from services.history.scheduler import OpenTurn, Scheduler
from services.history.starting import Room
from services.history.states import States, Working


@dataclass(frozen=True, slots=True)
class Committed:
    """What a committed transaction left behind: the log's last position, and what is to be done outside."""

    position: int
    effects: tuple[Effect, ...]
    retried: Retried | None = None
    imported: ImportReply | None = None


class Recorder:
    """The one writer. Every method may raise LogError: what was written is then not known, and the process exits."""

    def __init__(self, log: Log, bounds: Bounds, new_id: Callable[[], str], cached_sessions: int) -> None:
        self._log = log
        self._bounds = bounds
        self._new_id = new_id
        self._cached_sessions = cached_sessions
        self.epoch = log.epoch
        self._cursor = log.cursor()
        self._loaded: States | None = self._load()
        with log.look() as tx:
            self.position = tx.last_position()

    @property
    def cursor(self) -> Cursor:
        """Where this process left it: each transaction begins by finding it there."""
        return self._cursor

    def record(self, deliveries: list[Delivery], after: Cursor, situation: Situation) -> Committed:
        """Decide and store a batch; the cursor moves with it."""

        def work(batch: Batch) -> None:
            for delivery in deliveries:
                batch.take(delivery)

        return self._transact(after, situation, work)

    def may_start(self, situation: Situation) -> bool:
        """Whether a turn waits that there is room for."""
        scheduler = self._states.scheduler
        return scheduler.next(Room(situation, scheduler)) is not None

    def start_waiting(self, situation: Situation) -> Committed:
        """Assemble what may start now: after catching up, and when a model or a slot has appeared."""

        def work(batch: Batch) -> None:
            batch.starting.start_turns()

        return self._internally(situation, work)

    def end_turns(self, turns: Iterable[tuple[OpenTurn, str]], situation: Situation) -> Committed:
        """End unfinished turns that no worker ends: cancelled, or failed with another code."""

        def work(batch: Batch) -> None:
            for turn, code in turns:
                batch.end_turn(turn, code)

        return self._internally(situation, work)

    def requeue(self, turns: Iterable[OpenTurn], situation: Situation) -> Committed:
        """The contexts of dispatched turns once more."""

        def work(batch: Batch) -> None:
            for turn in turns:
                batch.starting.queue_again(turn)

        return self._internally(situation, work)

    def retry_parked(self, parked_id: int, situation: Situation) -> Committed:
        """A parked event once more: in one transaction it is recorded, refused, or parked again with its new reason."""
        retried: list[Retried | None] = []
        committed = self._internally(situation, lambda batch: retried.append(batch.retry(parked_id)))
        return replace(committed, retried=retried[0])

    def import_into(self, work: Callable[[Importing], ImportReply], situation: Situation) -> Committed:
        """Part of a session from elsewhere: appended whole in one transaction, or nothing of it."""
        replies: list[ImportReply] = []
        committed = self._internally(situation, lambda batch: replies.append(work(batch.importing)))
        return replace(committed, imported=replies[0])

    def discard_parked(self, parked_id: int) -> bool:
        """Forget a parked event for good. False: it is not there (any more)."""
        with self._log.transaction(self._cursor, self._cursor) as tx:
            return tx.unpark(parked_id) is not None

    def begin_epoch(self) -> None:
        """Clients that were shown more, or other, than this log says must begin again."""
        epoch = self._new_id().replace("-", "")
        with self._log.transaction(self._cursor, self._cursor) as tx:
            tx.begin_epoch(epoch)
        self.epoch = epoch

    def drop_outcomes(self, decided_before: str) -> None:
        """Forget refusals and no-ops that were decided before this time."""
        with self._log.transaction(self._cursor, self._cursor) as tx:
            tx.drop_outcomes_before(decided_before)

    def word(self, user_id: str, turn_id: str) -> Go | Stop | None:
        """The turn's word for a worker that asks."""
        states = self._states
        with self._log.look() as tx:
            session_id = tx.session_of_turn(user_id, turn_id)
            session = Working(states, tx).session(user_id, session_id) if session_id else None
            return word_of(session, turn_id, self._bounds.rules)

    def open_turns(self) -> list[OpenTurn]:
        """All unfinished turns of all users: those that were started, then the waiting ones in fair order."""
        return self._states.scheduler.turns()

    @property
    def _states(self) -> States:
        """What was committed: after a rollback from the log again."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> States:
        states = States(self._cached_sessions, Scheduler(self._bounds.active_per_user))
        with self._log.look() as tx:
            states.load_open_turns(tx)
        return states

    def _internally(self, situation: Situation, work: Callable[[Batch], None]) -> Committed:
        return self._transact(self._cursor, situation, work)

    def _transact(self, after: Cursor, situation: Situation, work: Callable[[Batch], None]) -> Committed:
        states, self._loaded = self._states, None  # whatever goes wrong from here on: the log says what is true
        with self._log.transaction(self._cursor, after) as tx:
            draft = Draft(tx, Working(states, tx), self._bounds, situation, self._new_id)
            work(Batch(draft))
            position = tx.last_position()
        self._cursor = after
        states.replace(draft.working)
        self._loaded = states
        return Committed(position, tuple(draft.effects))
