"""The contracts' own rules: what is read, refused, parked, and how bytes come to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import events, frames, generate, ids, subjects, turns, upcasters
from contracts.base import compact, parse, without_surrogates
from contracts.envelope import Envelope, read_event, write_event
from contracts.errors import CODES, FAILURE_CODES, REFUSAL_CODES, ContractError
from contracts.partitions import PARTITIONS, partition_of
from contracts.queries import EventsReply, encode_events_reply, read_events_reply
from tests.conversing import make_event, message, session_started

SESSION = ids.session_id_of_name("local", "a")

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=10,
)


def test_schemas_are_fresh() -> None:
    """`make contracts` writes them."""
    found = {str(path.relative_to(generate.FOLDER)): path.read_text() for path in generate.FOLDER.rglob("*.json")}
    assert found == generate.schemas()


@given(json_values)
def test_compact_json_is_read_back(value: Any) -> None:
    raw = compact(value)
    assert parse(raw) == value
    assert b"\n" not in raw


@pytest.mark.parametrize(
    "raw", ["NaN", "[Infinity]", '{"a":-Infinity}', '"\\ud800"', '{"\\udc00":1}', "{", "", b"\xff", "[" * 50 + "]" * 50]
)
def test_what_json_cannot_carry_is_refused(raw: str | bytes) -> None:
    with pytest.raises(ContractError):
        parse(raw)


def test_what_a_model_broke_is_mended() -> None:
    assert without_surrogates("a\ud800b🌌") == "a\ufffdb🌌"


def body_with(**changes: Any) -> bytes:
    envelope = json.loads(message(SESSION).body) | changes
    return compact({name: value for name, value in envelope.items() if value is not ...})


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "no_such_type"},
        {"type": "session_forked"},
        {"schema_version": 2},
        {"schema_version": 0},
        {"event_id": "1"},
        {"event_id": "01930000-0000-7000-8000-00000000000A"},
        {"turn_id": ...},
        {"user_id": ""},
        {"occurred_at": "2026-11-20T10:00:00Z"},
        {"occurred_at": "2026-13-20T10:00:00.000Z"},
        {"data": []},
        {"data": {"text": "no ids"}},
    ],
    ids=str,
)
def test_what_is_not_known_is_never_guessed(changes: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        read_event(body_with(**changes))
    assert caught.value.code == "event_parked"


def test_a_reader_ignores_what_a_newer_writer_adds() -> None:
    body = body_with(added_later={"x": 1})
    event = read_event(body)
    assert event.body == body


def test_a_reader_ignores_a_new_field_of_the_data() -> None:
    original = json.loads(message(SESSION, "hi").body)
    body = compact(original | {"data": original["data"] | {"mood": "good"}})
    event = read_event(body)
    assert isinstance(event.data, events.UserMessageSubmitted)
    assert event.data_hash != message(SESSION, "hi").data_hash


def test_a_writer_cannot_add_a_field() -> None:
    with pytest.raises(ContractError):
        session_started(SESSION, mood="good")


def test_a_writer_writes_the_newest_schema_version_only() -> None:
    envelope = session_started(SESSION).envelope.model_copy(update={"schema_version": 7})
    with pytest.raises(ContractError):
        write_event(envelope)


def test_a_reason_never_holds_a_text() -> None:
    """Reasons are logged and shown; a canary in any wrong field stays where it is."""
    canary = "CANARY-8c1f"
    for data in ({"text": [canary]}, {"text": "x", "message_id": canary}, {canary: 1}):
        with pytest.raises(ContractError) as caught:
            make_event("user_message_submitted", SESSION, data, turn_id=ids.turn_id_of("x"))
        shown = caught.value.reason if canary not in data else ""
        assert canary not in shown


def test_reserved_names_are_no_types() -> None:
    assert not events.RESERVED & events.REGISTRY.keys()


def test_every_type_has_a_writer() -> None:
    assert events.REGISTRY.keys() == events.GATEWAY_WRITES | events.INFERENCE_WRITES | events.HISTORY_WRITES


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("local", "u-local"),
        ("A_b-9", "u-A_b-9"),
        ("x" * 64, "u-" + "x" * 64),
        ("smollm2:135m", "h-5d3dfca5f3092cc44b1d2873ea27e916"),
    ],
)
def test_a_name_becomes_one_token(name: str, token: str) -> None:
    assert subjects.token_of(name) == token


@pytest.mark.parametrize("name", ["a.b", "a*", ">", " ", "ä", "x" * 65, "h-" + "0" * 32 + "!", "u.x"])
def test_no_name_reaches_another_subject(name: str) -> None:
    token = subjects.token_of(name)
    assert token.startswith("h-")
    assert subjects.token_of(token) == f"u-{token}", "a user named like another's token is another user"


def test_a_subject_that_a_request_reaches_contains_its_user() -> None:
    """So that a user cannot name another's session, turn or query, whatever ids they know (P8)."""
    for reached in (
        subjects.intake("ann", SESSION, "session_started"),
        subjects.session_feed("ann", SESSION),
        subjects.user_feed("ann"),
        subjects.turn("ann", SESSION),
        subjects.history_query("turn", "ann"),
    ):
        assert "u-ann" in reached.split(".")


