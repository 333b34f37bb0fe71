"""The intake core: what a client sent becomes an event with derived ids, or a refusal with a code."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import ids
from contracts.envelope import read_event
from contracts.events import UserMessageSubmitted
from services.gateway import intake
from services.gateway.intake import Refused, Request, Room

SESSION = "11111111-1111-4111-8111-111111111111"
EVENT = "22222222-2222-4222-8222-222222222222"
REQUEST = Request("local", SESSION, EVENT, "2026-11-20T10:00:00.123Z")
ROOM = Room(intake_share=0.1, disk_free_bytes=10**12, queued_turns=0, unrecorded_in_session=0)


def code_of(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(Refused) as refused:
        call(*args, **named)
    return refused.value.code


def test_a_message_names_its_turn_and_its_answer() -> None:
    event = intake.message(REQUEST, {"type": "send", "session": SESSION, "text": "hi", "client_message_id": "1"})
    assert isinstance(event.data, UserMessageSubmitted)
    assert event.turn_id == ids.turn_id_of(EVENT)
    assert event.data.message_id == ids.message_id_of(EVENT)
    assert event.data.answer_id == ids.answer_id_of(str(event.turn_id))
    assert event.envelope.data.keys() == {"message_id", "answer_id", "text"}
    assert read_event(event.body).envelope == event.envelope


def test_what_was_sent_is_written_as_it_was_sent() -> None:
    absent = intake.message(REQUEST, {"text": "hi"})
    null = intake.message(REQUEST, {"text": "hi", "parent_id": None})
    whole = intake.message(REQUEST, {"text": "hi", "options": {"temperature": 1}})
    real = intake.message(REQUEST, {"text": "hi", "options": {"temperature": 1.0}})
    assert len({event.data_hash for event in (absent, null, whole, real)}) == 4


def test_a_retry_has_the_same_hash_whenever_it_comes() -> None:
    later = Request("local", SESSION, EVENT, "2026-11-21T10:00:00.000Z")
    assert intake.message(REQUEST, {"text": "hi"}).data_hash == intake.message(later, {"text": "hi"}).data_hash


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "bad_request"),
        ({"text": ""}, "bad_request"),
        ({"text": " \n"}, "bad_request"),
        ({"text": 7}, "bad_request"),
        ({"text": None}, "bad_request"),
        ({"text": "x" * 100_001}, "too_long"),
        ({"text": "hi", "options": {"top_z": 1}}, "bad_request"),
        ({"text": "hi", "options": {"temperature": 3}}, "bad_request"),
        ({"text": "hi", "options": {"seed": 1.5}}, "bad_request"),
        ({"text": "hi", "parent_id": "x"}, "bad_request"),
        ({"text": "hi", "model": ""}, "bad_request"),
        ({"text": "hi", "on_busy": "whatever"}, "bad_request"),
    ],
)
def test_a_message_that_is_not_one(given: dict[str, Any], code: str) -> None:
    assert code_of(intake.message, REQUEST, given) == code


def test_the_longest_text_is_taken() -> None:
    assert intake.message(REQUEST, {"text": "文" * 100_000}).body


def test_a_refusal_never_quotes_the_text() -> None:
    with pytest.raises(Refused) as refused:
        intake.message(REQUEST, {"text": "a secret", "options": {"a secret": "a secret"}, "parent_id": "a secret"})
    assert "a secret" not in refused.value.detail.replace("options.a secret", "")


def test_sessions_and_titles() -> None:
    assert intake.session(REQUEST, {"name": "x", "unknown": 1}).envelope.data == {"name": "x"}
    assert intake.session(REQUEST, {}).turn_id is None
    assert intake.rename(REQUEST, {"title": "new"}).type == "session_renamed"
    assert code_of(intake.session, REQUEST, {"name": "x" * 201}) == "bad_request"
    assert code_of(intake.rename, REQUEST, {}) == "bad_request"


@pytest.mark.parametrize(
    ("full", "code"),
    [
        ({"intake_share": 0.8}, "not_accepted"),
        ({"disk_free_bytes": 512 * 1024 * 1024 - 1}, "not_accepted"),
        ({"queued_turns": 1000}, "queue_full"),
        ({"unrecorded_in_session": 20}, "queue_full"),
    ],
)
def test_a_full_house_refuses_with_a_time_to_try_again(full: dict[str, Any], code: str) -> None:
    room = {name: getattr(ROOM, name) for name in Room.__slots__} | full
    with pytest.raises(Refused) as refused:
        intake.check_room(Room(**room))
    assert refused.value.code == code
    assert refused.value.retry_after_s


def test_room_up_to_the_bounds() -> None:
    intake.check_room(Room(0.79, 512 * 1024 * 1024, 999, 19))
    intake.check_room(Room(None, None, 0, 0))


@pytest.mark.parametrize(
    ("model", "named", "heard", "refused"),
    [
        ("m", frozenset(), False, False),
        (None, frozenset(), False, False),
        ("m", frozenset({"n"}), False, False),
        ("m", frozenset({"m"}), True, False),
        (None, frozenset({"m"}), True, False),
        ("n", frozenset({"m"}), True, True),
        (None, frozenset(), True, True),
    ],
)
def test_a_model_is_refused_only_once_a_worker_was_heard(
    model: str | None, named: frozenset[str], heard: bool, refused: bool
) -> None:
    if refused:
        with pytest.raises(Refused) as refusal:
            intake.check_model(model, named, heard=heard)
        there = "no worker offers n; there is m" if named else "no worker offers a model"
        assert (refusal.value.code, refusal.value.detail) == ("model_not_found", there)
    else:
        intake.check_model(model, named, heard=heard)
