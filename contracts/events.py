"""The events: each type's data, its schema_version, and who may write it.

Owns the registry of event types. A type marked later is a reserved name: nobody publishes it, a reader parks it. Must
never hold a default that a writer did not send: what is absent stays absent in the stored bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.base import Contract, Key, ModelName, Text, Time, Uuid
from contracts.errors import ContractError, FailureCode

# 31 bits: what every model server takes as a seed.
MAX_SEED = 2**31 - 1
# A SHA-256 in hex has 64; a server may put its algorithm's name before it.
MAX_DIGEST_CHARS = 200
# The messages that one event may bring: each has a place of its own in the views.
MESSAGES_PER_EVENT = 1024

Count = Annotated[int, Field(ge=1)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Digest = Annotated[Text, Field(min_length=1, max_length=MAX_DIGEST_CHARS)]


class Options(Contract):
    """Sampling options of one send. Anything else is refused: an option that is ignored is a lie to its sender."""

    temperature: Annotated[float, Field(ge=0, le=2, strict=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=False)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[list[Annotated[Text, Field(min_length=1, max_length=100)]], Field(max_length=8)] | None = None


class Usage(Contract):
    """Token counts as the model server gave them; a count that it did not give is absent, not zero."""

    prompt_tokens: Annotated[int, Field(ge=0)] | None = None
    completion_tokens: Annotated[int, Field(ge=0)] | None = None
    cached_tokens: Annotated[int, Field(ge=0)] | None = None


# What a message does while a turn of its session is unfinished: it waits behind it, stops it and what waits (what was
# said of it is kept), or is refused session_busy.
OnBusy = Literal["queue", "interrupt", "reject"]


class SessionStarted(Contract):
    """A session began, or began again after a delete. on_busy: of messages that do not say. Written by a gateway; by
    history where a conversation is imported.
    """

    name: Key | None = None
    title: Annotated[Text, Field(max_length=200)] | None = None
    model: ModelName | None = None
    system: Annotated[Text, Field(max_length=100_000)] | None = None
    on_busy: OnBusy | None = None


class SessionRenamed(Contract):
    """The session's title changed. Written by a gateway."""

    title: Annotated[Text, Field(max_length=200)]


class SessionConfigured(Contract):
    """A setting of the session changed; what is left out stays as it was. Written by a gateway."""

    on_busy: OnBusy | None = None


class ImportedMessage(Contract):
    """What a person or a model said elsewhere. parent_id: a message before it, of this event or an earlier one; null: a
    root. created_at: when it was said there, where that is known.
    """

    message_id: Uuid
    parent_id: Uuid | None
    role: Literal["user", "assistant"]
    text: Annotated[Text, Field(min_length=1)]
    created_at: Time | None = None
    model: ModelName | None = None


class SessionImported(Contract):
    """Messages that were said elsewhere joined the session. Written by history alone, for an operator.

    head: the message that the next one follows from now on; left out: that stays as it was. A long conversation comes
    in several of these.
    """

    source: Literal["chatgpt"]
    messages: Annotated[list[ImportedMessage], Field(max_length=MESSAGES_PER_EVENT)]
    head: Uuid | None = None


class SessionDeleted(Contract):
    """The session was deleted: what is unfinished in it is stopped, and nothing is said in it until it is restored, or
    begun again. Its messages are kept for a while. Written by a gateway.
    """


class SessionRestored(Contract):
    """A deleted session is back, with its messages. Written by a gateway."""


class UserMessageSubmitted(Contract):
    """A user said something, which opens a turn. on_busy left out: as the session has it. Written by a gateway.

    parent_id left out: the session's head when it is recorded; null: a new root; an id: an answer of this session.
    """

    message_id: Uuid
    answer_id: Uuid
    parent_id: Uuid | None = None
    text: Text
    model: ModelName | None = None
    options: Options | None = None
    on_busy: OnBusy | None = None


class CancelRequested(Contract):
    """A user stopped a turn (turn_id in the envelope). Written by a gateway; by history where another
    message interrupts it, or its session is deleted.
    """


class TurnClaimed(Contract):
    """A worker asks to run a turn. A request: never logged, answered on chat.turn. Written by inference."""

    run: Uuid


class AnswerCompleted(Contract):
    """The answer is whole, by the model server's own word. Terminal. Written by inference."""

    attempt: Annotated[int, Field(ge=1)]
    end: Literal["stop", "length"]
    last_index: Annotated[int, Field(ge=0)]
    text: Text
    thinking: Text | None = None
    usage: Usage
    model: ModelName


class AnswerFailed(Contract):
    """The turn ended without a whole answer. Terminal. Written by inference, or by history where no worker ends it."""

    attempt: Annotated[int, Field(ge=0)]
    code: FailureCode
    last_index: Annotated[int, Field(ge=0)]
    text: Text | None = None
    thinking: Text | None = None
    usage: Usage | None = None
    model: ModelName | None = None


