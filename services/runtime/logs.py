"""Logs: one JSON object per line on stderr, with ids and never what somebody said.

Owns how every line is rendered, those of libraries too. Must never let a message's text, a context or a password
through: fields with such names are masked wherever they are, and an exception is rendered without its variables and,
unless its kind is known not to quote its input, without its words.
"""

from __future__ import annotations

import logging
import sqlite3
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import nats.errors
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from contracts.errors import ContractError

MASK = "[not logged]"
FORBIDDEN_FIELDS = frozenset(
    {
        "api_key", "authorization", "body", "content", "context", "headers", "key", "messages", "password", "payload",
        "prompt", "system", "text", "thinking", "title",
    }
)  # fmt: skip
# Kinds whose words are about the machine, not about the input. A ValueError quotes what it could not read.
SPOKEN_ERRORS: tuple[type[BaseException], ...] = (
    OSError, RuntimeError, sqlite3.Error, nats.errors.Error, ContractError,
)  # fmt: skip
# A chain of causes is followed so far, a stack so deep, and nested fields down to here: bounded like all else.
_MAX_CAUSES = 5
_MAX_FRAMES = 20
_MAX_DEPTH = 6
# Where structlog keeps the library's record; removed before rendering.
_STRUCTLOGS_OWN = {"_record", "_from_structlog"}


def configure(service: str, level: str = "info") -> None:
    """Send every log line of this process, libraries' lines included, to stderr as JSON."""

    def name_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {"service": service, **event}

    shared: list[Processor] = [
        name_service,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        render_exception,
        mask_forbidden,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore"):
        # One line per request to a model server, at info, would be most of the log.
        logging.getLogger(name).setLevel(logging.WARNING)


def mask_forbidden(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Each field with a forbidden name, at any depth, becomes a mark."""
    return {name: _masked(name, value, _MAX_DEPTH) for name, value in event.items()}


def render_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """exc_info as a list of causes, latest first: kind, words where they are safe, and where it happened."""
    exc_info = event.pop("exc_info", None)
    if not exc_info:
        return event
    error = _error_of(exc_info)
    if error is not None:
        event["exception"] = _causes(error)
    return event


def _masked(name: str, value: Any, depth: int) -> Any:
    if name in _STRUCTLOGS_OWN:
        return value
    if name.lower() in FORBIDDEN_FIELDS or depth == 0:
        return MASK
    if isinstance(value, Mapping):
        return {str(key): _masked(str(key), item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item, depth - 1) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _error_of(exc_info: Any) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    found = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
    return found if isinstance(found, BaseException) else None


def _causes(error: BaseException) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cause: BaseException | None = error
    while cause is not None and len(found) < _MAX_CAUSES:
        frames = traceback.extract_tb(cause.__traceback__)[-_MAX_FRAMES:]
        words = str(cause) if isinstance(cause, SPOKEN_ERRORS) else MASK
        found.append(
            {
                "kind": type(cause).__name__,
                "words": words,
                "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
            }
        )
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return found
