"""The checker finds each broken promise: hand-made journals and logs, one sound, each other one broken in one place."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from tests.faults.checker import check
from tests.faults.evidence import Evidence, Link, Row

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


# The chain of two rows, as history's own function computed it.
CHAIN = [
    Link(
        (1, "e1", "local", "s", 1, None, "session_started", 1, "2026-11-20T10:00:00.000Z", "ab"),
        b"one",
        bytes.fromhex("7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"),
        bytes.fromhex("009481f4d947d409d8e4a0359ee4ddbf55bbfbc318dbedce61db022c18a017f3"),
    ),
    Link(
        (2, "e2", "local", "s", 2, TURN, "user_message_submitted", 1, "2026-11-20T10:00:01.000Z", "cd"),
        b"two",
        bytes.fromhex("3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"),
        bytes.fromhex("4cd4f303d668b849b402628981e8d03296e073d1886b9e64bf865868e10c5556"),
    ),
]


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


@pytest.mark.parametrize(("at", "found"), [("10:00:09", {"P2"}), ("10:00:04", set())])
def test_an_end_of_an_earlier_attempt_is_one_from_before_the_latest(at: str, found: set[str]) -> None:
    """The worker that was paused ended it too late; or history, which was away, met it late."""
    second = {**event("answer_started", "e6", attempt=2), "occurred_at": "2026-11-20T10:00:05.000Z"}
    end = {**LOG[4], "occurred_at": f"2026-11-20T{at}.000Z"}
    assert promises([], [*LOG[:4], second, end]) == found


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


@pytest.mark.parametrize("how", ["clean", "204", "close 1000"])
def test_a_watch_that_is_cut_and_looks_whole_is_found(how: str) -> None:
    seen = frames()
    cut = [*seen[:7], {"kind": "closed", "watch": "w", "how": how}]
    resumed = [{**seen[0], "after": "x.4.1.1"}, *seen[7:]]
    assert promises([*cut, *resumed]) == {"P5"}
    assert promises([*cut[:-1], frame("error", code="stream_cut"), cut[-1], *resumed]) == set(), "it said so"
    assert promises([*cut[:-1], {**cut[-1], "how": "close 1006"}, *resumed]) == set(), "it broke, and looks broken"


def stream(count: int, how: str) -> list[dict[str, Any]]:
    """A streamed answer of LOG, up to so many frames."""
    seen = [each for each in frames()[2:] if json.loads(each["raw"])["type"] != "attached"]
    opened = {"kind": "open", "session_id": "s"}
    whole = [opened, *seen[:count], {"kind": "closed", "how": how}]
    return [{name: value for name, value in each.items() if name != "watch"} | {"stream": "q"} for each in whole]


def test_a_stream_that_is_cut_and_looks_whole_is_found() -> None:
    assert promises(stream(6, "clean")) == set()
    assert promises(stream(5, "RemoteProtocolError")) == set()
    assert promises(stream(5, "clean")) == {"P5"}


def test_a_token_that_a_stream_leaves_out_is_found() -> None:
    seen = stream(6, "clean")
    del seen[4]
    assert promises(seen) == {"P4"}


OUTCOME = {"op": "outcome", "kind": "ok", "key": "k", "turn_id": TURN, "event_id": "e2", "turn_status": "completed"}


def test_an_outcome_at_the_end_that_is_not_the_log_s_is_found() -> None:
    assert promises([TOLD, {**OUTCOME, "status": "recorded"}]) == set()
    assert promises([TOLD, {**OUTCOME, "status": "pending"}]) == {"P1"}
    assert promises([TOLD, {**OUTCOME, "status": "recorded", "event_id": "e9"}]) == {"P1"}
    assert promises([TOLD, {**OUTCOME, "status": "recorded", "turn_status": "failed"}]) == {"P3"}


def test_an_answer_that_is_not_the_turn_s_end_is_found() -> None:
    assert promises([{**TOLD, "answer": "one two", "ended": "answer_completed"}]) == set()
    assert promises([{**TOLD, "answer": "one"}]) == {"P2"}
    assert promises([{**TOLD, "ended": "worker_lost"}]) == {"P2"}


def test_a_row_that_was_changed_breaks_the_chain() -> None:
    def broken(chain: list[Link]) -> list[str]:
        return [str(found) for found in check(Evidence([], [], chain))]

    assert broken(CHAIN) == []
    for change in ({"body": b"other"}, {"fields": (2, *CHAIN[0].fields[1:])}, {"hash": bytes(32)}):
        changed = dataclasses.replace(CHAIN[0], **change)
        assert broken([changed, CHAIN[1]]) == [
            f"CHAIN: the hash chain of the log breaks at position {changed.fields[0]}"
        ]
    assert broken(CHAIN[1:]), "a row is gone"


def test_a_client_that_died_is_found() -> None:
    """Of what it was sent and could not read, say; the rest of the run is still checked."""
    assert promises([{"kind": "died", "error": "JSONDecodeError()"}]) == {"CLIENT"}
