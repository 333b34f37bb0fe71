"""Beside the road (core): what an OpenAI-style server makes of a chat completion's body, in llama.cpp's words.

It owns the checks and their error objects. It must never send or wait.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from services.standin.prompt import Message

NUMBERS = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "n_predict", "seed")


class Refused(Exception):
    """A refusal before the stream: a status and an error object."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"code": status, "message": message, "type": kind, **more}


@dataclass(frozen=True)
class Completion:
    """A body of /v1/chat/completions that is accepted."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    usage_asked: bool
    limit: int | None
    stops: tuple[str, ...]
    seed: int | None
    thinks: bool


def parse(body: bytes) -> Completion:
    """The request, or Refused with 400."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"[json.exception.parse_error.101] parse error: {error}") from error
    if not isinstance(fields, dict):
        raise Refused(400, "the body is no JSON object")
    if fields.get("messages") is None:
        raise Refused(400, "'messages' is required")
    if not isinstance(fields["messages"], list):
        raise Refused(400, "Expected 'messages' to be an array")
    for name in NUMBERS:
        if isinstance(fields.get(name), (str, bool, list, dict)):
            raise Refused(400, f"Field '{name}': [json.exception.type_error.302] type must be number")
    limit = next((fields[name] for name in ("max_completion_tokens", "max_tokens", "n_predict") if fields.get(name)), 0)
    stops = fields.get("stop") or []
    return Completion(
        model=str(fields.get("model") or ""),
        messages=tuple(_message(item) for item in fields["messages"]),
        stream=bool(fields.get("stream")),
        usage_asked=bool((fields.get("stream_options") or {}).get("include_usage")),
        limit=int(limit) if limit > 0 else None,
        stops=(stops,) if isinstance(stops, str) else tuple(str(stop) for stop in stops),
        seed=fields.get("seed"),
        thinks=fields.get("reasoning_effort") != "none",
    )


def _message(item: Any) -> Message:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise Refused(400, "All messages must contain 'role'")
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if content is not None and not isinstance(content, str):
        raise Refused(400, "Invalid 'content' type")
    return Message(item["role"], content or "", str(item.get("reasoning_content") or ""))
