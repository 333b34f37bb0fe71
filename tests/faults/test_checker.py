"""The checker finds each broken promise: hand-made journals and logs, one sound, each other one broken in one place."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.faults.checker import Evidence, Row, check

TURN = "turn-1"


def event(event_type: str, event_id: str, **fields: Any) -> dict[str, Any]:
    return {"type": event_type, "event_id": event_id, "session_id": "s", "turn_id": TURN, "data": fields}


LOG = [
    {**event("session_started", "e1"), "turn_id": None},
    event("user_message_submitted", "e2", text="say k"),
    event("context_assembled", "e3"),
    event("answer_started", "e4", attempt=1),
    event("answer_completed", "e5", attempt=1, last_index=2, text="one two"),
]
SENT = {"op": "send", "key": "k", "session_id": "s"}
TOLD = {**SENT, "kind": "ok", "status": "recorded", "event_id": "e2", "turn_id": TURN, "position": 2, "version": 2}


def rows(events: list[dict[str, Any]]) -> list[Row]:
    return [Row(place, place, each) for place, each in enumerate(events, start=1)]


def frame(kind: str, **fields: Any) -> dict[str, Any]:
    raw = json.dumps({"type": kind, "session_id": "s", **fields})
    return {"kind": "frame", "watch": "w", "raw": raw}


def frames() -> list[dict[str, Any]]:
    """What a watcher of LOG sees."""
    events = [frame("event", version=place, event=each) for place, each in enumerate(LOG, start=1)]
    tokens = [
        frame("token", turn_id=TURN, attempt=1, index=index, text=text) for index, text in ((1, "one "), (2, "two"))
    ]
    opened = {"kind": "open", "watch": "w", "session_id": "s", "after": None}
    return [opened, *events[:4], frame("attached", epoch="x", version=4), *tokens, events[4]]


def journal() -> list[dict[str, Any]]:
    return copy.deepcopy([{**SENT, "kind": "invoke"}, TOLD, *frames()])


def promises(entries: list[dict[str, Any]], events: list[dict[str, Any]] = LOG, **views: Any) -> set[str]:
    return {found.promise for found in check(Evidence(entries, rows(events), **views))}


def test_a_sound_run_has_no_violation() -> None:
    assert promises(journal(), folded={"turns": [1]}, replayed={"turns": [1]}) == set()


def test_an_accepted_message_that_is_lost_is_found() -> None:
    sent = [{**TOLD, "status": "accepted", "position": None, "event_id": "gone"}]
    assert promises(sent) == {"P1"}


def test_a_position_that_is_not_the_log_s_is_found() -> None:
    assert promises([{**TOLD, "position": 3}]) == {"P1"}


def test_a_refusal_of_what_is_recorded_is_found() -> None:
    assert promises([{**SENT, "kind": "fail", "code": "not_accepted"}]) == {"P1"}


def test_a_send_without_an_outcome_is_found() -> None:
    assert promises([{**SENT, "kind": "unknown"}]) == {"LIVENESS"}


def test_a_second_end_is_found() -> None:
    assert "P2" in promises([], [*LOG, event("answer_failed", "e6", attempt=1)])


def test_an_end_of_another_attempt_is_found() -> None:
    assert promises([], [*LOG[:4], event("answer_completed", "e5", attempt=2, text="")]) == {"P2"}


def test_an_attempt_after_the_end_is_found() -> None:
    assert promises([], [*LOG, event("answer_started", "e6", attempt=2)]) == {"P2"}


def test_a_turn_without_an_end_is_found() -> None:
    assert promises([], LOG[:4]) == {"LIVENESS"}


def test_views_that_differ_are_found() -> None:
    assert promises([], folded={"turns": [1]}, replayed={"turns": [2]}) == {"P3"}


@pytest.mark.parametrize(
    ("place", "promise"),
    [(3, "P4"), (6, "P4"), (8, "LIVENESS")],
    ids=["an event", "the first token", "the end: it stands still"],
)
def test_a_frame_that_is_missing_is_found(place: int, promise: str) -> None:
    seen = frames()
    del seen[place]
    assert promises(seen) == {promise}


def test_a_token_twice_is_found() -> None:
    seen = frames()
    assert promises([*seen[:7], seen[6], *seen[7:]]) == {"P4"}


def test_a_token_after_the_end_is_found() -> None:
    assert promises([*frames(), frame("token", turn_id=TURN, attempt=1, index=3, text="x")]) == {"P4"}


def test_a_text_that_is_not_the_end_s_is_found() -> None:
    seen = frames()
    seen[7] = frame("token", turn_id=TURN, attempt=1, index=2, text="three")
    assert promises(seen) == {"P4"}


def test_an_event_that_is_not_the_log_s_is_found() -> None:
    seen = frames()
    seen[2] = frame("event", version=2, event={**LOG[1], "data": {"text": "other"}})
    assert promises(seen) == {"P4"}


def test_a_repeat_with_another_outcome_is_found() -> None:
    assert "P6" in promises([TOLD, {**TOLD, "turn_id": "turn-2"}])


def test_a_message_that_was_recorded_twice_is_found() -> None:
    again = {**event("user_message_submitted", "e6", text="say k"), "turn_id": "turn-2"}
    ended = {**event("answer_cancelled", "e7", attempt=0), "turn_id": "turn-2"}
    assert promises([], [*LOG, again, ended]) == set(), "nobody sent it here"
    assert promises([TOLD], [*LOG, again, ended]) == {"P6"}
