"""What every contract is written in: compact JSON, times as text, frozen models.

Owns the one byte form of JSON that is hashed, stored and sent, and the base of all models. Must never do I/O, read a
clock or make an id.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from contracts.errors import ContractError

# Deeper JSON than any contract needs; a bound, so that hostile nesting ends in a code and not in a RecursionError.
MAX_DEPTH = 32

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Contract(BaseModel):
    """A shape on a wire or in the log. Writers forbid unknown fields; contracts' read functions ignore them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Made once: json.dumps and json.loads make one for each call that has options.
_ENCODER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def compact(value: Any) -> bytes:
    """value as compact JSON: UTF-8, keys sorted, no spaces. Raises ContractError for what JSON cannot carry."""
    try:
        return _ENCODER.encode(value).encode()
    except (UnicodeEncodeError, ValueError, TypeError, RecursionError) as error:
        raise ContractError("bad_request", "not JSON: a lone surrogate, NaN, Infinity or a foreign type") from error


def parse(raw: bytes | str) -> Any:
    """The JSON value in raw. Raises ContractError for NaN, Infinity, lone surrogates, bad UTF-8 and deep nesting."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ContractError("bad_request", "not JSON") from error
    # Most need no second look: what opens fewer levels than the bound cannot be deeper, and from UTF-8 a lone surrogate
    # comes by an escape only.
    if text.count("{") + text.count("[") > MAX_DEPTH or "\\u" in text or not isinstance(raw, bytes):
        _check(value, MAX_DEPTH)
    return value


def dump(model: BaseModel) -> bytes:
    """The bytes of a message between services: every field is written, so that a reader sees what is not there."""
    return compact(model.model_dump(mode="json"))


def data_hash(data: Any) -> str:
    """SHA-256 in hex of compact JSON of an event's data as it was received, never through a model."""
    return hashlib.sha256(compact(data)).hexdigest()


def without_surrogates(text: str) -> str:
    """text with each lone surrogate replaced by U+FFFD: what a model generated may be broken, what we send may not."""
    return _LONE_SURROGATE.sub("�", text)


def time_text(moment: datetime) -> str:
    """moment as UTC text with three decimals and Z. Raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def time_of(text: str) -> str:
    """An ISO 8601 time with its zone, as time_text writes it. Raises ValueError."""
    try:
        return _check_time(time_text(datetime.fromisoformat(text)))
    except OverflowError as error:
        raise ValueError("not a time that UTC has") from error


def seconds_between(earlier: str, later: str) -> float:
    """How much later, of two times as time_text writes them; negative where a clock went back."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _check(value: Any, depth: int) -> None:
    """Refuse what UTF-8 cannot carry, and nesting beyond the bound."""
    if isinstance(value, str):
        if not value.isascii() and _LONE_SURROGATE.search(value):
            raise ContractError("bad_request", "a lone surrogate")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ContractError("bad_request", f"nested deeper than {MAX_DEPTH}")
        items = value if isinstance(value, list) else [*value.keys(), *value.values()]
        for item in items:
            _check(item, depth - 1)


_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")


def _check_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError("not a UTC time with three decimals and Z")
    datetime.fromisoformat(text)
    return text


def _check_text(text: str) -> str:
    if _LONE_SURROGATE.search(text):
        raise ValueError("a lone surrogate")
    return text


Time = Annotated[str, AfterValidator(_check_time)]
Text = Annotated[str, AfterValidator(_check_text)]
Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
# 200 bytes: enough for any client's key or name, small enough to be hashed and indexed without a thought.
KEY_BYTES = 200


def _check_key(text: str) -> str:
    if not 1 <= len(_check_text(text).encode()) <= KEY_BYTES:
        raise ValueError(f"1 to {KEY_BYTES} bytes")
    return text


Key = Annotated[str, AfterValidator(_check_key)]
UserId = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
ModelName = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
