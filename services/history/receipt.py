"""Step 10, history/receipt (core): the log's evidence of one turn -> its receipt.

Owns what is told of a turn's context afterwards, and the check that its texts are still those that the model was shown.
Must never do I/O: evidence.py reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from contracts.base import data_hash
from contracts.envelope import Event
from contracts.events import AnswerCancelled, AnswerCompleted, AnswerFailed, AnswerStarted, ContextAssembled
from contracts.queries import PAGE_BYTES
from contracts.receipts import Attempt, End, Receipt, RecordedEvent, ShownMessage
from contracts.turns import encode_context
from services.history.context import UNKNOWN_MODEL, Plan, render, texts_of
from services.history.views.fold import Recorded


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the log has of a turn with a context. plan: of that context. events: the turn's own, in order. held: those
    that hold the plan's messages, by position.
    """

    answer_id: str
    plan: Plan
    events: tuple[Recorded, ...]
    held: dict[int, Recorded]

    @property
    def context(self) -> ContextAssembled:
        return self._assembled[1]

    @property
    def _assembled(self) -> tuple[Event, ContextAssembled]:
        """A turn has one."""
        events = (recorded.event for recorded in self.events)
        return next((event, event.data) for event in events if isinstance(event.data, ContextAssembled))

    @property
    def end(self) -> AnswerCompleted | AnswerFailed | AnswerCancelled | None:
        data = self.events[-1].event.data
        return data if isinstance(data, AnswerCompleted | AnswerFailed | AnswerCancelled) else None

    @property
    def model(self) -> str:
        """The context's; where that was assembled again for a restored log and nobody knew it, the one that the answer
        says.
        """
        if self.context.model == UNKNOWN_MODEL and self.end is not None and self.end.model is not None:
            return self.end.model
        return self.context.model

    def rendered(self) -> list[dict[str, str]]:
        """The {role, content} list that the model was shown, from the log."""
        return render(self.plan, self.texts())

    def queued(self) -> bytes:
        """What the queue was given, byte for byte, if it is verified."""
        return encode_context(self._assembled[0].body, self.rendered())

    def texts(self) -> dict[str, str]:
        """What was shown, by message_id."""
        return texts_of(self.plan, {position: recorded.event for position, recorded in self.held.items()})

    @property
    def verified(self) -> bool:
        """Whether that is what was recorded then."""
        return data_hash(self.rendered()) == self.context.rendered_hash


def receipt_of(found: Evidence, after: int = 0, page_bytes: int = PAGE_BYTES) -> Receipt:
    """The receipt, with the messages from number `after` on, as far as a page goes."""
    context, event = found.context, found.events[0].event
    page = _page(found, after, page_bytes)
    following = after + len(page)
    return Receipt(
        session_id=event.session_id,
        turn_id=str(event.turn_id),
        answer_id=found.answer_id,
        model=found.model,
        digest=context.digest,
        system=found.plan.system,
        messages=page,
        next=following if following < len(found.plan.messages) else None,
        left_out=context.left_out.model_dump(exclude_none=True),
        options=context.options.model_dump(exclude_none=True),
        seed=context.seed,
        budget=context.budget,
        rendered_hash=context.rendered_hash,
        verified=found.verified,
        attempts=list(_attempts(found)),
        end=_end(found),
        events=[_place(recorded) for recorded in found.events],
    )


def _page(found: Evidence, after: int, page_bytes: int) -> list[ShownMessage]:
    """At most so many bytes of text, unless the first is larger: it must fit one message on the bus."""
    page: list[ShownMessage] = []
    texts, size = found.texts(), 0
    for message in found.plan.messages[after:]:
        text = texts[message.message_id]
        size += len(text.encode())
        if page and size > page_bytes:
            break
        page.append(
            ShownMessage(
                message_id=message.message_id,
                role=message.role,
                text=text,
                position=message.position,
                version=found.held[message.position].version,
            )
        )
    return page


def _attempts(found: Evidence) -> Iterator[Attempt]:
    for recorded in found.events:
        data = recorded.event.data
        if isinstance(data, AnswerStarted):
            yield Attempt(attempt=data.attempt, run=data.run, started_at=recorded.recorded_at, version=recorded.version)


def _end(found: Evidence) -> End | None:
    if found.end is None:
        return None
    told = found.end.model_dump(include={"attempt", "end", "code", "model", "usage"}, exclude_none=True)
    last = found.events[-1]
    return End.model_validate({"type": last.event.type, "version": last.version, **told})


def _place(recorded: Recorded) -> RecordedEvent:
    envelope = recorded.event.envelope
    return RecordedEvent(
        event_id=envelope.event_id,
        type=envelope.type,
        schema_version=envelope.schema_version,
        position=recorded.position,
        version=recorded.version,
        recorded_at=recorded.recorded_at,
    )
