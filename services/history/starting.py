"""Steps 6 and 7, history/starting: turns that may start get their context, which goes to the queue.

Owns the assembly of contexts inside a transaction: first, again, and for turns of a restored log. A turn on which the
pure code raises ends, or it would hold up all others. Must never publish.
"""

from __future__ import annotations

import structlog

from contracts.envelope import Event
from contracts.events import AnswerCompleted, ContextAssembled
from contracts.turns import encode_context
from services.history.context import UNKNOWN_MODEL, Plan, choose, context_data, recorded_plan, render, texts_of
from services.history.draft import CoreFailed, Draft, Situation
from services.history.effects import Queue
from services.history.scheduler import OpenTurn, Scheduler
from services.history.session import Session, Turn

log = structlog.get_logger(__name__)


class Room:
    """Whether a turn that wants this model may be dispatched now: it is there, or known, and few enough are."""

    def __init__(self, situation: Situation, scheduler: Scheduler) -> None:
        self._situation = situation
        self._scheduler = scheduler
        self._models: dict[str | None, str | None] = {}

    def __call__(self, wanted: str | None) -> bool:
        model = self.model_of(wanted)
        return model is not None and self._scheduler.active_of(model) < self._situation.room_of(model)

    def model_of(self, wanted: str | None) -> str | None:
        if wanted not in self._models:
            self._models[wanted] = self._situation.model_of(wanted)
        return self._models[wanted]


class Starting:
    """The turns that start in one transaction."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._room = Room(draft.situation, draft.working.scheduler)

    def start_turns(self) -> None:
        """Assemble the contexts of the turns that may start now, one after the other until there is no room."""
        if self._draft.situation.catching_up:
            return
        while (turn := self._draft.working.scheduler.next(self._room)) is not None:
            self._start(turn)

    def queue_again(self, open_turn: OpenTurn) -> None:
        """The message that the queue was given first, byte for byte, from the log."""
        session = self._draft.working.session(open_turn.user_id, open_turn.session_id)
        turn = session.turns.get(open_turn.turn_id)
        if turn is None or turn.phase not in ("dispatched", "running"):
            return
        if turn.message_id not in session.messages:  # the session was deleted and has begun again: it is being stopped
            return
        event = self._draft.tx.events_at([turn.context_position])[turn.context_position]
        context = event.data
        assert isinstance(context, ContextAssembled)
        plan = recorded_plan(session, turn, context)
        payload = encode_context(event.body, render(plan, self._texts(plan)))
        self._draft.effects.append(Queue(open_turn.user_id, turn.turn_id, str(turn.model), payload))

    def assemble_unpublished(self, session: Session, event: Event) -> None:
        """A restored log meets a claim or an answer of a turn whose context it never assembled."""
        turn = session.turns[str(event.turn_id)]
        said = event.data.model if isinstance(event.data, AnswerCompleted) else None
        wanted = turn.asked_model or session.model
        self._assemble(session, turn, said or self._draft.situation.model_of(wanted) or UNKNOWN_MODEL)

    def _start(self, waiting: OpenTurn) -> None:
        """Afterwards the turn is active; or it has ended, where the pure code raises on it."""
        session = self._draft.working.session(waiting.user_id, waiting.session_id)
        turn = session.turns[waiting.turn_id]
        model = self._room.model_of(waiting.wanted)
        assert model is not None, "without one there was no room"
        try:
            with self._draft.whole():
                payload = self._assemble(session, turn, model)
                self._draft.effects.append(Queue(waiting.user_id, turn.turn_id, model, payload))
        except CoreFailed as failed:
            log.error("turn_not_assembled", turn_id=waiting.turn_id, reason=failed.reason, exc_info=failed)
            self._draft.end(waiting.user_id, waiting.session_id, waiting.turn_id, "event_parked")

    def _assemble(self, session: Session, turn: Turn, model: str) -> bytes:
        """Record the turn's context_assembled; the returned bytes are its message in the queue."""
        draft = self._draft
        plan = choose(session, turn, draft.situation.window_of(model), draft.bounds.context)
        rendered = render(plan, self._texts(plan))
        data = context_data(session, turn, plan, model, draft.situation.digest_of(model), rendered)
        event = draft.own_event(session, turn, "context_assembled", data, turn.event_id)
        draft.show(draft.append(session, event))
        return encode_context(event.body, rendered)

    def _texts(self, plan: Plan) -> dict[str, str]:
        return texts_of(plan, self._draft.tx.events_at(sorted({message.position for message in plan.messages})))
