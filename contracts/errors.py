"""The codes that clients and operators see: each with its meaning, its HTTP status and what its receiver can do.

Owns every stable code of Chatlog. A code never changes its meaning; a new situation gets a new code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# Why a turn ended without an answer (answer_failed.code; design D12).
FailureCode = Literal[
    "model_unreachable",
    "model_busy",
    "model_not_found",
    "model_refused",
    "model_error",
    "model_cut",
    "model_lost",
    "model_stalled",
    "context_too_long",
    "worker_lost",
    "no_worker",
    "event_parked",
]

# Why history or a gateway did not record what it was asked to record (outcome refused; frame refused).
RefusalCode = Literal[
    "session_unknown",
    "session_deleted",
    "retention_over",
    "parent_unknown",
    "session_busy",
    "turn_unknown",
    "turn_finished",
    "attempt_stale",
    "idempotency_conflict",
    "event_parked",
    "model_not_found",
    "too_long",
    "queue_full",
    "not_accepted",
    "unknown",
]

# Why a door did not take a request at all: nothing was published.
DoorCode = Literal[
    "bad_request",
    "bad_frame",
    "unauthorized",
    "forbidden",
    "body_too_large",
    "headers_too_large",
    "not_found",
    "method_not_allowed",
    "not_acceptable",
    "unsupported_media_type",
    "host_not_allowed",
    "origin_not_allowed",
    "too_many_attached",
    "too_many_sockets",
    "too_many_connections",
    "too_slow",
    "not_assembled",
    "not_ready",
    "stream_cut",
    "internal",
]

Code = FailureCode | RefusalCode | DoorCode | Literal["cancelled"]


@dataclass(frozen=True, slots=True)
class CodeEntry:
    """One row of the table that docs/clients.md prints."""

    code: str
    http_status: int
    meaning: str


CODES: tuple[CodeEntry, ...] = (
    # refusals
    CodeEntry("session_unknown", 404, "There is no such session of yours."),
    CodeEntry("session_deleted", 410, "The session was deleted: restore it, or create it again by its name, empty."),
    CodeEntry("retention_over", 410, "It was deleted so long ago that it is neither restored nor shown."),
    CodeEntry("parent_unknown", 422, "parent_id is not an answer of this session."),
    CodeEntry("session_busy", 409, "An answer is running and the session does not queue further messages."),
    CodeEntry("turn_unknown", 404, "There is no such turn of yours."),
    CodeEntry("turn_finished", 409, "The turn has already ended."),
    CodeEntry("attempt_stale", 409, "Another attempt has taken the turn over (workers only)."),
    CodeEntry("idempotency_conflict", 422, "The same idempotency key came before with another body."),
    CodeEntry("event_parked", 422, "The event could not be read; it is set aside for an operator, byte for byte."),
    CodeEntry("model_not_found", 404, "No worker offers this model."),
    CodeEntry("too_long", 413, "The text is longer than the limit."),
    CodeEntry("queue_full", 429, "Too much is waiting; try again after Retry-After."),
    CodeEntry("not_accepted", 503, "Nothing was published; try again."),
    CodeEntry("unknown", 503, "Whether it was accepted is not known; repeat it with the same idempotency key."),
    # how an answer fails
    CodeEntry("model_unreachable", 502, "The model server does not answer."),
    CodeEntry("model_busy", 503, "The model server had no room for the request."),
    CodeEntry("model_refused", 502, "The model server refused the request."),
    CodeEntry("model_error", 502, "The model server reported an error."),
    CodeEntry("model_cut", 502, "The model server ended the answer without saying that it is whole."),
    CodeEntry("model_lost", 502, "The connection to the model server broke in mid-answer."),
    CodeEntry("model_stalled", 504, "The model server went silent."),
    CodeEntry("context_too_long", 422, "The conversation does not fit the model's window."),
    CodeEntry("worker_lost", 502, "Every allowed attempt lost its worker."),
    CodeEntry("no_worker", 503, "No worker that offers the model came in time."),
    CodeEntry("cancelled", 409, "The answer was stopped."),
    # doors
    CodeEntry("bad_request", 422, "The request does not have the documented shape; detail names the field."),
    CodeEntry("bad_frame", 400, "The frame is not JSON of a documented shape."),
    CodeEntry("unauthorized", 401, "No key came with it that is valid now."),
    CodeEntry("forbidden", 403, "The key may not do this: its scope is smaller."),
    CodeEntry("body_too_large", 413, "The body or frame is larger than the limit."),
    CodeEntry("headers_too_large", 431, "The request line and headers are larger than the limit."),
    CodeEntry("not_found", 404, "There is no such route."),
    CodeEntry("method_not_allowed", 405, "The route does not know this method."),
    CodeEntry("not_acceptable", 406, "The route cannot answer in the type that Accept asks for."),
    CodeEntry("unsupported_media_type", 415, "The body is not application/json."),
    CodeEntry("host_not_allowed", 421, "The Host header names none of this gateway's own names."),
    CodeEntry("origin_not_allowed", 403, "The Origin header names a page that may not use this gateway."),
    CodeEntry("too_many_attached", 429, "One socket watches at most this many sessions."),
    CodeEntry("too_many_sockets", 429, "A user has at most this many sockets open at one gateway."),
    CodeEntry("too_many_connections", 503, "The gateway serves as many requests and sockets as it may."),
    CodeEntry("too_slow", 429, "The client did not read its frames in time."),
    CodeEntry("not_assembled", 409, "What the model is shown is not chosen yet, or the turn ended before it was."),
    CodeEntry("not_ready", 503, "The gateway cannot reach the queue or history."),
    CodeEntry("stream_cut", 503, "The stream ends before the answer does; attach again."),
    CodeEntry("internal", 500, "A fault of ours; nothing is said to be recorded unless an outcome says so."),
)

STATUS: dict[str, int] = {entry.code: entry.http_status for entry in CODES}
MEANING: dict[str, str] = {entry.code: entry.meaning for entry in CODES}
FAILURE_CODES: frozenset[str] = frozenset(get_args(FailureCode))
REFUSAL_CODES: frozenset[str] = frozenset(get_args(RefusalCode))


class ContractError(ValueError):
    """What was read does not have a documented shape. reason is for people, and never holds a message's text."""

    def __init__(self, code: Literal["bad_request", "bad_frame", "event_parked"], reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
