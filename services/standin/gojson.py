"""Beside the road (core): JSON and durations as Go writes and reads them, down to the words of its complaints.

It owns what makes a byte of Ollama's wire look like Ollama's: escapes, nanosecond timestamps, unmarshal errors. It
must never know an endpoint.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

GO_ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
"""What encoding/json escapes beyond the standard; U+0085 is not among them, and breaks careless line splitters."""

ESCAPED: Final = re.compile("[<>&\u2028\u2029]")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
DURATION_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOREVER_S: Final = (2**63 - 1) / 1e9
"""Go's longest duration, 292 years: what a negative keep_alive means."""


class Unmarshal(ValueError):
    """A body that Go's decoder refuses, with its words."""


def encode(value: object) -> bytes:
    """Compact JSON with Go's escapes; a lone surrogate becomes U+FFFD."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = ESCAPED.sub(lambda found: GO_ESCAPES[found.group()], text)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return SURROGATE.sub("\ufffd", text).encode()


def decode_object(body: bytes, go_type: str) -> dict[str, Any]:
    """The first JSON value of a body, which must be an object; what follows it is ignored, as by Go."""
    text = body.decode("utf-8", "replace").lstrip()
    if not text:
        raise Unmarshal("missing request body")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) - 1:
            raise Unmarshal("unexpected EOF") from error
        raise Unmarshal(f"invalid character {text[error.pos]!r} looking for beginning of value") from error
    except RecursionError as error:
        raise Unmarshal("exceeded max depth") from error
    if not isinstance(value, dict):
        raise Unmarshal(f"json: cannot unmarshal {kind(value)} into Go value of type {go_type}")
    return value


def kind(value: object) -> str:
    """What Go calls a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list):
        return "array"
    return "object" if isinstance(value, dict) else "null"


def mismatch(value: object, field: str, go_type: str) -> Unmarshal:
    return Unmarshal(f"json: cannot unmarshal {kind(value)} into Go struct field {field} of type {go_type}")


def duration_s(text: str) -> float:
    """A Go duration in seconds; negative ones are for ever."""
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    if re.fullmatch(r"[0-9]*\.?[0-9]+", rest):
        raise Unmarshal(f'time: missing unit in duration "{text}"')
    parts = DURATION.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise Unmarshal(f'time: invalid duration "{text}"')
    seconds = sign * sum(float(number) * DURATION_UNITS_S[unit] for number, unit in parts)
    return FOREVER_S if seconds < 0 else seconds


def timestamp(epoch_ns: int) -> str:
    """RFC 3339 with up to nine decimals, zeros at the end left out."""
    seconds, fraction = divmod(epoch_ns, 1_000_000_000)
    decimals = f"{fraction:09d}".rstrip("0")
    day = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{day}.{decimals}Z" if decimals else f"{day}Z"
