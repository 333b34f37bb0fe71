"""Steps 6 to 8, history/batch: what one transaction does with each delivery, in the order that contracts promise.

Owns that order: an intake event's own row first (its version is the outcome's), then what follows from it, then the
turns that may start. An event on which parse, decide or evolve raises is parked alone, and its unfinished turn ends.
Must never publish, and never leave half an event behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from contracts.envelope import Event
from contracts.errors import ContractError
from contracts.events import TERMINALS, CancelRequested, TurnClaimed
from contracts.turns import OutcomeMessage, Recorded
from services.history.arrivals import Delivery, Sender, read_delivery, sender_of
from services.history.decisions import decide
from services.history.draft import CoreFailed, Draft
from services.history.effects import TellSender, TellWorkers
from services.history.importing import Importing
from services.history.log.port import ParkedDelivery, StoredOutcome
from services.history.scheduler import OpenTurn
from services.history.session import Session
from services.history.starting import Starting

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of a parked event that was taken again. outcome None: a claim's; reason: it is parked again."""

    outcome: OutcomeMessage | None
    reason: str | None


class Batch:
    """The deliveries of one transaction."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.importing = Importing(draft)
        self.starting = Starting(draft)
        self._decided: OutcomeMessage | None = None

    def take(self, delivery: Delivery, parked_id: int | None = None) -> str | None:
        """One delivery: recorded, refused, known already, or parked alone; then why. parked_id: where it was so far."""
        event: Event | None = None
        reason: str | None = None
        try:
            with self._draft.whole():
                event = read_delivery(delivery)
                self._decide(event, delivery)
        except CoreFailed as failed:
            reason = failed.reason
            self._park(delivery, event, reason, parked_id)
        self.starting.start_turns()
        return reason

    def retry(self, parked_id: int) -> Retried | None:
        """A parked event once more, as if it came now. None: it is not parked (any more)."""
        parked = self._draft.tx.unpark(parked_id)
        if parked is None:
            return None
        self._decided = None
        reason = self.take(Delivery(parked.sequence, parked.subject, parked.headers, parked.body), parked_id)
        return Retried(self._decided, reason)

    def end_turn(self, turn: OpenTurn, code: str) -> None:
        """End a turn that no worker ends. One that has ended or was claimed meanwhile stays as it is."""
        found = self._draft.working.session(turn.user_id, turn.session_id).turns.get(turn.turn_id)
        if found is not None and found.phase != "ended" and found.run == turn.run:
            self._draft.end(turn.user_id, turn.session_id, turn.turn_id, code)
            self.starting.start_turns()

    def _decide(self, event: Event, delivery: Delivery) -> None:
        if not isinstance(event.data, TurnClaimed) and self._known(event, delivery):
            return
        session = self._draft.working.session(event.user_id, event.session_id)
        decision = decide(session, event, self._draft.bounds.rules, self._draft.situation.circumstances)
        if decision.refusal is not None:
            self._refuse(event, delivery, decision.refusal)
            return
        if decision.needs_context:
            self.starting.assemble_unpublished(session, event)
        if decision.records:
            self._record(session, event, delivery)
        elif not decision.answers_claim:
            self._note_unchanged(session, event, delivery)
        for followed in decision.follows:
            self._draft.follow(session, followed)
        if decision.answers_claim:
            self._draft.answer_claim(session, str(event.turn_id))
        else:
            self._tell_workers(session, event)

    def _known(self, event: Event, delivery: Delivery) -> bool:
        """Whether it is recorded already: then its outcome again, or a conflict. One that was refused is decided
        anew.
        """
        prior = self._draft.tx.outcome(event.user_id, event.event_id)
        if prior is None or prior.code is not None:
            if self._draft.tx.owner(event.event_id) is not None:
                raise ContractError("event_parked", "its event_id is there under another user")
            if prior is not None:
                self._draft.tx.drop_outcome(event.user_id, event.event_id)
            return False
        if prior.session_id != event.session_id or prior.type not in (None, event.type):
            raise ContractError("event_parked", "its event_id is there under another session or type")
        same = (prior.data_hash, prior.turn_id) == (event.data_hash, event.turn_id)
        self._tell_sender(delivery, prior if same else _refusal(event, "idempotency_conflict"), event.user_id)
        return True

    def _record(self, session: Session, event: Event, delivery: Delivery) -> None:
        stored = self._draft.append(session, event)
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
        self._draft.show(stored)

    def _note_unchanged(self, session: Session, event: Event, delivery: Delivery) -> None:
        """The event changes nothing: its outcome is recorded, with the session's present version."""
        outcome = StoredOutcome(
            event.event_id,
            event.session_id,
            event.turn_id,
            event.data_hash,
            None,
            None,
            self._draft.position,
            session.version,
        )
        self._draft.tx.put_outcome(event.user_id, outcome, self._draft.situation.now)
        self._tell_sender(delivery, outcome, event.user_id)

    def _refuse(self, event: Event, delivery: Delivery, code: str) -> None:
        outcome = _refusal(event, code)
        self._draft.tx.put_outcome(event.user_id, outcome, self._draft.situation.now)
        self._tell_sender(delivery, outcome, event.user_id)

    def _tell_workers(self, session: Session, event: Event) -> None:
        turn_id = str(event.turn_id)
        if event.type in TERMINALS:
            self._draft.effects.append(TellWorkers(session.user_id, Recorded(turn_id=turn_id)))
        elif isinstance(event.data, CancelRequested):
            self._draft.tell_to_stop(session, turn_id)

    def _tell_sender(self, delivery: Delivery, outcome: StoredOutcome, user_id: str) -> None:
        self._decided = outcome_message(outcome, user_id)
        if delivery.reply is not None:
            self._draft.effects.append(TellSender(delivery.reply, self._decided))

    def _park(self, delivery: Delivery, event: Event | None, reason: str, parked_id: int | None) -> None:
        """Set the event aside with its bytes; tell its sender; end the unfinished turn that waits for it."""
        parked = ParkedDelivery(delivery.sequence, delivery.subject, delivery.headers, delivery.body, reason, parked_id)
        self._draft.tx.park(parked, self._draft.situation.now)
        log.error("event_parked", sequence=delivery.sequence, subject=delivery.subject, reason=reason)
        sender = sender_of(delivery, event)
        if sender is None:
            return
        if sender.event_id is not None and sender.type != "turn_claimed":
            self._refuse_parked(delivery, sender, sender.event_id)
        if sender.turn_id is not None:
            turn = self._draft.working.session(sender.user_id, sender.session_id).turns.get(sender.turn_id)
            if turn is not None and turn.phase != "ended":
                self._draft.end(sender.user_id, sender.session_id, turn.turn_id, "event_parked")

    def _refuse_parked(self, delivery: Delivery, sender: Sender, event_id: str) -> None:
        """An outcome that is there stays: what was recorded under this id is not refused by what came after it."""
        outcome = StoredOutcome(event_id, sender.session_id, sender.turn_id, "", None, "event_parked", None, None)
        prior = self._draft.tx.outcome(sender.user_id, event_id)
        if prior is None or prior.code is not None:
            self._draft.tx.put_outcome(sender.user_id, outcome, self._draft.situation.now)
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


def _refusal(event: Event, code: str) -> StoredOutcome:
    return StoredOutcome(event.event_id, event.session_id, event.turn_id, event.data_hash, event.type, code, None, None)
