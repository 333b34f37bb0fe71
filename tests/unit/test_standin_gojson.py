"""JSON, durations and complaints as Go has them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.standin import gojson
from services.standin.gojson import FOREVER_S, Unmarshal


@given(st.text())
def test_what_is_written_is_read_again_and_has_no_go_escape_left(text: str) -> None:
    written = gojson.encode({"text": text})
    assert json.loads(written) == {"text": text}
    assert not {"<", ">", "&", "\u2028", "\u2029"} & set(written.decode())


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert gojson.encode("a\ud800b") == '"a\ufffdb"'.encode()


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "missing request body"),
        (b"{", "unexpected EOF"),
        (b"[]", "json: cannot unmarshal array into Go value of type T"),
        (b"7", "json: cannot unmarshal number into Go value of type T"),
        (b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_bodies_are_refused_in_gos_words(body: bytes, complaint: str) -> None:
    with pytest.raises(Unmarshal, match=complaint.replace("[", r"\[")):
        gojson.decode_object(body, "T")


def test_what_follows_the_first_value_is_ignored_and_bad_utf8_replaced() -> None:
    assert gojson.decode_object(b'{"a":"\xff"}garbage', "T") == {"a": "\ufffd"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600.0), ("1h30m", 5400.0), ("1.5s", 1.5), ("300ms", 0.3), ("0", 0.0), ("-1s", FOREVER_S), ("+2s", 2.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert gojson.duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "complaint"), [("10", "missing unit"), ("abc", "invalid duration"), ("", "invalid duration")]
)
def test_durations_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(Unmarshal, match=complaint):
        gojson.duration_s(text)


def test_a_timestamp_leaves_out_the_zeros_at_its_end() -> None:
    assert gojson.timestamp(1_795_248_475_452_795_000) == "2026-11-21T08:07:55.452795Z"
    assert gojson.timestamp(1_795_248_475_000_000_000) == "2026-11-21T08:07:55Z"
