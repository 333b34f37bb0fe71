"""Step 12, inference/models: a line's JSON -> the values that an adapter asks for, whatever the server put there.

Owns how far a server's JSON is trusted: broken characters become U+FFFD, a shape that cannot be read is a failure. Must
never drop a text in silence. Does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from contracts.base import without_surrogates
from services.inference.models.port import ModelFailure

UsageKey = Literal["prompt_tokens", "completion_tokens", "cached_tokens"]


def read_object(line: bytes) -> dict[str, Any]:
    """The JSON object in a line. Bytes that are not UTF-8 become U+FFFD. Raises ModelFailure for anything else."""
    try:
        found = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ModelFailure("model_error", "a line that is not JSON", again=True) from error
    if not isinstance(found, dict):
        raise ModelFailure("model_error", "a line that is not a JSON object", again=True)
    return found


def read_member(holder: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object under name; where there is none, an empty one."""
    found = holder.get(name)
    return found if isinstance(found, dict) else {}


def read_text(holder: Mapping[str, Any], name: str) -> str:
    """The text under name; none there (or null): ''. Other content is an error, never dropped in silence."""
    found = holder.get(name)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise ModelFailure("model_error", f"{name} is not text")
    return without_surrogates(found)


def read_count(holder: Mapping[str, Any], name: str) -> int | None:
    """The count under name. Left out is not the same as 0."""
    found = holder.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def read_usage(*places: tuple[UsageKey, Mapping[str, Any], str]) -> dict[UsageKey, int]:
    """The counts that are there, each from its place: (our key, the object, the server's key)."""
    counts = ((ours, read_count(holder, theirs)) for ours, holder, theirs in places)
    return {ours: count for ours, count in counts if count is not None}
