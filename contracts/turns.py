"""What history and workers say to each other about one turn: the queued context, the word on a claim, presence, load.

Owns the shapes of chat.context, chat.turn, chat.presence and chat.load. A queued context is context_assembled plus the
texts, a pure function of the log. Must never be sent to clients: it holds whole conversations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from contracts.base import Contract, ModelName, Text, UserId, Uuid, compact, parse
from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from contracts.events import ContextAssembled

# Three beats of 2 s missed: the worker is gone, or cannot be heard, which is the same to a turn.
PRESENCE_FORGOTTEN_S = 6.0

StopCode = Literal["turn_finished", "turn_cancelled", "attempts_used_up", "turn_unknown", "turn_waiting"]


class Go(Contract):
    """The latest run of the turn, as this attempt. last: no further attempt is allowed after it."""

    type: Literal["go"] = "go"
    turn_id: Uuid
    run: Uuid
    attempt: Annotated[int, Field(ge=1)]
    last: bool


class Stop(Contract):
    """For every run: this turn is not to be run (any more). The context is acked."""

    type: Literal["stop"] = "stop"
    turn_id: Uuid
    code: StopCode


class Cancel(Contract):
    """A user stopped the turn: the worker closes the model's stream and publishes answer_cancelled."""

    type: Literal["cancel"] = "cancel"
    turn_id: Uuid


class Recorded(Contract):
    """The turn's end is in the log: its worker acks the context and lets go of the answer."""

    type: Literal["recorded"] = "recorded"
    turn_id: Uuid


class Snapshot(Contract):
    """A request of a gateway to the worker that holds this attempt; answered with an answer_so_far frame."""

    type: Literal["snapshot"] = "snapshot"
    turn_id: Uuid
    attempt: Annotated[int, Field(ge=1)]


Word = Go | Stop | Cancel | Recorded
TURN_MESSAGE: TypeAdapter[Word | Snapshot] = TypeAdapter(
    Annotated[Go | Stop | Cancel | Recorded | Snapshot, Field(discriminator="type")]
)


def read_turn_message(raw: bytes) -> Word | Snapshot:
    """Raises ContractError(bad_request)."""
    try:
        return TURN_MESSAGE.validate_python(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not a message about a turn") from error


@dataclass(frozen=True, slots=True)
class QueuedContext:
    """One message of CHAT_CONTEXT: the recorded context_assembled and the texts that it names, in prompt order."""

    event: Event
    data: ContextAssembled
    messages: tuple[tuple[str, str], ...]

    @property
    def turn_id(self) -> str:
        return str(self.event.turn_id)


def encode_context(body: bytes, messages: list[dict[str, str]]) -> bytes:
    """body: context_assembled as it is stored; messages: its {role, content} in prompt order."""
    return b'{"event":%b,"messages":%b}' % (body, compact(messages))


def read_context(raw: bytes) -> QueuedContext:
    """Raises ContractError for what history of this version does not write."""
    value = parse(raw)
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        raise ContractError("bad_request", "not a queued context")
    event = read_event(compact(value.get("event")))
    if not isinstance(event.data, ContextAssembled):
        raise ContractError("bad_request", "not a queued context")
    return QueuedContext(event, event.data, tuple(_message(item) for item in value["messages"]))


def _message(item: Any) -> tuple[str, str]:
    match item:
        case {"role": str(role), "content": str(content)}:
            return role, content
        case _:
            raise ContractError("bad_request", "not a queued context")


class ModelPresence(Contract):
    """A model that a worker offers; window in tokens and digest where its server tells them.

    trouble: the code of its latest failure, while the worker takes no turn of it.
    """

    name: ModelName
    window: int | None = None
    digest: str | None = None
    trouble: str | None = None


class RunPresence(Contract):
    turn_id: Uuid
    run: Uuid


class Presence(Contract):
    """What a worker says of itself every 2 s, and at once on a change. It is forgotten after 6 s of silence."""

    worker_id: Annotated[str, Field(max_length=64)]
    models: list[ModelPresence]
    server: str  # ok, or the code of its trouble: no turn of any model is taken
    server_kind: Literal["ollama", "openai"]
    slots: Annotated[int, Field(ge=1)]
    free: Annotated[int, Field(ge=0)]
    runs: list[RunPresence]
    stopping: bool = False  # it takes no further context

    def state_of(self, model: ModelPresence) -> str:
        """ok, or why the worker takes no turn of this model of its own."""
        return self.server if self.server != "ok" else model.trouble or "ok"


def read_presence(raw: bytes) -> Presence:
    """Raises ContractError(bad_request)."""
    try:
        return Presence.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not a presence") from error


class QueueLoad(Contract):
    """How many turns wait for or run on one model, wherever they wait."""

    model: ModelName
    waiting: int
    running: int


class Load(Contract):
    """How full it is, from history, every second: gateways refuse new messages by it before it is too late.

    default_model: what a message gets that names none; unassigned: turns that wait for whichever model comes first.
    """

    intake_bytes: int
    intake_max_bytes: int
    disk_free_bytes: int
    queues: list[QueueLoad]
    default_model: ModelName | None = None
    unassigned: Annotated[int, Field(ge=0)] = 0


def read_load(raw: bytes) -> Load:
    """Raises ContractError(bad_request)."""
    try:
        return Load.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not a load") from error


class OutcomeMessage(Contract):
    """What became of one intake event: recorded with its version, or refused with a code. Sent to its Chat-Reply."""

    event_id: Uuid
    user_id: UserId
    session_id: Uuid
    turn_id: Uuid | None = None
    position: int | None = None
    version: int | None = None
    code: Text | None = None

    @property
    def recorded(self) -> bool:
        return self.code is None


def read_outcome(raw: bytes) -> OutcomeMessage:
    """Raises ContractError(bad_request)."""
    try:
        return OutcomeMessage.model_validate(parse(raw), extra="ignore")
    except ValidationError as error:
        raise ContractError("bad_request", "not an outcome") from error
