"""Beside the road (core): what Ollama's /api/chat makes of a body: the request, or the refusal in Ollama's own words.

It owns the order of Ollama's checks and their texts, as recorded of 0.32.15. It must never send or wait.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from services.standin import gojson
from services.standin.gojson import Unmarshal, mismatch
from services.standin.model import ModelSpec
from services.standin.prompt import Message

MODEL_NAME: Final = re.compile(r"(?:[\w.-]+(?::[0-9]+)?/)?(?:[\w-][\w.-]*/)?[\w][\w.-]*(?::[\w][\w.-]*)?", re.ASCII)
THINK_LEVELS: Final = ("high", "medium", "low", "max")

FLOATS: Final = (
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
INTEGERS: Final = (
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k",
    "repeat_last_n", "draft_num_predict",
)  # fmt: skip

T = TypeVar("T")

NO_IMAGES: Final = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.",'
    '"type":"invalid_request_error"}}'
)


class Refused(Exception):
    """A refusal before a stream. `from_runner`: it comes over the stream's path, which frames it otherwise."""

    def __init__(self, status: int, error: str, *, from_runner: bool = False) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.from_runner = from_runner


@dataclass(frozen=True)
class ChatRequest:
    """A body of /api/chat that Go's decoder accepts."""

    model: str
    messages: tuple[Message, ...]
    stream: bool
    truncate: bool
    shift: bool
    keep_alive_s: float | None
    think: bool | str | None
    options: dict[str, Any] = field(default_factory=dict)
    tools: bool = False
    images: bool = False
    render_only: bool = False
    format: object = None

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.options.get("stop") or ())


def parse(body: bytes) -> ChatRequest:
    """The request, or Refused with 400: what Go's decoder and the handler's first lines refuse."""
    try:
        fields = gojson.decode_object(body, "api.ChatRequest")
        request = _decode(fields)
    except Unmarshal as error:
        raise Refused(400, str(error)) from error
    if not request.model:
        raise Refused(400, "model is required")
    if not MODEL_NAME.fullmatch(request.model):
        raise Refused(400, "invalid model name")
    if not 0 <= (fields.get("top_logprobs") or 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    return request


def check_model(request: ChatRequest, spec: ModelSpec) -> None:
    """Refuses what this model cannot do, then options of the wrong type."""
    if request.think and not spec.thinks:
        raise Refused(400, f'"{request.model}" does not support thinking')
    if request.tools and "tools" not in spec.capabilities:
        raise Refused(400, f"registry.ollama.ai/library/{spec.full_name} does not support tools")
    for name, value in request.options.items():
        check_option(name, value)
    if isinstance(request.format, str) and request.format != "json":
        quoted = gojson.encode(gojson.encode(request.format).decode()).decode()
        raise Refused(500, f'invalid format: {quoted}; expected "json" or a valid JSON Schema object', from_runner=True)
    if request.images and "vision" not in spec.capabilities:
        raise Refused(400, NO_IMAGES, from_runner=True)


def check_option(name: str, value: object) -> None:
    """An option of the wrong type is a 500, not a 400; an unknown one, or null, is ignored."""
    kind = gojson.kind(value)
    if kind == "null":
        return
    wanted: tuple[str, str] | None = None
    if name in FLOATS:
        wanted = ("number", "float32")
    elif name in INTEGERS:
        wanted = ("number", "integer")
    elif name == "stop":
        wanted = ("array", "array")
    if wanted and kind != wanted[0]:
        raise Refused(500, f'option "{name}" must be of type {wanted[1]}')
    if name == "stop" and isinstance(value, list) and not all(isinstance(stop, str) for stop in value):
        raise Refused(500, 'option "stop" must be of an array of strings')


def _decode(fields: dict[str, Any]) -> ChatRequest:
    messages = [_message(item) for item in _of(fields, "messages", list, "[]api.Message", [])]
    raw_messages = fields.get("messages") or []
    return ChatRequest(
        model=_of(fields, "model", str, "string", ""),
        messages=tuple(messages),
        stream=_of(fields, "stream", bool, "bool", True),
        truncate=_of(fields, "truncate", bool, "bool", True),
        shift=_of(fields, "shift", bool, "bool", True),
        keep_alive_s=_keep_alive_s(fields.get("keep_alive")),
        think=_think(fields.get("think")),
        options=_of(fields, "options", dict, "map[string]interface {}", {}),
        tools=bool(_of(fields, "tools", list, "api.Tools", [])),
        images=any(item.get("images") for item in raw_messages),
        render_only=_of(fields, "_debug_render_only", bool, "bool", False),
        format=fields.get("format"),
    )


def _of(fields: dict[str, Any], name: str, wanted: type[T], go_type: str, default: T) -> T:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, wanted):
        raise mismatch(value, f"ChatRequest.{name}", go_type)
    return value


def _message(item: object) -> Message:
    if not isinstance(item, dict):
        raise mismatch(item, "ChatRequest.messages", "api.Message")
    for name in ("role", "content", "thinking"):
        if item.get(name) is not None and not isinstance(item[name], str):
            raise mismatch(item[name], f"ChatRequest.messages.{name}", "string")
    return Message((item.get("role") or "").lower(), item.get("content") or "", item.get("thinking") or "")


def _keep_alive_s(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return gojson.FOREVER_S if value < 0 else float(value)
    if isinstance(value, str):
        return gojson.duration_s(value)
    raise Unmarshal(f"Unsupported type: '{gojson.kind(value)}'")


def _think(value: object) -> bool | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in THINK_LEVELS:
        return value
    levels = ", ".join(f'"{level}"' for level in THINK_LEVELS)
    if isinstance(value, str):
        raise Unmarshal(f'invalid think value: "{value}" (must be {levels}, true, or false)')
    raise Unmarshal(f"think must be a boolean or string ({levels}, true, or false)")
