"""Step 12, inference/models: everything that can go wrong with a model server -> one ModelFailure with a stable code.

Owns the translation of statuses, error bodies, error lines and the HTTP client's exceptions. Must never put a server's
error text into a failure's message: servers quote the conversation in it, and the message may be logged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from contracts.errors import FailureCode
from services.inference.models.port import ModelFailure

# How servers say that a prompt does not fit: Ollama 0.24 and 0.32, llama.cpp, OpenAI, vLLM, LM Studio. Ollama hides
# llama.cpp's JSON as a string inside its own, so the words are looked for wherever they stand.
TOO_LONG = (
    "exceed_context_size_error",
    "exceeds the available context size",
    "prompt is longer than the context length",
    "input length exceeds the context length",
    "context_length_exceeded",
    "maximum context length",
    "greater than the context length",
)
BUSY = (429, 503)

# httpx's exceptions from the special to the general; the first that fits decides.
EXCEPTIONS: tuple[tuple[type[Exception], FailureCode, bool], ...] = (
    (httpx.UnsupportedProtocol, "model_unreachable", False),
    (httpx.InvalidURL, "model_unreachable", False),
    (UnicodeError, "model_unreachable", False),  # a host name that DNS cannot spell
    (httpx.ConnectError, "model_unreachable", True),
    (httpx.ConnectTimeout, "model_unreachable", True),
    (httpx.ProxyError, "model_unreachable", True),
    (httpx.PoolTimeout, "model_busy", True),
    (httpx.TimeoutException, "model_stalled", False),
    (httpx.LocalProtocolError, "model_refused", False),  # we could not even spell the request
    (httpx.TransportError, "model_lost", True),  # reset, cut, or an answer that is not HTTP
    (httpx.StreamError, "model_lost", True),
    (OSError, "model_lost", True),
)


@contextmanager
def translated() -> Iterator[None]:
    """Whatever the HTTP client raises inside, as a ModelFailure."""
    try:
        yield
    except tuple(kind for kind, _, _ in EXCEPTIONS) as error:
        code, again = next((code, again) for kind, code, again in EXCEPTIONS if isinstance(error, kind))
        raise ModelFailure(code, type(error).__name__, again=again) from error


def refused(status: int, headers: Mapping[str, str], body: bytes) -> ModelFailure:
    """The failure that a status other than 200 means."""
    if says_too_long(body.decode("utf-8", errors="replace")):
        return ModelFailure("context_too_long", f"status {status}")
    if status in BUSY:
        return ModelFailure("model_busy", f"status {status}", again=True, retry_after_s=_retry_after(headers))
    if status >= 500:
        return ModelFailure("model_error", f"status {status}", again=True, retry_after_s=_retry_after(headers))
    if status == 404:
        return ModelFailure("model_not_found", "status 404")
    return ModelFailure("model_refused", f"status {status}")


def error_line(error: object) -> ModelFailure:
    """The failure that an error inside a stream means: the status was 200 and can say nothing any more."""
    if says_too_long(json.dumps(error)):
        return ModelFailure("context_too_long", "an error line in the stream")
    return ModelFailure("model_error", "an error line in the stream", again=True)


def says_too_long(text: str) -> bool:
    lowered = text.lower()
    return any(words in lowered for words in TOO_LONG)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: the header holds either seconds or a date (RFC 9110)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
