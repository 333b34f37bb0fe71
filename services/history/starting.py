"""Steps 6 and 7, history/starting: turns that may start get their context, which goes to the queue.

Owns the assembly of contexts inside a transaction: first, again, and for turns of a restored log. A turn on which the
pure code raises ends, or it would hold up all others. Must never publish.
"""

from __future__ import annotations

import structlog

from contracts.envelope import Event
from contracts.events import AnswerCancelled, AnswerCompleted, ContextAssembled, UserMessageSubmitted
from contracts.turns import encode_context
from services.history.context import Plan, choose, context_data, render
from services.history.draft import CoreFailed, Draft
from services.history.effects import Queue
from services.history.scheduler import OpenTurn, startable
from services.history.session import Session, Turn

log = structlog.get_logger(__name__)

# The model in a context that is recorded for a turn of a restored log, where nobody is left to say which it was.
UNKNOWN_MODEL = "unknown"


class Starting:
    """The turns that start in one transaction."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def start_turns(self, user_id: str) -> None:
        """Assemble the contexts of the user's turns that may start now."""
        again = not self._draft.situation.catching_up
        while again:
            # A turn that could not start has ended, which makes room for the next.
            may_start = startable(self._draft.working.open_turns(user_id), self._draft.bounds.active_per_user)
            again = not all(self._start(turn) for turn in may_start)

    def queue_again(self, open_turn: OpenTurn) -> None:
        """The message that the queue was given first, byte for byte, from the log."""
        session = self._draft.working.session(open_turn.user_id, open_turn.session_id)
        turn = session.turns.get(open_turn.turn_id)
        if turn is None or turn.phase not in ("dispatched", "running"):
            return
        event = self._draft.tx.events_at([turn.context_position])[turn.context_position]
        context = event.data
        assert isinstance(context, ContextAssembled)
        shown = tuple(session.messages[message_id] for message_id in context.message_ids)
        plan = Plan(turn.system, shown, context.left_out, context.budget)
        payload = encode_context(event.body, render(plan, self._texts(plan)))
        self._draft.effects.append(Queue(open_turn.user_id, turn.turn_id, str(turn.model), payload))

    def assemble_unpublished(self, session: Session, event: Event) -> None:
        """A restored log meets a claim or an answer of a turn whose context it never assembled."""
        turn = session.turns[str(event.turn_id)]
        said = event.data.model if isinstance(event.data, AnswerCompleted) else None
        self._assemble(session, turn, said or self._model_of(session, turn) or UNKNOWN_MODEL)

    def _start(self, waiting: OpenTurn) -> bool:
        """Whether the turn is as it should be; one on which the pure code raises ends."""
        session = self._draft.working.session(waiting.user_id, waiting.session_id)
        turn = session.turns[waiting.turn_id]
        model = self._model_of(session, turn)
        if model is None:
            return True
        try:
            with self._draft.whole():
                payload = self._assemble(session, turn, model)
                self._draft.effects.append(Queue(waiting.user_id, turn.turn_id, model, payload))
        except CoreFailed as failed:
            log.error("turn_not_assembled", turn_id=waiting.turn_id, reason=failed.reason, exc_info=failed)
            self._draft.end(waiting.user_id, waiting.session_id, waiting.turn_id, "event_parked")
            return False
        return True

    def _assemble(self, session: Session, turn: Turn, model: str) -> bytes:
        """Record the turn's context_assembled; the returned bytes are its message in the queue."""
        draft = self._draft
        plan = choose(session, turn, draft.situation.window_of(model), draft.bounds.context)
        rendered = render(plan, self._texts(plan))
        data = context_data(session, turn, plan, model, rendered)
        event = draft.own_event(session, turn, "context_assembled", data, turn.event_id)
        draft.show(draft.append(session, event))
        return encode_context(event.body, rendered)

    def _model_of(self, session: Session, turn: Turn) -> str | None:
        """The send's, else the session's, else the default, under the name that workers offer it by."""
        model = turn.asked_model or session.model or self._draft.situation.default_model
        return self._draft.situation.full_name(model) if model is not None else None

    def _texts(self, plan: Plan) -> dict[int, str]:
        events = self._draft.tx.events_at([message.position for message in plan.messages])
        return {position: _text_of(event) for position, event in events.items()}


def _text_of(event: Event) -> str:
    if isinstance(event.data, UserMessageSubmitted | AnswerCompleted | AnswerCancelled):
        return event.data.text or ""
    raise TypeError(f"{event.type} has no text that a context takes")
