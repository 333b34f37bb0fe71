"""Beside the road (core): the objects of OpenAI's chat completions as llama.cpp's server writes them, and its dialects.

It owns the shapes of chunks, completions, models and errors. It must never send or wait.
"""

from __future__ import annotations

import json
from typing import Any, Final

from services.standin.faults import Dialect
from services.standin.model import Catalogue, Piece
from services.standin.telling import Finished

DONE: Final = b"data: [DONE]\n\n"
FINGERPRINT: Final = "stand-in"


def encode(value: object) -> bytes:
    """Compact JSON in plain UTF-8, as llama.cpp writes it; a lone surrogate becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def event(value: object) -> bytes:
    return b"data: " + encode(value) + b"\n\n"


class Chunks:
    """The chunks of one completion: they share id, time and model."""

    def __init__(self, model: str, number: int, created: int, dialect: Dialect) -> None:
        self._shared = {
            "created": created,
            "id": f"chatcmpl-standin-{number}",
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._dialect = dialect

    def role(self) -> bytes:
        return self._chunk({"role": "assistant", "content": None})

    def piece(self, piece: Piece) -> bytes:
        return self._chunk({self._dialect.reasoning if piece.thinking else "content": piece.text})

    def last(self, finished: Finished, *, usage_asked: bool) -> list[bytes]:
        """What follows the last piece: finish_reason, usage where it is due, and [DONE]."""
        out: list[bytes] = []
        due = self._dialect.usage == "always" or (self._dialect.usage == "asked" and usage_asked)
        if self._dialect.finish_reason:
            out.append(self._chunk({}, finished.reason, {} if due else {"timings": timings(finished)}))
        if due:
            out.append(event({**self._head([]), "usage": usage(finished), "timings": timings(finished)}))
        if self._dialect.tail == "empty_choices":
            out.append(event(self._head([])))
        elif self._dialect.tail == "no_choices":
            out.append(event({**self._shared, "object": "chat.completion.chunk"}))
        if self._dialect.done_marker:
            out.append(DONE)
        return out

    def whole(self, finished: Finished, text: str, thinking: str) -> bytes:
        message = {"role": "assistant", "content": text}
        if thinking:
            message[self._dialect.reasoning] = thinking
        reason = finished.reason if self._dialect.finish_reason else None
        counted = {"usage": usage(finished)} if self._dialect.usage != "never" else {}
        choices = [{"finish_reason": reason, "index": 0, "message": message}]
        shared = {**self._shared, "object": "chat.completion"}
        return encode({"choices": choices, **shared, **counted, "timings": timings(finished)})

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, more: dict[str, Any] | None = None) -> bytes:
        return event({**self._head([{"finish_reason": reason, "index": 0, "delta": delta}]), **(more or {})})

    def _head(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"choices": choices, **self._shared, "object": "chat.completion.chunk"}


def usage(finished: Finished) -> dict[str, Any]:
    return {
        "completion_tokens": finished.tokens,
        "prompt_tokens": finished.prompt_tokens,
        "total_tokens": finished.tokens + finished.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }


def timings(finished: Finished) -> dict[str, Any]:
    return {
        "cache_n": finished.cached_tokens,
        "prompt_n": finished.prompt_tokens - finished.cached_tokens,
        "prompt_ms": finished.prefill_ns / 1e6,
        "predicted_n": finished.tokens,
        "predicted_ms": finished.decode_ns / 1e6,
    }


def models(catalogue: Catalogue, created: int, dialect: Dialect) -> dict[str, Any]:
    """OpenAI's list; the window of one slot is told as llama.cpp does (`meta`), as vLLM does, or nowhere."""
    listed = []
    for spec in catalogue:
        model: dict[str, Any] = {"id": spec.name, "object": "model", "created": created, "owned_by": "stand-in"}
        if dialect.window_told == "meta":
            model["meta"] = {"n_ctx": catalogue.window(spec), "n_ctx_train": spec.train_window}
        elif dialect.window_told == "max_model_len":
            model["max_model_len"] = catalogue.window(spec)
        listed.append(model)
    return {"object": "list", "data": listed}