class AnswerCancelled(Contract):
    """The turn was stopped; text holds what was kept of it. Terminal. Written by inference, or by history."""

    attempt: Annotated[int, Field(ge=0)]
    code: Literal["cancelled"]
    last_index: Annotated[int, Field(ge=0)]
    text: Text | None = None
    thinking: Text | None = None
    usage: Usage | None = None
    model: ModelName | None = None


class Budget(Contract):
    """What the context was allowed and is estimated to take, in tokens; reserve is kept free for the answer."""

    tokens: Annotated[int, Field(ge=1)]
    reserve: Annotated[int, Field(ge=0)]
    estimated: Annotated[int, Field(ge=0)]


class LeftOut(Contract):
    """How many messages before the turn's own were not shown, by the reason; one that left out none is absent.

    budget: they did not fit the window. limit: a context has so many messages at most. front: with these, so that it
    begins at a step and with a user's message. failed, empty: answers that failed, or had no text. unexplained: the
    event is of a time when a bare count was kept.
    """

    budget: Count | None = None
    limit: Count | None = None
    front: Count | None = None
    failed: Count | None = None
    empty: Count | None = None
    unexplained: Count | None = None


class ContextAssembled(Contract):
    """What the model is shown for one turn: the receipt. Written by history alone.

    digest: of the model, as its workers told it; absent where none does, or they differ. system: the prompt's text,
    left out where the session's previous context had the same. message_ids in prompt order: it begins with the first.
    """

    purpose: Literal["answer"]
    model: ModelName
    digest: Digest | None = None
    system: Text | None = None
    message_ids: list[Uuid]
    left_out: LeftOut
    options: Options
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    budget: Budget
    rendered_hash: Hash


class AnswerStarted(Contract):
    """A worker's run was given the turn as this attempt. It resets the answer's text. Written by history alone."""

    run: Uuid
    attempt: Annotated[int, Field(ge=1)]


EventData = (
    SessionStarted
    | SessionRenamed
    | SessionConfigured
    | SessionImported
    | SessionDeleted
    | SessionRestored
    | UserMessageSubmitted
    | CancelRequested
    | TurnClaimed
    | AnswerCompleted
    | AnswerFailed
    | AnswerCancelled
    | ContextAssembled
    | AnswerStarted
)

# type -> (schema_version, shape). A type whose shape changes gains a version here; the old shape and the step from it
# go to contracts/upcasters.py (docs/adr/0007).
REGISTRY: dict[str, tuple[int, type[EventData]]] = {
    "session_started": (1, SessionStarted),
    "session_renamed": (1, SessionRenamed),
    "session_configured": (1, SessionConfigured),
    "session_imported": (1, SessionImported),
    "session_deleted": (1, SessionDeleted),
    "session_restored": (1, SessionRestored),
    "user_message_submitted": (1, UserMessageSubmitted),
    "cancel_requested": (1, CancelRequested),
    "turn_claimed": (1, TurnClaimed),
    "context_assembled": (2, ContextAssembled),
    "answer_started": (1, AnswerStarted),
    "answer_completed": (1, AnswerCompleted),
    "answer_failed": (1, AnswerFailed),
    "answer_cancelled": (1, AnswerCancelled),
}

# Names that are taken: their shapes come with the issue that first writes them; until then a reader parks them.
RESERVED: frozenset[str] = frozenset(
    {
        "session_cleared",
        "session_archived",
        "session_unarchived",
        "session_expired",
        "session_forked",
        "session_read",
        "head_moved",
        "regeneration_requested",
        "session_titled",
        "summary_written",
        "topic_shifted",
    }
)

TERMINALS: frozenset[str] = frozenset({"answer_completed", "answer_failed", "answer_cancelled"})

# Events that sessions' lists are made of: they are also told on the user's own feed.
SESSION_EVENTS: frozenset[str] = frozenset(
    {"session_started", "session_renamed", "session_configured", "session_deleted", "session_restored"}
)

# What each writer may publish to the intake; history writes the rest, straight to the log.
GATEWAY_WRITES: frozenset[str] = SESSION_EVENTS | {"user_message_submitted", "cancel_requested"}
INFERENCE_WRITES: frozenset[str] = frozenset({"turn_claimed", *TERMINALS})
HISTORY_WRITES: frozenset[str] = frozenset(
    {
        "session_started",
        "session_imported",
        "cancel_requested",
        "context_assembled",
        "answer_started",
        "answer_failed",
        "answer_cancelled",
    }
)

_TURNLESS = SESSION_EVENTS | {"session_imported"}


def shape_of(event_type: str) -> type[EventData]:
    """The newest data model of a type. Raises ContractError(event_parked) for a type that is not known."""
    return _entry(event_type)[1]


def schema_version_of(event_type: str) -> int:
    """The schema_version that writers of this type write today."""
    return _entry(event_type)[0]


def needs_turn(event_type: str) -> bool:
    """Whether the envelope of this type must carry a turn_id."""
    return event_type not in _TURNLESS


def _entry(event_type: str) -> tuple[int, type[EventData]]:
    found = REGISTRY.get(event_type)
    if found is None:
        known = "reserved for later" if event_type in RESERVED else "unknown"
        raise ContractError("event_parked", f"{known} event type")
    return found
