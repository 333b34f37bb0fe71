"""Statuses, error bodies, Retry-After and exceptions -> codes; and no server's words in a failure's message."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from services.inference.models.failures import error_line, refused, translated
from services.inference.models.port import ModelFailure

LLAMA_TOO_LONG = {"code": 400, "message": "too big", "type": "exceed_context_size_error", "n_ctx": 512}

STATUSES: list[tuple[int, bytes, str, bool]] = [
    (400, b'{"error":"invalid model name"}', "model_refused", False),
    (400, json.dumps({"error": LLAMA_TOO_LONG}).encode(), "context_too_long", False),
    (400, json.dumps({"error": json.dumps({"error": LLAMA_TOO_LONG})}).encode(), "context_too_long", False),
    (400, b'{"error":"the input length exceeds the context length"}', "context_too_long", False),
    (400, b'{"error":"the prompt is longer than the context length currently"}', "context_too_long", False),
    (400, b'{"error":{"code":"context_length_exceeded"}}', "context_too_long", False),
    (400, b'{"message":"This Model\'s maximum context length is 4096 tokens."}', "context_too_long", False),
    (500, b'{"error":"the request exceeds the available context size"}', "context_too_long", False),
    (307, b"", "model_refused", False),
    (401, b"", "model_refused", False),
    (403, b"", "model_refused", False),
    (404, b"404 page not found", "model_not_found", False),
    (405, b"405 method not allowed", "model_refused", False),
    (422, b"{}", "model_refused", False),
    (429, b"", "model_busy", True),
    (500, b"", "model_error", True),
    (502, b"<html>502</html>", "model_error", True),
    (503, b'{"error":"server busy"}', "model_busy", True),
    (504, b"\xff\xfe<html>", "model_error", True),
]


@pytest.mark.parametrize(("status", "body", "code", "again"), STATUSES)
def test_status_and_body_make_the_code(status: int, body: bytes, code: str, again: bool) -> None:
    failure = refused(status, {}, body)
    assert (failure.code, failure.again, failure.retry_after_s) == (code, again, None)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("7", 7, 7), ("0.5", 0.5, 0.5), ("in an hour", 3590, 3600), ("Fri, 20 Nov 2020 10:00:00 GMT", 0, 0)],
)
def test_retry_after_is_seconds_or_a_date(value: str, low: float, high: float) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    told = in_an_hour if value == "in an hour" else value
    failure = refused(429, httpx.Headers({"Retry-After": told}), b"")
    assert failure.retry_after_s is not None
    assert low <= failure.retry_after_s <= high


@pytest.mark.parametrize("value", ["", "soon", "nan", "inf", "-1", "1e9", "99999999999999999999"])
def test_an_unreadable_retry_after_is_none(value: str) -> None:
    assert refused(503, {"retry-after": value}, b"").retry_after_s is None


@pytest.mark.parametrize("error", ["text", {"message": "text"}, ["text"], 500, LLAMA_TOO_LONG])
def test_an_error_line_may_have_any_shape(error: object) -> None:
    too_long = error is LLAMA_TOO_LONG
    assert error_line(error).code == ("context_too_long" if too_long else "model_error")
    assert error_line(error).again is not too_long


EXCEPTIONS: list[tuple[Exception, str, bool]] = [
    (httpx.ConnectError("x"), "model_unreachable", True),
    (httpx.ConnectTimeout("x"), "model_unreachable", True),
    (httpx.UnsupportedProtocol("x"), "model_unreachable", False),
    (httpx.InvalidURL("x"), "model_unreachable", False),
    (UnicodeError("label too long"), "model_unreachable", False),
    (httpx.PoolTimeout("x"), "model_busy", True),
    (httpx.WriteTimeout("x"), "model_stalled", False),
    (httpx.LocalProtocolError("x"), "model_refused", False),
    (httpx.RemoteProtocolError("incomplete chunked read"), "model_lost", True),
    (httpx.ReadError("x"), "model_lost", True),
    (httpx.WriteError("x"), "model_lost", True),
    (httpx.StreamClosed(), "model_lost", True),
    (ConnectionResetError(), "model_lost", True),
]


@pytest.mark.parametrize(
    ("error", "code", "again"), EXCEPTIONS, ids=[type(error).__name__ for error, _, _ in EXCEPTIONS]
)
def test_each_exception_of_the_client_has_a_code(error: Exception, code: str, again: bool) -> None:
    with pytest.raises(ModelFailure) as failure, translated():
        raise error
    assert (failure.value.code, failure.value.again) == (code, again)


def test_a_failure_passes_and_what_is_our_own_mistake_is_not_hidden() -> None:
    ours = ModelFailure("model_stalled", "ours")
    with pytest.raises(ModelFailure) as failure, translated():
        raise ours
    assert failure.value is ours
    with pytest.raises(KeyError), translated():
        raise KeyError


def test_no_message_quotes_the_server() -> None:
    quoted = "what the user said"
    told = [refused(status, {}, quoted.encode()) for status in (400, 404, 429, 500)] + [error_line(quoted)]
    with pytest.raises(ModelFailure) as failure, translated():
        raise httpx.ReadError(quoted)
    assert not [one for one in [*told, failure.value] if quoted in str(one)]