def test_an_intake_subject_is_parsed_as_it_was_built() -> None:
    address = subjects.parse_intake(subjects.intake("a b", SESSION, "session_started"))
    assert address.user_token == subjects.token_of("a b")
    assert (address.partition, address.session_id, address.type) == (partition_of("a b"), SESSION, "session_started")
    for wrong in ("chat.intake.1.u-a.b", "chat.context.1.u-a.b.c", "chat.intake.x.u-a.b.c"):
        with pytest.raises(ContractError):
            subjects.parse_intake(wrong)


def test_partitions_never_change() -> None:
    assert (PARTITIONS, partition_of("local"), partition_of("äöü")) == (16, 8, 15)


def test_every_code_is_in_the_table_once() -> None:
    listed = [entry.code for entry in CODES]
    assert len(listed) == len(set(listed))
    assert set(listed) >= FAILURE_CODES | REFUSAL_CODES


def test_an_event_frame_holds_the_body_verbatim() -> None:
    body = b'{"data":{"odd" : 1.0},  "event_id":"x"}'
    frame = frames.event_frame(body, SESSION, 7, 3, "2026-11-20T10:00:00.123Z")
    assert body in frame
    assert parse(frame) == {
        "event": {"data": {"odd": 1.0}, "event_id": "x"},
        "position": 7,
        "recorded_at": "2026-11-20T10:00:00.123Z",
        "session_id": SESSION,
        "type": "event",
        "version": 3,
    }


def test_an_optional_field_of_a_frame_is_left_out() -> None:
    turn_id = ids.turn_id_of("x")
    token = frames.Token(session_id=SESSION, turn_id=turn_id, attempt=1, index=1, text="")
    assert parse(frames.encode(token)) == {
        "type": "token",
        "session_id": SESSION,
        "turn_id": turn_id,
        "attempt": 1,
        "index": 1,
        "text": "",
    }


def test_a_refusal_without_a_session_says_null() -> None:
    refused = frames.Refused(session_id=None, code="bad_frame")
    assert parse(frames.encode(refused)) == {"type": "refused", "session_id": None, "code": "bad_frame"}


@pytest.mark.parametrize(
    "cursor",
    [frames.Cursor("a1", 0), frames.Cursor("0f", 12), frames.Cursor("abc", 3, 1, 0), frames.Cursor("abc", 3, 2, 40)],
)
def test_a_cursor_is_read_back(cursor: frames.Cursor) -> None:
    assert frames.read_cursor(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text", ["", "a", "a.", ".1", "a.1.2", "a.1.2.3.4", "a.-1", "a.x", "a b.1", "a.\uff11", "a." + "9" * 20]
)
def test_a_broken_cursor_is_refused(text: str) -> None:
    with pytest.raises(ContractError):
        frames.read_cursor(text)


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_an_events_reply_keeps_every_byte(parts: list[bytes]) -> None:
    reply = EventsReply("ep", 9, True, None, 0, tuple(parts))
    assert read_events_reply(encode_events_reply(reply)) == reply


@pytest.mark.parametrize("version", upcasters.versions_of("context_assembled"))
def test_a_queued_context_keeps_the_recorded_event(version: int) -> None:
    """Whichever history wrote it: what is queued when a worker is replaced is as old as its turn."""
    golden = Path(__file__).parents[1] / f"golden/events/context_assembled.{version}.json"
    body = golden.read_bytes().rstrip(b"\n")
    raw = turns.encode_context(body, [{"role": "user", "content": "ä 🌌"}])
    queued = turns.read_context(raw)
    assert queued.event.body == body
    assert queued.messages == (("user", "ä 🌌"),)


@pytest.mark.parametrize(
    "raw",
    [
        '{"type":"send","session":"a"}',
        '{"type":"send","session":"a","text":1}',
        '{"type":"send","session":"a","text":"x","options":{"temperature":3}}',
        '{"type":"send","session":"a","text":"x","options":{"banana":1}}',
        '{"type":"send","session":"a","text":"x","on_busy":"whatever"}',
        '{"type":"cancel","session":"a"}',
        '{"type":"cancel","session":"a","turn":7}',
        '{"type":"cancel","session":"a","turn":"t","attempt":1}',
        '{"type":"attach"}',
        '{"type":"token"}',
        '{"type":7}',
        "[]",
        "null",
        "{",
        '{"type":"ping","extra":1}',
    ],
)
def test_a_wrong_client_frame_is_a_bad_frame(raw: str) -> None:
    with pytest.raises(ContractError) as caught:
        frames.read_client_frame(raw)
    assert caught.value.code == "bad_frame"


def test_an_envelope_forbids_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="extra"):
        Envelope.model_validate({**session_started(SESSION).envelope.model_dump(), "mood": "good"})
