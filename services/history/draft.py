"""Steps 6 and 8, history/draft: what one transaction is to hold: events evolved at once, rows once a step went well.

Owns "whole or not at all" inside a transaction: states, rows and effects of a step on which the pure code raises are
undone together. Must never publish, nor decide what is to be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from contracts import ids
from contracts.envelope import Envelope, Event, write_event
from contracts.errors import ContractError
from contracts.events import SESSION_EVENTS, TERMINALS, schema_version_of
from contracts.frames import event_frame
from contracts.turns import Cancel
from services.history.context import ContextLimits
from services.history.decisions import Circumstances, Followed, Rules, ended_by_history, word_of
from services.history.effects import Effect, Show, TellWorkers, Unqueue
from services.history.log.port import LogError, Stored, Transaction
from services.history.session import Session, Turn, evolve
from services.history.states import Key, Working


@dataclass(frozen=True, slots=True)
class Bounds:
    """The settings that decisions and contexts are made by. active_per_user None: no bound."""

    rules: Rules
    context: ContextLimits
    active_per_user: int | None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a batch is decided in: the time, whether history is catching up, who is alive, which models are there."""

    now: str
    catching_up: bool
    alive: Callable[[str, str], bool]
    default_model: str | None
    window_of: Callable[[str], int]
    digest_of: Callable[[str], str | None]
    full_name: Callable[[str], str]
    room_of: Callable[[str], int]  # how many turns of a model may be dispatched and unfinished

    def model_of(self, wanted: str | None) -> str | None:
        """What a turn that wants this one (None: any) gets, under the name that workers offer it by."""
        model = wanted or self.default_model
        return self.full_name(model) if model is not None else None

    @property
    def circumstances(self) -> Circumstances:
        return Circumstances(self.catching_up, self.alive)


class CoreFailed(Exception):
    """The pure code raised on an event or a turn; nothing of what it had begun is left."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.reason = error.reason if isinstance(error, ContractError) else f"{type(error).__name__} while deciding"


class Draft:
    """One transaction under way. What it leaves is in `effects` and `working`, once it is committed."""

    def __init__(
        self,
        tx: Transaction,
        working: Working,
        bounds: Bounds,
        situation: Situation,
        new_id: Callable[[], str],
    ) -> None:
        self.tx = tx
        self.working = working
        self.bounds = bounds
        self.situation = situation
        self.effects: list[Effect] = []
        self._new_id = new_id
        self._pending: list[Stored] = []  # evolved already, stored once the whole step has gone well
        self._touched: set[Key] = set()  # the sessions that this step has evolved

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is done inside is kept whole or undone whole: states, rows and effects. Raises CoreFailed."""
        effects = len(self.effects)
        self._touched.clear()
        try:
            yield
        except (LogError, MemoryError):
            raise  # of the machine, not of the event: whoever parks for it parks everything
        except Exception as error:
            self._pending.clear()
            del self.effects[effects:]
            for user_id, session_id in self._touched:
                self.working.reload(user_id, session_id)
            raise CoreFailed(error) from error
        for stored in self._pending:
            self.tx.append(stored)
            if stored.event.turn_id is not None:
                session = self.working.session(stored.event.user_id, stored.event.session_id)
                self.working.note(session, stored.event.turn_id)
        self._pending.clear()

    @property
    def position(self) -> int:
        """The last position, with what is pending."""
        return self.tx.last_position() + len(self._pending)

    def append(self, session: Session, event: Event, recorded_at: str | None = None) -> Stored:
        """The session's next event. recorded_at: when another log recorded it, else now."""
        position = self.position + 1
        self._touched.add((session.user_id, session.session_id))
        evolve(session, event, position)
        stored = Stored(position, session.version, recorded_at or self.situation.now, event)
        self._pending.append(stored)
        return stored

    def show(self, stored: Stored) -> None:
        event = stored.event
        frame = event_frame(event.body, event.session_id, stored.position, stored.version, stored.recorded_at)
        self.effects.append(Show(event.user_id, event.session_id, event.type in SESSION_EVENTS, frame))

    def own_event(
        self, session: Session, turn: Turn, event_type: str, data: dict[str, Any], causation_id: str
    ) -> Event:
        """An event that history itself writes."""
        context = event_type == "context_assembled"
        return write_event(
            Envelope(
                event_id=ids.context_event_id_of(turn.turn_id) if context else self._new_id(),
                type=event_type,
                schema_version=schema_version_of(event_type),
                user_id=session.user_id,
                session_id=session.session_id,
                turn_id=turn.turn_id,
                causation_id=causation_id,
                occurred_at=self.situation.now,
                data=data,
            )
        )

    def follow(self, session: Session, followed: Followed) -> None:
        """Record what follows from a decision; a turn that it ends leaves its workers and the queue."""
        turn = session.turns[followed.turn_id]
        event = self.own_event(session, turn, followed.type, dict(followed.data), followed.cause(turn))
        self.show(self.append(session, event))
        if followed.type in TERMINALS:
            self.answer_claim(session, turn.turn_id)
            if turn.model is not None:
                self.effects.append(Unqueue(turn.turn_id, turn.model))
        elif followed.type == "cancel_requested":
            self.tell_to_stop(session, turn.turn_id)

    def end(self, user_id: str, session_id: str, turn_id: str, code: str) -> None:
        """End an unfinished turn that no worker ends."""
        session = self.working.session(user_id, session_id)
        with self.whole():
            self.follow(session, ended_by_history(session.turns[turn_id], code))

    def tell_to_stop(self, session: Session, turn_id: str) -> None:
        """The worker that runs it, if one does: deadlines go on telling it."""
        if session.turns[turn_id].cancelling:
            self.effects.append(TellWorkers(session.user_id, Cancel(turn_id=turn_id)))

    def answer_claim(self, session: Session, turn_id: str) -> None:
        """Not while catching up: the worker asks, and is answered from the whole log."""
        word = word_of(session, turn_id, self.bounds.rules)
        if word is not None and not self.situation.catching_up:
            self.effects.append(TellWorkers(session.user_id, word))
