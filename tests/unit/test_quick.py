"""The short way from a stored body to its event: the same event as the long way, and the same refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from contracts.base import compact
from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from services.history.log.quick import quick_event
from tests.golden.test_golden import EVENTS


@pytest.mark.parametrize("name", [path.stem for path in EVENTS])
def test_every_event_that_was_ever_written_is_read_the_same(name: str) -> None:
    [body] = [path.read_bytes().rstrip(b"\n") for path in EVENTS if path.stem == name]
    long, quick = read_event(body), quick_event(name.partition(".")[0], body)
    assert (quick.data, quick.body) == (long.data, long.body)
    assert quick.data.model_fields_set == long.data.model_fields_set
    for field in ("type", "event_id", "user_id", "session_id", "turn_id"):
        assert getattr(quick, field) == getattr(long, field)
    assert quick.envelope.occurred_at == long.envelope.occurred_at


SPOILED: dict[str, dict[str, Any]] = {
    "no turn": {"turn_id": None},
    "another version": {"schema_version": 9},
    "a time that is none": {"occurred_at": "2026-02-30T00:00:00.000Z"},
    "an id that is none": {"event_id": "x"},
    "a lone surrogate": {"user_id": "\ud800"},
    "a text that is none": {"data": {"text": 1}},
    "a field of later": {"more": {"of": 1}},
    "a field of later in it": {"data": {"more": [1]}},
    "nested too deeply": {"more": json.loads("[" * 40 + "]" * 40)},
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_what_is_not_as_it_is_written_today_goes_the_long_way(spoiled: str) -> None:
    [path] = [path for path in EVENTS if path.stem == "user_message_submitted.1"]
    value = json.loads(path.read_bytes())
    change = SPOILED[spoiled]
    value |= {**change, **({"data": value["data"] | change["data"]} if "data" in change else {})}
    body = json.dumps(value).encode() if spoiled == "a lone surrogate" else compact(value)
    assert said_of(lambda: quick_event("user_message_submitted", body)) == said_of(lambda: read_event(body))


def said_of(read: Callable[[], Event]) -> object:
    """The data, or why there is none."""
    try:
        return read().data
    except ContractError as error:
        return error.code, error.reason
