"""Steps 6 to 8, history/batch: what one transaction does with each delivery, in the order that contracts promise.

Owns that order: an intake event's own row first (its version is the outcome's), then what follows from it, then the
turns that may start. An event on which parse, decide or evolve raises is parked alone, and its unfinished turn ends.
Must never publish, and never leave half an event behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from contracts import ids
from contracts.envelope import Envelope, Event, write_event
from contracts.errors import ContractError
from contracts.events import (
    SESSION_EVENTS,
    TERMINALS,
    AnswerCancelled,
    AnswerCompleted,
    CancelRequested,
    ContextAssembled,
    TurnClaimed,
    UserMessageSubmitted,
    schema_version_of,
)
from contracts.frames import event_frame
from contracts.turns import Cancel, OutcomeMessage, Recorded, encode_context
from services.history.arrivals import Delivery, Sender, read_delivery, sender_of
from services.history.context import ContextLimits, Plan, choose, context_data, render
from services.history.effects import Effect, Queue, Show, TellSender, TellWorkers, Unqueue
from services.history.log.port import LogError, ParkedDelivery, Stored, StoredOutcome, Transaction
from services.history.scheduler import OpenTurn, startable
from services.history.session import (
    Circumstances,
    Followed,
    Rules,
    Session,
    Turn,
    decide,
    ended_by_history,
    evolve,
    word_of,
)
from services.history.states import Key, Working

log = structlog.get_logger(__name__)

# The model in a context that is recorded for a turn of a restored log, where nobody is left to say which it was.
UNKNOWN_MODEL = "unknown"


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
    full_name: Callable[[str], str]

    @property
    def circumstances(self) -> Circumstances:
        return Circumstances(self.catching_up, self.alive)


class CoreFailed(Exception):
    """The pure code raised on an event or a turn; nothing of what it had begun is left."""

    def __init__(self, error: Exception) -> None:
        super().__init__(type(error).__name__)
        self.reason = error.reason if isinstance(error, ContractError) else f"{type(error).__name__} while deciding"


class Batch:
    """One transaction under way. What it returns is in `effects` and `working`, once it is committed."""

    def __init__(
        self,
        tx: Transaction,
        working: Working,
        bounds: Bounds,
        situation: Situation,
        new_id: Callable[[], str],
    ) -> None:
        self.working = working
        self.effects: list[Effect] = []
        self._tx = tx
        self._bounds = bounds
        self._situation = situation
        self._new_id = new_id
        self._pending: list[Stored] = []  # evolved already, stored once the whole step has gone well
        self._touched: set[Key] = set()  # the sessions that this step has evolved

    def take(self, delivery: Delivery) -> None:
        """One delivery: recorded, refused, known already, or parked alone."""
        event: Event | None = None
        try:
            with self._whole():
                event = read_delivery(delivery)
                self._decide(event, delivery)
        except CoreFailed as failed:
            self._park(delivery, event, failed.reason)
        if event is not None:
            self.start_turns(event.user_id)

    def start_turns(self, user_id: str) -> None:
        """Assemble the contexts of the user's turns that may start now."""
        again = not self._situation.catching_up
        while again:
            # A turn that could not start has ended, which makes room for the next.
            may_start = startable(self.working.open_turns(user_id), self._bounds.active_per_user)
            again = not all(self._start(turn) for turn in may_start)

    def end_turn(self, turn: OpenTurn, code: str) -> None:
        """End a turn that no worker ends. One that has ended or was claimed meanwhile stays as it is."""
        found = self.working.session(turn.user_id, turn.session_id).turns.get(turn.turn_id)
        if found is not None and found.phase != "ended" and found.run == turn.run:
            self._end(turn.user_id, turn.session_id, turn.turn_id, code)
            self.start_turns(turn.user_id)

    def queue_again(self, open_turn: OpenTurn) -> None:
        """The message that the queue was given first, byte for byte, from the log."""
        session = self.working.session(open_turn.user_id, open_turn.session_id)
        turn = session.turns.get(open_turn.turn_id)
        if turn is None or turn.phase not in ("dispatched", "running"):
            return
        event = self._tx.events_at([turn.context_position])[turn.context_position]
        context = event.data
        assert isinstance(context, ContextAssembled)
        shown = tuple(session.messages[message_id] for message_id in context.message_ids)
        plan = Plan(turn.system, shown, context.left_out, context.budget)
        payload = encode_context(event.body, render(plan, self._texts(plan)))
        self.effects.append(Queue(open_turn.user_id, turn.turn_id, str(turn.model), payload))

    @contextmanager
    def _whole(self) -> Iterator[None]:
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
            self._tx.append(stored)
        self._pending.clear()

    def _start(self, waiting: OpenTurn) -> bool:
        """Whether the turn is as it should be; one on which the pure code raises ends, or it would hold up all."""
        session = self.working.session(waiting.user_id, waiting.session_id)
        turn = session.turns[waiting.turn_id]
        model = self._model_of(session, turn)
        if model is None:
            return True
        try:
            with self._whole():
                payload = self._assemble(session, turn, model)
                self.effects.append(Queue(waiting.user_id, turn.turn_id, model, payload))
        except CoreFailed as failed:
            log.error("turn_not_assembled", turn_id=waiting.turn_id, reason=failed.reason, exc_info=failed)
            self._end(waiting.user_id, waiting.session_id, waiting.turn_id, "event_parked")
            return False
        return True

    def _end(self, user_id: str, session_id: str, turn_id: str, code: str) -> None:
        session = self.working.session(user_id, session_id)
        with self._whole():
            self._follow(session, ended_by_history(session.turns[turn_id], code))

    def _decide(self, event: Event, delivery: Delivery) -> None:
        if not isinstance(event.data, TurnClaimed) and self._known(event, delivery):
            return
        session = self.working.session(event.user_id, event.session_id)
        decision = decide(session, event, self._bounds.rules, self._situation.circumstances)
        if decision.refusal is not None:
            self._refuse(event, delivery, decision.refusal)
            return
        if decision.needs_context:
            self._assemble_unpublished(session, event)
        if decision.records:
            self._record(session, event, delivery)
        elif not decision.answers_claim:
            self._note_unchanged(session, event, delivery)
        for followed in decision.follows:
            self._follow(session, followed)
        if decision.answers_claim:
            self._answer_claim(session, str(event.turn_id))
        else:
            self._tell_workers(session, event)

    def _known(self, event: Event, delivery: Delivery) -> bool:
        """Whether it is recorded already: then its outcome again, or a conflict. One that was refused is decided
        anew.
        """
        prior = self._tx.outcome(event.user_id, event.event_id)
        if prior is None or prior.code is not None:
            if self._tx.owner(event.event_id) is not None:
                raise ContractError("event_parked", "its event_id is there under another user")
            if prior is not None:
                self._tx.drop_outcome(event.user_id, event.event_id)
            return False
        if prior.session_id != event.session_id or prior.type not in (None, event.type):
            raise ContractError("event_parked", "its event_id is there under another session or type")
        same = (prior.data_hash, prior.turn_id) == (event.data_hash, event.turn_id)
        self._tell_sender(delivery, prior if same else _refusal(event, "idempotency_conflict"), event.user_id)
        return True

    def _record(self, session: Session, event: Event, delivery: Delivery) -> None:
        stored = self._append(session, event)
        outcome = StoredOutcome(
            event.event_id,
            event.session_id,
            event.turn_id,
            event.data_hash,
            event.type,
            None,
            stored.position,
            stored.version,
        )
        self._tell_sender(delivery, outcome, event.user_id)
        self._show(stored)

    def _note_unchanged(self, session: Session, event: Event, delivery: Delivery) -> None:
        """The event changes nothing: its outcome is recorded, with the session's present version."""
        outcome = StoredOutcome(
            event.event_id,
            event.session_id,
            event.turn_id,
            event.data_hash,
            None,
            None,
            self._position(),
            session.version,
        )
        self._tx.put_outcome(event.user_id, outcome, self._situation.now)
        self._tell_sender(delivery, outcome, event.user_id)

    def _refuse(self, event: Event, delivery: Delivery, code: str) -> None:
        outcome = _refusal(event, code)
        self._tx.put_outcome(event.user_id, outcome, self._situation.now)
        self._tell_sender(delivery, outcome, event.user_id)

    def _follow(self, session: Session, followed: Followed) -> None:
        turn = session.turns[followed.turn_id]
        event = self._own_event(session, turn, followed.type, dict(followed.data), followed.cause(turn))
        self._show(self._append(session, event))
        if followed.type in TERMINALS:
            self._answer_claim(session, turn.turn_id)
            if turn.model is not None:
                self.effects.append(Unqueue(turn.turn_id, turn.model))

    def _answer_claim(self, session: Session, turn_id: str) -> None:
        """Not while catching up: the worker asks, and is answered from the whole log."""
        word = word_of(session, turn_id, self._bounds.rules)
        if word is not None and not self._situation.catching_up:
            self.effects.append(TellWorkers(session.user_id, word))

    def _tell_workers(self, session: Session, event: Event) -> None:
        turn_id = str(event.turn_id)
        if event.type in TERMINALS:
            self.effects.append(TellWorkers(session.user_id, Recorded(turn_id=turn_id)))
        elif isinstance(event.data, CancelRequested) and session.turns[turn_id].cancelling:
            self.effects.append(TellWorkers(session.user_id, Cancel(turn_id=turn_id)))

    def _assemble(self, session: Session, turn: Turn, model: str) -> bytes:
        """Record the turn's context_assembled; the returned bytes are its message in the queue."""
        plan = choose(session, turn, self._situation.window_of(model), self._bounds.context)
        rendered = render(plan, self._texts(plan))
        data = context_data(session, turn, plan, model, rendered)
        event = self._own_event(session, turn, "context_assembled", data, turn.event_id)
        self._show(self._append(session, event))
        return encode_context(event.body, rendered)

    def _assemble_unpublished(self, session: Session, event: Event) -> None:
        """A restored log meets a claim or an answer of a turn whose context it never assembled."""
        turn = session.turns[str(event.turn_id)]
        said = event.data.model if isinstance(event.data, AnswerCompleted) else None
        model = said or self._model_of(session, turn) or UNKNOWN_MODEL
        self._assemble(session, turn, model)

    def _model_of(self, session: Session, turn: Turn) -> str | None:
        """The send's, else the session's, else the default, under the name that workers offer it by."""
        model = turn.asked_model or session.model or self._situation.default_model
        return self._situation.full_name(model) if model is not None else None

    def _texts(self, plan: Plan) -> dict[int, str]:
        events = self._tx.events_at([message.position for message in plan.messages])
        return {position: _text_of(event) for position, event in events.items()}

    def _own_event(
        self, session: Session, turn: Turn, event_type: str, data: dict[str, Any], causation_id: str
    ) -> Event:
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
                occurred_at=self._situation.now,
                data=data,
            )
        )

    def _append(self, session: Session, event: Event) -> Stored:
        position = self._position() + 1
        self._touched.add((session.user_id, session.session_id))
        evolve(session, event, position)
        stored = Stored(position, session.version, self._situation.now, event)
        self._pending.append(stored)
        if event.turn_id is not None:
            self.working.note(session, session.turns[event.turn_id])
        return stored

    def _position(self) -> int:
        return self._tx.last_position() + len(self._pending)

    def _show(self, stored: Stored) -> None:
        event = stored.event
        frame = event_frame(event.body, event.session_id, stored.position, stored.version, stored.recorded_at)
        self.effects.append(Show(event.user_id, event.session_id, event.type in SESSION_EVENTS, frame))

    def _tell_sender(self, delivery: Delivery, outcome: StoredOutcome, user_id: str) -> None:
        if delivery.reply is not None:
            self.effects.append(TellSender(delivery.reply, outcome_message(outcome, user_id)))

    def _park(self, delivery: Delivery, event: Event | None, reason: str) -> None:
        """Set the event aside with its bytes; tell its sender; end the unfinished turn that waits for it."""
        parked = ParkedDelivery(delivery.sequence, delivery.subject, delivery.headers, delivery.body, reason)
        self._tx.park(parked, self._situation.now)
        log.error("event_parked", sequence=delivery.sequence, subject=delivery.subject, reason=reason)
        sender = sender_of(delivery, event)
        if sender is None:
            return
        if sender.event_id is not None and sender.type != "turn_claimed":
            self._refuse_parked(delivery, sender, sender.event_id)
        if sender.turn_id is not None:
            turn = self.working.session(sender.user_id, sender.session_id).turns.get(sender.turn_id)
            if turn is not None and turn.phase != "ended":
                self._end(sender.user_id, sender.session_id, turn.turn_id, "event_parked")
            self.start_turns(sender.user_id)

    def _refuse_parked(self, delivery: Delivery, sender: Sender, event_id: str) -> None:
        """An outcome that is there stays: what was recorded under this id is not refused by what came after it."""
        outcome = StoredOutcome(event_id, sender.session_id, sender.turn_id, "", None, "event_parked", None, None)
        prior = self._tx.outcome(sender.user_id, event_id)
        if prior is None or prior.code is not None:
            self._tx.put_outcome(sender.user_id, outcome, self._situation.now)
        self._tell_sender(delivery, outcome, sender.user_id)


def outcome_message(outcome: StoredOutcome, user_id: str) -> OutcomeMessage:
    """What the sender is told of it."""
    return OutcomeMessage(
        event_id=outcome.event_id,
        user_id=user_id,
        session_id=outcome.session_id,
        turn_id=outcome.turn_id,
        position=outcome.position,
        version=outcome.version,
        code=outcome.code,
    )


def _text_of(event: Event) -> str:
    if isinstance(event.data, UserMessageSubmitted | AnswerCompleted | AnswerCancelled):
        return event.data.text or ""
    raise TypeError(f"{event.type} has no text that a context takes")


def _refusal(event: Event, code: str) -> StoredOutcome:
    return StoredOutcome(event.event_id, event.session_id, event.turn_id, event.data_hash, event.type, code, None, None)
